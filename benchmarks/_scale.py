"""The sizes of the measurements: full, quick or tiny."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Scale:
    """Sizes of graphs and numbers of repetitions.

    Attributes:
        sizes: Numbers of tasks in the graphs of `engine`, in ascending order.
        largest: Number of tasks in the graphs whose growth is measured once; 0 omits them.
        nodes: Nodes of the graph whose memory is measured.
        items: Items of the map whose memory is measured.
        rounds: Repetitions of short measurements.
        traced_rounds: Repetitions of measurements that start a process and a collector.
        burst: Tasks of a traced run.
        run: Tasks of a run during an outage or beside a ticker.
        imports: Repetitions of each import.
        other_engines: Shapes and sizes of the graphs for other engines.
        waiting: Smallest number of blocked tasks while control messages arrive.
        control_messages: Number of pauses, and of clears.
        pause: Seconds of the pause whose CPU time is measured.
        flush_timeout: Seconds that the end of a run waits for its collector; in full, the default of the connector.
        many_rounds: Repetitions of measurements whose spread matters, and rounds of a comparison of revisions.
    """

    sizes: tuple[int, ...] = (1_000, 10_000, 100_000)
    largest: int = 1_000_000
    nodes: int = 300_000
    items: int = 1_000_000
    rounds: int = 3
    traced_rounds: int = 2
    burst: int = 100_000
    run: int = 20_000
    imports: int = 15
    other_engines: tuple[tuple[str, int], ...] = (("fan-out", 1_000), ("chain", 200))
    waiting: int = 10_000
    control_messages: int = 100
    pause: float = 60.0
    flush_timeout: float = 5.0
    many_rounds: int = 5

    @classmethod
    def of(cls, name: str) -> "Scale":
        """Return the scale `full`, `quick`, or `tiny`, which only checks that each measurement works."""
        match name:
            case "quick":
                return cls(
                    sizes=(1_000, 10_000),
                    largest=0,
                    nodes=30_000,
                    items=100_000,
                    burst=20_000,
                    run=5_000,
                    imports=5,
                    control_messages=30,
                    pause=5.0,
                )
            case "tiny":
                return cls(
                    sizes=(10, 50),
                    largest=100,
                    nodes=50,
                    items=50,
                    rounds=1,
                    traced_rounds=1,
                    burst=50,
                    run=50,
                    imports=1,
                    other_engines=(("fan-out", 20), ("chain", 10)),
                    waiting=100,
                    control_messages=2,
                    pause=0.1,
                    flush_timeout=0.5,
                    many_rounds=1,
                )
            case _:
                return cls()
