"""From a control message to its effect, through a real broker, while many tasks wait; the cost of a pause and of constraints."""

from collections.abc import Iterator
from pathlib import Path

from benchmarks import _constraints, _flood, _steering
from benchmarks._measure import Row, amount, versus
from benchmarks._process import call
from benchmarks._scale import Scale
from tests.lab.mosquitto import MosquittoProcess

LONGEST_STOP = 0.5
"""Seconds for which a flood may block the event loop."""
WITHIN = 0.05
"""Seconds to the effect, at the 99th percentile of each run; and seconds of CPU in a minute's pause."""
EACH = 20e-6
"""Seconds by which a constraint for another task may delay a run: 2 s for 100,000."""
EFFECTS = {"clear": "the first start", "pause": "the last start"}


def rows(scale: Scale) -> Iterator[Row]:
    with MosquittoProcess() as broker:
        yield from _latencies(scale, broker.port)
        used = [call(_steering.standing_still, port=broker.port, waiting=scale.waiting, seconds=scale.pause)]
        what = f"control, CPU of a minute's pause, {scale.waiting:,} tasks waiting"
        yield Row(what, amount(used, "ms", 1e3), "", "", f"≤ {WITHIN * 1e3:g} ms", max(used) <= WITHIN)
        stops = [call(_flood.longest_stop, port=broker.port, count=scale.run) for _ in range(scale.traced_rounds)]
        what = f"control, flood of {scale.run:,} messages: longest stop of the event loop"
        goal = f"≤ {LONGEST_STOP * 1e3:g} ms"
        yield Row(what, amount(stops, "ms", 1e3), "", "", goal, max(stops) <= LONGEST_STOP)
    delays = [call(_constraints.delay, count=scale.burst) for _ in range(scale.traced_rounds)]
    what = f"control, {scale.burst:,} constraints for other tasks: delay of the first task, per constraint"
    yield Row(what, amount(delays, "µs", 1e6), "", "", f"≤ {EACH * 1e6:g} µs", max(delays) <= EACH)


def _latencies(scale: Scale, port: int) -> Iterator[Row]:
    """99th percentiles of each run, of this source tree and of another revision in turn."""

    def percentiles(tree: Path | None) -> dict[str, float]:
        found: dict[str, float] = call(
            _steering.latency, tree=tree, port=port, waiting=scale.waiting, times=scale.steered
        )
        return found

    ours, theirs = list[dict[str, float]](), list[dict[str, float]]()
    for _ in range(scale.many_rounds):
        ours.append(percentiles(None))
        if scale.against is not None:
            theirs.append(percentiles(scale.against))
    for kind, effect in EFFECTS.items():
        what = f"control, {kind} to {effect}, {scale.waiting:,} tasks waiting, 99th percentile of a run"
        yield _within(what, [one[kind] for one in ours])
        if scale.against is not None:
            pairs = [(one[kind], other[kind]) for one, other in zip(ours, theirs, strict=True)]
            yield versus(f"{what}, against {scale.against.name}", pairs, "ms", scale=1e3)


def _within(what: str, seconds: list[float]) -> Row:
    reached = sum(one <= WITHIN for one in seconds)
    goal = f"≤ {WITHIN * 1e3:g} ms in {len(seconds)} of {len(seconds)} runs"
    return Row(what, amount(seconds, "ms", 1e3), "", f"{reached} runs", goal, reached == len(seconds))
