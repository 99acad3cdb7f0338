"""The traced runs, which traced, burst and memory look at from three sides: made once, when first asked for."""

from dataclasses import dataclass
from functools import cache
from typing import Any

from benchmarks import _runs
from benchmarks._collector import PROTOCOLS, Collector
from benchmarks._process import call
from benchmarks._scale import Scale


@dataclass(frozen=True, slots=True)
class Round:
    """One traced run, the same untraced, and the bare SDK, with a queue large enough, emitting the same spans.

    `received` is what the collector has of the traced run.
    """

    ours: dict[str, Any]
    received: dict[str, Any]
    untraced: dict[str, Any]
    bare: dict[str, Any]

    @property
    def task_spans(self) -> int:
        """How many have arrived. Other spans do not count: a trace that was split has more of them than a run has."""
        counts = self.received["counts"]
        return int(counts.get("noop", 0) + counts.get("last", 0))


@cache
def rounds(scale: Scale, label: str) -> list[Round]:
    """Each in processes of its own, one after the other, and all with the same collector."""
    with Collector() as collector:
        return [_round(collector, PROTOCOLS[label], scale.burst) for _ in range(scale.traced_rounds)]


def _round(collector: Collector, protocol: str, size: int) -> Round:
    where: dict[str, Any] = {"protocol": protocol, "endpoint": collector.endpoint(protocol)}
    ours = call(_runs.run, size=size, **where)
    received = collector.say("spans")
    untraced = call(_runs.run, size=size)
    bare = call(_runs.emit, size=size, sample=received["samples"]["noop"], queue=_runs.ample(size), **where)
    arrived = collector.say("count")
    if arrived != size + 1:
        raise RuntimeError(f"the bare SDK has lost spans: {arrived} of {size + 1} have arrived")
    return Round(ours, received, untraced, bare)
