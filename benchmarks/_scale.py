"""How much is measured: in full, quickly, or hardly at all."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Scale:
    """Sizes of graphs, and how often each is run.

    Attributes:
        sizes: Tasks of the engine's graphs, the smallest first.
        rounds: Of the quick measurements; `traced_rounds` of those that need a process and a collector each.
        burst: Tasks of a traced run; `run` of one with a dead collector or beside a ticker.
        imports: How often each import is timed.
        peers: Shapes and sizes of the graphs that other engines run.
        waiting: Tasks that are held back while control comes, at least; `steered` times it does.
        pause: Seconds of a pause whose cost is measured.
        flush_timeout: Seconds that the end of a run may wait for its collector; in full the connector's default.
    """

    sizes: tuple[int, ...] = (1_000, 10_000, 100_000)
    rounds: int = 3
    traced_rounds: int = 2
    burst: int = 100_000
    run: int = 20_000
    imports: int = 15
    peers: tuple[tuple[str, int], ...] = (("fan-out", 1_000), ("chain", 200))
    waiting: int = 10_000
    steered: int = 100
    pause: float = 60.0
    flush_timeout: float = 5.0

    @classmethod
    def of(cls, name: str) -> "Scale":
        """`full`, `quick`, or `tiny`, which only shows that all of it works."""
        match name:
            case "quick":
                return cls((1_000, 10_000), burst=20_000, run=5_000, imports=5, steered=30, pause=5.0)
            case "tiny":
                peers = (("fan-out", 20), ("chain", 10))
                return cls((10, 50), 1, 1, 50, 50, 1, peers, waiting=100, steered=2, pause=0.1, flush_timeout=0.5)
            case _:
                return cls()
