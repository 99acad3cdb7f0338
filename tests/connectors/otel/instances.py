"""Received telemetry of each process, by `service.instance.id`."""

from collections import Counter
from typing import Any

from cascade.testing import OtlpReceiver


def spans_by_instance(receiver: OtlpReceiver, name: str) -> Counter[str]:
    return Counter(span.resource["service.instance.id"] for span in receiver.spans if span.name == name)


def runs_by_instance(receiver: OtlpReceiver) -> Counter[str]:
    """Return the number of runs, from the latest value of the cumulative series of each process."""
    latest: dict[str, int] = {}
    for request in receiver.metrics:
        for resource_metrics in request.resource_metrics:
            metrics = [metric for scope in resource_metrics.scope_metrics for metric in scope.metrics]
            for metric in metrics:
                if metric.name == "cascade.run.duration":
                    points = metric.histogram.data_points
                    latest[_instance(resource_metrics.resource)] = sum(point.count for point in points)
    return Counter(latest)


def logs_by_instance(receiver: OtlpReceiver) -> Counter[str]:
    counts: Counter[str] = Counter()
    for request in receiver.logs:
        for resource_logs in request.resource_logs:
            records = sum(len(scope.log_records) for scope in resource_logs.scope_logs)
            counts[_instance(resource_logs.resource)] += records
    return counts


def _instance(resource: Any) -> str:
    (found,) = (one.value.string_value for one in resource.attributes if one.key == "service.instance.id")
    return str(found)
