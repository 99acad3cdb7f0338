"""Export of metrics to a receiver, and the received metrics."""

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any

from opentelemetry.sdk.resources import Resource

from cascade.connectors.otel.metrics import RunMetrics
from cascade.connectors.otel.metrics.export import MetricExporter
from cascade.connectors.otel.options import ExportOptions
from cascade.testing import OtlpReceiver
from tests.connectors.otel.metrics.messages import Payload
from tests.connectors.otel.tracing import Collector
from tests.lab.waiting import HANG

RESOURCE = Resource({"service.name": "tests"})


@contextlib.contextmanager
def exporting(endpoint: str, protocol: str = "http/protobuf", **environ: str) -> Iterator[RunMetrics]:
    options = ExportOptions.from_environment(endpoint=endpoint, protocol=protocol, signal="metrics", environ=environ)
    exporters: list[MetricExporter] = []

    def share(make: Callable[[], MetricExporter]) -> MetricExporter:
        exporters.append(make())
        return exporters[0]

    metrics = RunMetrics.for_endpoint(lambda: RESOURCE, options, share, environ)
    metrics.reserve(0)
    try:
        yield metrics
    finally:
        for exporter in exporters:
            exporter.start_exit()()


def flush(metrics: RunMetrics, timeout: float = HANG) -> None:
    metrics.start_flush(timeout)(math.inf)


def exported(collector: Collector, *payloads: Payload, **environ: str) -> dict[str, Any]:
    """Return the metrics that a receiver gets for these messages, by name."""
    collector.receiver.clear()
    with exporting(collector.endpoint, collector.protocol, **environ) as metrics:
        for payload in payloads:
            metrics.publish(payload)
        flush(metrics)
        return latest(collector.receiver)


def metrics_of(request: Any) -> dict[str, Any]:
    """Return the metrics of one request, by name."""
    (resource,) = request.resource_metrics
    (scope,) = resource.scope_metrics
    return {metric.name: metric for metric in scope.metrics}


def latest(receiver: OtlpReceiver) -> dict[str, Any]:
    return metrics_of(receiver.metrics[-1])


def points(metric: Any) -> list[Any]:
    """Return the data points of a metric of any kind."""
    return list(getattr(metric, metric.WhichOneof("data")).data_points)


def values(metric: Any) -> dict[tuple[Any, ...], int]:
    """Return the count of histogram points and the value of other points, by the values of their attributes."""
    is_histogram = metric.WhichOneof("data") == "histogram"
    return {
        tuple(attributes(point).values()): point.count if is_histogram else point.as_int for point in points(metric)
    }


def attributes(point: Any) -> dict[str, Any]:
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in point.attributes}
