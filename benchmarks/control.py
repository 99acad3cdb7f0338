"""Latency of control messages through a real broker with many blocked tasks, and the cost of pauses and constraints."""

from collections.abc import Iterator
from pathlib import Path

from benchmarks import _control
from benchmarks._measure import Figure, Row, amount
from benchmarks._process import call
from benchmarks._scale import Scale
from tests.lab.mosquitto import MosquittoProcess

MAX_BLOCK = 0.5
"""Seconds for which a flood may block the event loop."""
MAX_LATENCY = 0.05
"""Seconds to the effect, at the 99th percentile of each run."""
MAX_CPU = 0.05
"""CPU seconds of a paused run per minute."""
MAX_DELAY = 20e-6
"""Seconds by which a constraint for another task may delay a run: 2 s for 100,000."""
EFFECTS = {"clear": "the first start", "pause": "the last start"}


def rows(scale: Scale) -> Iterator[Row]:
    with MosquittoProcess() as broker:
        yield from _latencies(scale, broker.port)
        cpu = call(_control.paused_cpu, port=broker.port, waiting=scale.waiting, seconds=scale.pause)
        yield _limited(f"CPU of a minute's pause, {scale.waiting:,} tasks waiting", [cpu], "ms", 1e3, MAX_CPU)
        blocks = [call(_control.longest_block, port=broker.port, count=scale.run) for _ in range(scale.traced_rounds)]
        yield _limited(
            f"flood of {scale.run:,} messages: longest block of the event loop", blocks, "ms", 1e3, MAX_BLOCK
        )
    delays = [call(_control.constraint_delay, count=scale.burst) for _ in range(scale.traced_rounds)]
    what = f"{scale.burst:,} constraints for other tasks: delay of the first task, per constraint"
    yield _limited(what, delays, "µs", 1e6, MAX_DELAY)


def _limited(what: str, seconds: list[float], unit: str, scale: float, limit: float) -> Row:
    goal = f"≤ {limit * scale:g} {unit}"
    return Row(f"control, {what}", amount(seconds, unit, scale), "", "", goal, max(seconds) <= limit)


def figures(scale: Scale, tree: Path | None) -> Iterator[Figure]:
    """Yield the latencies of the revision in `tree`."""
    with MosquittoProcess() as broker:
        found = _percentiles(scale, broker.port, tree)
    for kind, effect in EFFECTS.items():
        what = f"control, {kind} to {effect}, {scale.waiting:,} tasks waiting, 99th percentile of a run"
        yield Figure(what, found[kind], "ms", 1e3)


def _percentiles(scale: Scale, port: int, tree: Path | None = None) -> dict[str, float]:
    found: dict[str, float] = call(
        _control.latencies, tree=tree, port=port, waiting=scale.waiting, times=scale.control_messages
    )
    return found


def _latencies(scale: Scale, port: int) -> Iterator[Row]:
    found = [_percentiles(scale, port) for _ in range(scale.many_rounds)]
    for kind, effect in EFFECTS.items():
        what = f"control, {kind} to {effect}, {scale.waiting:,} tasks waiting, 99th percentile of a run"
        yield _latency(what, [one[kind] for one in found])


def _latency(what: str, seconds: list[float]) -> Row:
    reached = sum(one <= MAX_LATENCY for one in seconds)
    goal = f"≤ {MAX_LATENCY * 1e3:g} ms in {len(seconds)} of {len(seconds)} runs"
    return Row(what, amount(seconds, "ms", 1e3), "", f"{reached} runs", goal, reached == len(seconds))
