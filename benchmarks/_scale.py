"""The sizes of the measurements: full, quick, or tiny."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Scale:
    """Sizes of graphs, and the number of runs of each.

    Attributes:
        sizes: Tasks of the engine's graphs, the smallest first.
        rounds: Of the quick measurements; `traced_rounds` of those that need a process and a collector each;
            `many_rounds` of those whose spread is the subject.
        burst: Tasks of a traced run; `run` of one with a dead collector or beside a ticker.
        imports: How often each import is timed.
        peers: Shapes and sizes of the graphs that other engines run.
        waiting: Tasks that are held back while control comes, at least; `steered` times it does.
        pause: Seconds of a pause whose cost is measured.
        flush_timeout: Seconds that the end of a run may wait for its collector; in full the connector's default.
        against: Source tree of another revision, measured in the same rounds.
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
    many_rounds: int = 5
    against: Path | None = None

    @classmethod
    def of(cls, name: str) -> "Scale":
        """`full`, `quick`, or `tiny`, which only shows that every measurement works."""
        match name:
            case "quick":
                return cls((1_000, 10_000), burst=20_000, run=5_000, imports=5, steered=30, pause=5.0)
            case "tiny":
                peers = (("fan-out", 20), ("chain", 10))
                small: dict[str, Any] = {
                    "waiting": 100,
                    "steered": 2,
                    "pause": 0.1,
                    "flush_timeout": 0.5,
                    "many_rounds": 1,
                }
                return cls((10, 50), 1, 1, 50, 50, 1, peers, **small)
            case _:
                return cls()
