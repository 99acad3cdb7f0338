"""The metrics, their attributes and their buckets. `docs/metrics.md` lists them."""

from dataclasses import dataclass
from typing import Any, Literal

from cascade.telemetry import attributes as a
from cascade.telemetry.limits import MAX_VALUE_BYTES, truncate

BOUNDS = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0),
)
"""Upper bounds of the histogram buckets in seconds. A task may take a millisecond or an hour."""


@dataclass(frozen=True, slots=True, eq=False)
class Metric:
    """One metric. It is hashed by identity, because each measurement looks up a key that contains it."""

    name: str
    kind: Literal["histogram", "counter", "up-down counter"]
    unit: str
    description: str
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

TELEMETRY = (TELEMETRY_SENT, TELEMETRY_LOST, TELEMETRY_RETRIED)
METRICS = (
    RUN_DURATION,
    TASK_DURATION,
    RUN_ACTIVE,
    TASK_ACTIVE,
    TASK_WAIT,
    TASK_RETRIES,
    TASK_SKIPS,
    CACHE_HITS,
    *TELEMETRY,
)

Key = tuple[Any, ...]
"""A metric and the values of its attributes, in the order of the attributes. The overflow key is the metric alone."""


def attributes_of(key: Key) -> dict[str, Any]:
    """Return the attributes of a key. An overflow key has the one that OpenTelemetry specifies, `otel.metric.overflow`."""
    metric, *values = key
    if metric.attributes and not values:
        return {a.METRIC_OVERFLOW: True}
    pairs = zip(metric.attributes, values, strict=True)
    return {name: truncate(str(value), MAX_VALUE_BYTES) for name, value in pairs if value is not None}
