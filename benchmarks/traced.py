"""A traced run until its last span is acknowledged, against the bare SDK with the same spans and no loss."""

from collections.abc import Iterator

from benchmarks._collector import PROTOCOLS
from benchmarks._measure import Goal, Row, amount, spread, versus
from benchmarks._rounds import Round, rounds
from benchmarks._scale import Scale

RATE_GOAL = Goal(1.0, is_floor=True)
CALLER_GOAL = Goal(1.0)


def rows(scale: Scale) -> Iterator[Row]:
    size = scale.burst
    for label in PROTOCOLS:
        found = rounds(scale, label)
        rates = [(size / one.ours["total"], size / one.bare["total"]) for one in found]
        yield versus(f"traced run, {label}, {size:,}, until acknowledged", rates, "spans/s", RATE_GOAL)
        callers = [((one.ours["tasks"] - one.untraced["tasks"]) / size, one.bare["tasks"] / size) for one in found]
        yield versus(f"telemetry's cost for the caller, {label}, per task", callers, "µs", CALLER_GOAL, scale=1e6)
        yield _completeness(label, size, found)


def _completeness(label: str, size: int, found: list[Round]) -> Row:
    tasks = [float(one.task_spans) for one in found]
    orphans = [float(one.received["orphans"]) for one in found]
    return Row(
        f"task spans received, {label}, and orphans",
        f"{amount(tasks, 'spans')}, {amount(orphans, 'orphans')}",
        f"{size:,} tasks",
        spread([count / size for count in tasks]),
        "all, no orphan",
        all(count == size for count in tasks) and not any(orphans),
    )
