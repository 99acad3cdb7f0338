"""Conversion of a snapshot to the data classes of the SDK, which encodes and prints them.

The imports are slow. Only the exporting thread imports this module.
"""

import sys
from collections import defaultdict
from typing import Any

from opentelemetry.exporter.otlp.proto.common.metrics_encoder import encode_metrics
from opentelemetry.sdk.metrics import Exemplar as SdkExemplar
from opentelemetry.sdk.metrics import export as sdk
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from cascade._internal_errors import raise_in_tests
from cascade._loggers import get_logger
from cascade.connectors.otel.encode import SCOPE, VERSION
from cascade.connectors.otel.metrics import catalogue as m
from cascade.connectors.otel.metrics.aggregation import Exemplar, Histogram, Snapshot
from cascade.connectors.otel.metrics.catalogue import Key, attributes_of

logger = get_logger("cascade.connectors.otel")

_CUMULATIVE, _DELTA = sdk.AggregationTemporality.CUMULATIVE, sdk.AggregationTemporality.DELTA
_TRACE_IDS, _SPAN_IDS, _TIMES = 2**128, 2**64, 2**64


def metrics_data(snapshot: Snapshot, resource: Resource) -> sdk.MetricsData:
    """Return the content of an export request, in the scope `cascade`."""
    points: dict[m.Metric, list[Any]] = defaultdict(list)
    for key, histogram in snapshot.aggregation.histograms.items():
        points[key[0]].append(_histogram_point(key, histogram, snapshot))
    active = {(m.RUN_ACTIVE,): snapshot.active_runs, (m.TASK_ACTIVE,): snapshot.active_tasks}
    for key, value in (*snapshot.aggregation.counts.items(), *snapshot.telemetry.items(), *active.items()):
        start_ns = _start_ns(key[0], snapshot)
        points[key[0]].append(sdk.NumberDataPoint(attributes_of(key), start_ns, snapshot.end_ns, value))
    found = [_metric(metric, points[metric], snapshot) for metric in m.METRICS if points[metric]]
    scoped = sdk.ScopeMetrics(InstrumentationScope(SCOPE, VERSION), found, schema_url="")
    return sdk.MetricsData([sdk.ResourceMetrics(resource, [scoped], schema_url="")])


def encode(data: sdk.MetricsData) -> bytes:
    """Return an encoded `ExportMetricsServiceRequest`."""
    return encode_metrics(data).SerializeToString()


def print_json(data: sdk.MetricsData) -> None:
    """Print to standard output, which may be closed."""
    try:
        sdk.ConsoleMetricExporter(out=sys.stdout).export(data)
    except Exception as error:
        raise_in_tests(error)
        logger.debug("OtelConnector: metrics cannot be printed", exc_info=True)


def _is_delta(metric: m.Metric, snapshot: Snapshot) -> bool:
    if metric.kind == "up-down counter":
        return False
    return snapshot.is_telemetry_delta if metric in m.TELEMETRY else snapshot.is_delta


def _start_ns(metric: m.Metric, snapshot: Snapshot) -> int:
    return snapshot.start_ns if _is_delta(metric, snapshot) else snapshot.origin_ns


def _metric(metric: m.Metric, points: list[Any], snapshot: Snapshot) -> sdk.Metric:
    temporality = _DELTA if _is_delta(metric, snapshot) else _CUMULATIVE
    data: sdk.Histogram | sdk.Sum
    if metric.kind == "histogram":
        data = sdk.Histogram(points, temporality)
    else:
        data = sdk.Sum(points, temporality, is_monotonic=metric.kind == "counter")
    return sdk.Metric(metric.name, metric.description, metric.unit, data)


def _histogram_point(key: Key, histogram: Histogram, snapshot: Snapshot) -> sdk.HistogramDataPoint:
    return sdk.HistogramDataPoint(
        attributes=attributes_of(key),
        start_time_unix_nano=_start_ns(key[0], snapshot),
        time_unix_nano=snapshot.end_ns,
        count=sum(histogram.counts),
        sum=histogram.total,
        bucket_counts=histogram.counts,
        explicit_bounds=m.BOUNDS,
        min=histogram.minimum,
        max=histogram.maximum,
        exemplars=[one for exemplar in histogram.exemplars.values() if (one := _exemplar(exemplar))],
    )


def _exemplar(exemplar: Exemplar) -> SdkExemplar | None:
    """Return None for values that OTLP cannot encode, which a received message may have. They must not stop the export."""
    value, time_ns, *ids = exemplar
    try:
        trace_id, span_id = (int(one, 16) for one in ids)
    except ValueError:
        return None
    is_valid = 0 < trace_id < _TRACE_IDS and 0 < span_id < _SPAN_IDS and 0 <= time_ns < _TIMES
    return SdkExemplar({}, value, time_ns, span_id, trace_id) if is_valid else None
