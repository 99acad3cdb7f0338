"""From a snapshot to the SDK's data classes. A slow import, which only the exporting thread makes."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from opentelemetry.sdk.metrics import Exemplar
from opentelemetry.sdk.metrics import export as sdk
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from cascade.connectors.otel.metrics import catalogue as m
from cascade.connectors.otel.metrics.aggregation import Example, Histogram, Snapshot
from cascade.connectors.otel.metrics.catalogue import Key, attributes_of
from cascade.connectors.otel.scope import SCOPE, scope_version

_CUMULATIVE = sdk.AggregationTemporality.CUMULATIVE
_TRACE_IDS, _SPAN_IDS, _TIMES = 2**128, 2**64, 2**64


@dataclass(frozen=True, slots=True)
class _Period:
    """What the points of a metric have in common."""

    start_ns: int
    end_ns: int
    temporality: sdk.AggregationTemporality


def metrics_data(snapshot: Snapshot, resource: Resource) -> sdk.MetricsData:
    """The export request's content, of the scope `cascade`."""
    scope = InstrumentationScope(SCOPE, scope_version())
    scoped = sdk.ScopeMetrics(scope=scope, metrics=_metrics(snapshot), schema_url="")
    return sdk.MetricsData([sdk.ResourceMetrics(resource=resource, scope_metrics=[scoped], schema_url="")])


def _metrics(snapshot: Snapshot) -> list[sdk.Metric]:
    whole = _period(snapshot, is_delta=False)
    of_cells = _period(snapshot, is_delta=snapshot.are_cells_delta)
    of_telemetry = _period(snapshot, is_delta=snapshot.is_telemetry_delta)
    points: dict[m.Metric, list[Any]] = defaultdict(list)
    for key, histogram in snapshot.cells.histograms.items():
        points[key[0]].append(_histogram_point(key, histogram, of_cells))
    for key, count in snapshot.cells.counts.items():
        points[key[0]].append(_point(key, count, of_cells))
    for key, count in snapshot.telemetry.items():
        points[key[0]].append(_point(key, count, of_telemetry))
    points[m.RUN_ACTIVE].append(_point((m.RUN_ACTIVE,), snapshot.active_runs, whole))
    points[m.TASK_ACTIVE].append(_point((m.TASK_ACTIVE,), snapshot.active_tasks, whole))
    is_of_telemetry = {m.TELEMETRY_SENT, m.TELEMETRY_LOST, m.TELEMETRY_RETRIED}.__contains__
    return [
        _metric(metric, points[metric], of_telemetry if is_of_telemetry(metric) else of_cells)
        for metric in m.DOCUMENTED
        if points[metric]
    ]


def _period(snapshot: Snapshot, *, is_delta: bool) -> _Period:
    if is_delta:
        return _Period(snapshot.start_ns, snapshot.end_ns, sdk.AggregationTemporality.DELTA)
    return _Period(snapshot.origin_ns, snapshot.end_ns, _CUMULATIVE)


def _metric(metric: m.Metric, points: Sequence[Any], period: _Period) -> sdk.Metric:
    data: sdk.Histogram | sdk.Sum
    match metric.kind:
        case "histogram":
            data = sdk.Histogram(points, period.temporality)
        case "counter":
            data = sdk.Sum(points, period.temporality, is_monotonic=True)
        case "up-down counter":
            data = sdk.Sum(points, _CUMULATIVE, is_monotonic=False)
    return sdk.Metric(metric.name, metric.meaning, metric.unit, data)


def _point(key: Key, value: int, period: _Period) -> sdk.NumberDataPoint:
    return sdk.NumberDataPoint(attributes_of(key), period.start_ns, period.end_ns, value)


def _histogram_point(key: Key, histogram: Histogram, period: _Period) -> sdk.HistogramDataPoint:
    return sdk.HistogramDataPoint(
        attributes=attributes_of(key),
        start_time_unix_nano=period.start_ns,
        time_unix_nano=period.end_ns,
        count=sum(histogram.counts),
        sum=histogram.total,
        bucket_counts=histogram.counts,
        explicit_bounds=m.BOUNDS,
        min=histogram.smallest,
        max=histogram.largest,
        exemplars=[exemplar for example in histogram.examples.values() if (exemplar := _exemplar(example))],
    )


def _exemplar(example: Example) -> Exemplar | None:
    """None if OTLP has no form for it: one that came with a message from elsewhere must not cost all the others."""
    value, time_ns, *ids = example
    try:
        trace_id, span_id = (int(one, 16) for one in ids)
    except ValueError:
        return None
    is_valid = 0 < trace_id < _TRACE_IDS and 0 < span_id < _SPAN_IDS and 0 <= time_ns < _TIMES
    return Exemplar({}, value, time_ns, span_id, trace_id) if is_valid else None
