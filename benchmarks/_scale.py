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
    """

    sizes: tuple[int, ...] = (1_000, 10_000, 100_000)
    rounds: int = 3
    traced_rounds: int = 2
    burst: int = 100_000
    run: int = 20_000
    imports: int = 15
    peers: tuple[tuple[str, int], ...] = (("fan-out", 1_000), ("chain", 200))

    @classmethod
    def of(cls, name: str) -> "Scale":
        """`full`, `quick`, or `tiny`, which only shows that all of it works."""
        match name:
            case "quick":
                return cls((1_000, 10_000), burst=20_000, run=5_000, imports=5)
            case "tiny":
                return cls((10, 50), 1, 1, burst=50, run=50, imports=1, peers=(("fan-out", 20), ("chain", 10)))
            case _:
                return cls()
