"""From a control message to its effect, through a real broker, with many tasks that wait; and what a pause costs."""

from collections.abc import Iterator

from benchmarks import _flood, _steering
from benchmarks._measure import Row, amount
from benchmarks._process import call
from benchmarks._scale import Scale
from cascade.testing import MosquittoProcess

LONGEST_STOP = 0.5
"""Seconds for which a flood may keep the event loop from everything else."""
WITHIN = 0.05
"""Seconds to the effect, at the 99th percentile; and of CPU in a minute's pause."""


def rows(scale: Scale) -> Iterator[Row]:
    with MosquittoProcess() as broker:
        found = [
            call(_steering.latency, port=broker.port, waiting=scale.waiting, times=scale.steered)
            for _ in range(scale.traced_rounds)
        ]
        for kind, effect in (("clear", "the first start"), ("pause", "the last start")):
            seconds = [one[kind] for one in found]
            what = f"control, {kind} to {effect}, {scale.waiting:,} tasks waiting, 99th percentile"
            yield Row(what, amount(seconds, "ms", 1e3), "", "", f"≤ {WITHIN * 1e3:g} ms", max(seconds) <= WITHIN)
        used = [call(_steering.standing_still, port=broker.port, waiting=scale.waiting, seconds=scale.pause)]
        what = f"control, CPU of a minute's pause, {scale.waiting:,} tasks waiting"
        yield Row(what, amount(used, "ms", 1e3), "", "", f"≤ {WITHIN * 1e3:g} ms", max(used) <= WITHIN)
        stops = [call(_flood.longest_stop, port=broker.port, count=scale.run) for _ in range(scale.traced_rounds)]
        what = f"control, flood of {scale.run:,} messages: longest stop of the event loop"
        goal = f"≤ {LONGEST_STOP * 1e3:g} ms"
        yield Row(what, amount(stops, "ms", 1e3), "", "", goal, max(stops) <= LONGEST_STOP)
