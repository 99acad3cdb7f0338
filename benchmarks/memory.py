"""Resident memory of fresh processes: a traced run against an untraced one, a large graph, and a large map."""

from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import _memory, _runs
from benchmarks._collector import PROTOCOLS, Collector
from benchmarks._measure import MEMORY, Figure, Goal, Pair, Row, absolute, amount
from benchmarks._process import call
from benchmarks._rounds import rounds
from benchmarks._scale import Scale

GOAL = 64.0  # MiB
PLAN_GOAL = Goal(292, unit=" bytes")
NODE_GOAL = Goal(545, unit=" bytes")
"""Half of the 584 and 1,091 bytes per node that Python 3.11 needed before the nodes had one record each."""
MEBI = 1 << 20
CONNECTOR = "cascade.connectors.otel"


def rows(scale: Scale) -> Iterator[Row]:
    for label in PROTOCOLS:
        pairs = [(one.ours["rss"], one.untraced["rss"]) for one in rounds(scale, label)]
        yield _difference(f"peak memory, traced over {label} against untraced, {scale.burst:,}", pairs, GOAL)
        each = [_per(one.ours, scale.burst) for one in rounds(scale, label)]
        yield absolute(f"memory of a traced run over {label}, {scale.burst:,} tasks, per task", each, "bytes")
    imported = [(call(_runs.idle, imports=CONNECTOR), call(_runs.idle)) for _ in range(scale.traced_rounds)]
    yield _difference("share of importing the connector", imported)

    found = [_footprints(scale) for _ in range(scale.traced_rounds)]
    for what, goal in _footprint_names(scale).items():
        yield absolute(what, [one[what] for one in found], "bytes", goal)


def figures(scale: Scale, tree: Path | None) -> Iterator[Figure]:
    """Yield the memory of the revision in `tree`."""
    for what, value in _footprints(scale, tree).items():
        yield Figure(what, value, "bytes", words=MEMORY)
    with Collector() as collector:
        for label, protocol in PROTOCOLS.items():
            where: dict[str, Any] = {"protocol": protocol, "endpoint": collector.endpoint(protocol)}
            used = _per(call(_runs.run, tree=tree, size=scale.burst, **where), scale.burst)
            what = f"memory of a traced run over {label}, {scale.burst:,} tasks, per task"
            yield Figure(what, used, "bytes", words=MEMORY)


def _footprint_names(scale: Scale) -> dict[str, Goal | None]:
    """Return the rows of the footprints, in the order of `_footprints`."""
    nodes, items = f"{scale.nodes:,} graph nodes", f"{scale.items:,} map items"
    return {
        f"memory of {nodes}, lazy results, per node": None,
        f"memory of {nodes}, graph and plan, per node": PLAN_GOAL,
        f"memory of {nodes}, peak of the run, per node": NODE_GOAL,
        f"memory of {items}, queued, per item": None,
        f"memory of {items}, peak of the run, per item": None,
    }


def _footprints(scale: Scale, tree: Path | None = None) -> dict[str, float]:
    """Return the bytes per node and per item."""
    nodes = [*call(_memory.planned, tree=tree, count=scale.nodes), call(_memory.run, tree=tree, count=scale.nodes)]
    values = [value / scale.nodes for value in nodes]
    values += [value / scale.items for value in call(_memory.mapped, tree=tree, count=scale.items)]
    return dict(zip(_footprint_names(scale), values, strict=True))


def _per(run: dict[str, float], size: int) -> float:
    """Return the bytes per task by which a run raises the memory of its process."""
    return (run["rss"] - run["before"]) * MEBI / size


def _difference(what: str, pairs: list[Pair], goal: float | None = None) -> Row:
    more = [ours - theirs for ours, theirs in pairs]
    return Row(
        what,
        f"{median(ours for ours, _ in pairs):.0f} MiB",
        f"{median(theirs for _, theirs in pairs):.0f} MiB",
        f"{amount(more, 'MiB')} more",
        f"≤ {goal:g} MiB more" if goal else "",
        median(more) <= goal if goal else None,
    )
