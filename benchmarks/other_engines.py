"""Other installed engines on the same graph: no-op tasks in one process, without telemetry."""

from collections.abc import Iterator
from importlib.metadata import version
from importlib.util import find_spec

import cascade as cs
from benchmarks import _graphs
from benchmarks._measure import Pair, Row, interleaved, timed, versus
from benchmarks._other_engines import ENGINES, PACKAGES
from benchmarks._process import call
from benchmarks._scale import Scale


def measure(engine: str, shape: str, size: int, rounds: int) -> list[Pair]:
    """Seconds per task of Cascade and of the other engine, after a run of each that is not counted."""
    graph = _graphs.SHAPES[shape](size)
    run_other, target = ENGINES[engine](graph), _graphs.workflow(graph)

    def subject() -> float:
        return timed(lambda: cs.run(target, log_level="ERROR")) / size

    def baseline() -> float:
        return timed(run_other) / size

    interleaved(subject, baseline, 1)
    return interleaved(subject, baseline, rounds)


def rows(scale: Scale) -> Iterator[Row]:
    installed = [engine for engine in ENGINES if find_spec(engine)]
    for engine in installed:
        name = f"{engine} {version(PACKAGES.get(engine, engine))}"
        for shape, size in scale.other_engines:
            pairs = call(measure, engine=engine, shape=shape, size=size, rounds=scale.traced_rounds)
            yield versus(f"{shape} of {size:,}, against {name}, per task", pairs, "µs", scale=1e6)
    if missing := [engine for engine in ENGINES if engine not in installed]:
        yield Row(f"other engines that are not installed: {', '.join(missing)}", "", "")
