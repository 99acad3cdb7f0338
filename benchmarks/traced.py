"""A traced run until its last span is acknowledged, against the bare SDK with the same spans and no loss."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks import _runs
from benchmarks._collector import PROTOCOLS, Collector
from benchmarks._measure import Figure, Goal, Row, amount, spread, versus
from benchmarks._process import call
from benchmarks._rounds import Round, rounds
from benchmarks._scale import Scale

RATE_GOAL = Goal(1.5, is_floor=True)
DEFAULTS_GOAL = Goal(1.0, is_floor=True)
CALLER_GOAL = Goal(0.7)


def rows(scale: Scale) -> Iterator[Row]:
    size = scale.burst
    for label in PROTOCOLS:
        found = rounds(scale, label)
        rates = [(size / one.ours["total"], size / one.bare["total"]) for one in found]
        yield versus(f"traced run, {label}, {size:,}, until acknowledged", rates, "spans/s", RATE_GOAL)
        logged = [(size / one.logged["total"], size / one.bare["total"]) for one in found]
        what = f"the same with all defaults, log lines on a pipe included, {label}, {size:,}"
        yield versus(what, logged, "spans/s", DEFAULTS_GOAL)
        callers = [((one.ours["tasks"] - one.untraced["tasks"]) / size, one.bare["tasks"] / size) for one in found]
        yield versus(f"telemetry's cost for the caller, {label}, per task", callers, "µs", CALLER_GOAL, scale=1e6)
        yield _completeness(label, size, found)


def figures(scale: Scale, tree: Path | None) -> Iterator[Figure]:
    """Yield the rates and the cost for the caller of the revision in `tree`."""
    size = scale.burst
    for label, protocol in PROTOCOLS.items():
        with Collector() as collector:
            where: dict[str, Any] = {"size": size, "protocol": protocol, "endpoint": collector.endpoint(protocol)}
            quiet = call(_runs.run, tree=tree, **where)
            logged = call(_runs.run, tree=tree, log_level=_runs.INFO, **where)
        yield Figure(
            f"traced run, {label}, {size:,}, until acknowledged", size / quiet["total"], "spans/s", is_rate=True
        )
        what = f"the same with all defaults, {label}, {size:,}"
        yield Figure(what, size / logged["total"], "spans/s", is_rate=True)
        yield Figure(f"traced run, {label}, {size:,}, until the last task, per task", quiet["tasks"] / size, "µs", 1e6)


def _completeness(label: str, size: int, found: list[Round]) -> Row:
    tasks = [float(min(one.task_spans, one.task_spans_logged)) for one in found]
    orphans = [float(one.received["orphans"] + one.received_logged["orphans"]) for one in found]
    return Row(
        f"task spans received, {label}, and orphans",
        f"{amount(tasks, 'spans')}, {amount(orphans, 'orphans')}",
        f"{size:,} tasks",
        spread([count / size for count in tasks]),
        "all, no orphan",
        all(count == size for count in tasks) and not any(orphans),
    )
