"""The metrics by name; the table of `docs/metrics.md` is made of them."""

from dataclasses import dataclass
from typing import Literal

from cascade.telemetry import attributes as a

BOUNDS = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0),
)
"""Seconds, upper bounds of the histograms' buckets: a task may take a millisecond or an hour."""


@dataclass(frozen=True, slots=True, eq=False)
class Metric:
    """One row of the table. Equal only to itself: it is half of every key that is looked up for a measurement."""

    name: str
    kind: Literal["histogram", "counter", "up-down counter"]
    unit: str
    meaning: str
    attributes: tuple[str, ...] = ()


RUN_DURATION = Metric(
    "cascade.run.duration", "histogram", "s", "duration of a run that has ended", (a.RUN_TARGET, a.RUN_RESULT)
)
TASK_DURATION = Metric(
    "cascade.task.duration",
    "histogram",
    "s",
    "duration of a task or of a map's item, retries included",
    (a.TASK_NAME, a.TASK_RESULT, a.ERROR_TYPE),
)
RUN_ACTIVE = Metric("cascade.run.active", "up-down counter", "{run}", "runs that have started and not ended")
TASK_ACTIVE = Metric("cascade.task.active", "up-down counter", "{task}", "calls of tasks' code in progress")
TASK_WAIT = Metric(
    "cascade.task.wait.duration",
    "histogram",
    "s",
    "duration of a wait of a task, counted when the task has ended",
    (a.WAIT_REASON,),
)
TASK_RETRIES = Metric("cascade.task.retries", "counter", "{retry}", "retries", (a.TASK_NAME,))
TASK_SKIPS = Metric(
    "cascade.task.skips",
    "counter",
    "{task}",
    "skipped tasks; a skipped map counts as one",
    (a.TASK_NAME, a.TASK_SKIP_REASON),
)
CACHE_HITS = Metric("cascade.task.cache.hits", "counter", "{hit}", "tasks whose result was cached", (a.TASK_NAME,))
TELEMETRY_SENT = Metric(
    "cascade.telemetry.sent", "counter", "{span}", "spans that the collector has accepted", (a.TELEMETRY_SIGNAL,)
)
TELEMETRY_LOST = Metric("cascade.telemetry.lost", "counter", "{span}", "spans that were lost", (a.TELEMETRY_SIGNAL,))
TELEMETRY_RETRIED = Metric(
    "cascade.telemetry.retried",
    "counter",
    "{span}",
    "spans that needed more than one request",
    (a.TELEMETRY_SIGNAL,),
)

DOCUMENTED = (
    RUN_DURATION,
    TASK_DURATION,
    RUN_ACTIVE,
    TASK_ACTIVE,
    TASK_WAIT,
    TASK_RETRIES,
    TASK_SKIPS,
    CACHE_HITS,
    TELEMETRY_SENT,
    TELEMETRY_LOST,
    TELEMETRY_RETRIED,
)


def as_markdown() -> str:
    """The table of `docs/metrics.md`."""
    rows = (f"| `{m.name}` | {m.kind} | `{m.unit}` | {_listed(m.attributes)} | {m.meaning} |" for m in DOCUMENTED)
    return "\n".join(["| metric | type | unit | attributes | meaning |", "|---|---|---|---|---|", *rows])


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(f"`{name}`" for name in names)
