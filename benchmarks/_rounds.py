"""The runs that `traced`, `burst` and `memory` evaluate. They are measured once, on first use."""

from dataclasses import dataclass
from functools import cache
from typing import Any

from benchmarks import _runs
from benchmarks._collector import PROTOCOLS, Collector
from benchmarks._process import call
from benchmarks._scale import Scale


@dataclass(frozen=True, slots=True)
class Round:
    """A traced run, the same with log lines, the same untraced, and the bare SDK with the same spans and a sufficient queue.

    `received` and `received_logged` are the collector's replies about the traced runs.
    """

    ours: dict[str, Any]
    received: dict[str, Any]
    logged: dict[str, Any]
    received_logged: dict[str, Any]
    untraced: dict[str, Any]
    bare: dict[str, Any]

    @property
    def task_spans(self) -> int:
        """Number of received task spans. Other spans are not counted: a split trace has additional ones."""
        return task_spans(self.received)

    @property
    def task_spans_logged(self) -> int:
        """Number of task spans of the run with log lines."""
        return task_spans(self.received_logged)


def task_spans(received: dict[str, Any]) -> int:
    """Return the number of task spans in a reply of the collector."""
    counts = received["counts"]
    return int(counts.get("noop", 0) + counts.get("last", 0))


@cache
def rounds(scale: Scale, label: str) -> list[Round]:
    """Measure the rounds, each run in its own process, with one collector."""
    with Collector() as collector:
        return [_round(collector, PROTOCOLS[label], scale.burst) for _ in range(scale.traced_rounds)]


def _round(collector: Collector, protocol: str, size: int) -> Round:
    where: dict[str, Any] = {"protocol": protocol, "endpoint": collector.endpoint(protocol)}
    ours = call(_runs.run, size=size, **where)
    received = collector.command("spans")
    logged = call(_runs.run, size=size, log_level=_runs.INFO, **where)
    received_logged = collector.command("spans")
    untraced = call(_runs.run, size=size)
    bare = call(_runs.emit, size=size, sample=received["samples"]["noop"], queue=_runs.sufficient_queue(size), **where)
    arrived = collector.command("count")
    if arrived != size + 1:
        raise RuntimeError(f"the bare SDK lost spans: {arrived} of {size + 1} arrived")
    return Round(ours, received, logged, received_logged, untraced, bare)
