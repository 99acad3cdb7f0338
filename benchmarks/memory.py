"""Peak memory of a traced run against the same run untraced, each in its own process."""

from collections.abc import Iterator
from statistics import median

from benchmarks import _runs
from benchmarks._collector import PROTOCOLS
from benchmarks._measure import Pair, Row, amount
from benchmarks._process import call
from benchmarks._rounds import rounds
from benchmarks._scale import Scale

GOAL = 64.0  # MiB
CONNECTOR = "cascade.connectors.otel"


def rows(scale: Scale) -> Iterator[Row]:
    for label in PROTOCOLS:
        pairs = [(one.ours["rss"], one.untraced["rss"]) for one in rounds(scale, label)]
        yield _difference(f"peak memory, traced over {label} against untraced, {scale.burst:,}", pairs, GOAL)
    imported = [(call(_runs.idle, imports=CONNECTOR), call(_runs.idle)) for _ in range(scale.traced_rounds)]
    yield _difference("share of importing the connector", imported)


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
