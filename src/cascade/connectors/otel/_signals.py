"""The metrics and the logs of a connector: by default metrics are exported, and logs are not."""

import os
import time
from collections.abc import Callable, Hashable
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from cascade._loggers import get_logger
from cascade.connectors.otel._environment import Problem, report
from cascade.connectors.otel._options import ExportOptions, Signal
from cascade.connectors.otel._outbox import Outbox
from cascade.connectors.otel._sharing import Registry, Share, destination
from cascade.connectors.otel.provider import Tracing
from cascade.telemetry import attributes as a
from cascade.telemetry.safe import error_text

if TYPE_CHECKING:
    from cascade.connectors.otel.logs import RunLogs
    from cascade.connectors.otel.metrics import RunMetrics
    from cascade.connectors.otel.metrics.export import MetricExporter

logger = get_logger("cascade.connectors.otel")

T = TypeVar("T")

_log_outboxes: Registry[Outbox] = Registry(lambda outbox: outbox.retire())
_metric_exporters: "Registry[MetricExporter]" = Registry(lambda exporter: exporter.retire())


_NAMES_OF_COLLECTORS = (
    "OTEL_EXPORTER_OTLP_ENDPOINT",
    "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT",
    "OTEL_METRICS_EXPORTER",
)


class Signals:
    """The metrics and the logs of one connector.

    Args:
        tracing: Where its spans go; None if the SDK is disabled.
        exporting: Its arguments on where to export, as `ExportOptions.from_environment` takes them.
        metrics: Whether there are metrics.
        logs: As `chosen_level` takes it.
    """

    def __init__(
        self, tracing: Tracing | None, exporting: dict[str, Any], *, metrics: bool, logs: bool | str | None
    ) -> None:
        self.metrics = _metrics(tracing, exporting, is_wanted=metrics)
        self._logs = _logs(tracing, exporting, logs)

    def reserve(self, exit_timeout: float) -> None:
        """Register as a user of the shared exports, which the process's exit flushes for `exit_timeout` seconds."""
        self.metrics.reserve(exit_timeout)
        if self._logs is not None:
            self._logs.reserve(exit_timeout)

    def start_run(self, run_id: str) -> None:
        if self._logs is not None:
            self._logs.attach(run_id)

    def end_run(self, run_id: str) -> None:
        self.metrics.gauges.end_run(run_id)
        if self._logs is not None:
            self._logs.detach(run_id)

    def start_flush(self, timeout: float) -> Callable[[float], str]:
        """Begin to flush the logs. The returned function exports the metrics, which count the spans sent until then.

        It waits for both, at most `timeout` seconds from now or until its argument, a time of `time.monotonic`. It
        returns a warning about undelivered log records, or an empty text.
        """
        end = time.monotonic() + timeout
        wait_for_logs = self._logs.start_flush(timeout) if self._logs is not None else None

        def wait(limit: float) -> str:
            self.metrics.start_flush(max(0.0, end - time.monotonic()))(limit)
            return wait_for_logs(limit) if wait_for_logs is not None else ""

        return wait


def check_logs(exporting: dict[str, Any], logs: bool | str | None) -> None:
    """Check the `logs` argument of a connector.

    Raises:
        ValueError: `logs` is no level, or the `endpoint` argument is the URL of another signal.
    """
    from cascade.connectors.otel.logs import chosen_level

    if (
        logs is not None
        and chosen_level(logs) is not None
        and exporting["endpoint"]
        and not _options(exporting, "logs")
    ):
        raise ValueError(_no_endpoint_for_logs(exporting))


def _no_endpoint_for_logs(exporting: dict[str, Any]) -> str:
    return (
        f"logs: endpoint={exporting['endpoint']!r} is the complete URL of the traces; use an endpoint without a path, "
        "or OTEL_EXPORTER_OTLP_LOGS_ENDPOINT and no endpoint argument"
    )


def _metrics(tracing: Tracing | None, exporting: dict[str, Any], *, is_wanted: bool) -> "RunMetrics":
    from cascade.connectors.otel.metrics import RunMetrics, application_provider

    if tracing is None or not is_wanted:
        return RunMetrics()
    if not any(exporting.values()) and (meters := application_provider()) is not None:
        try:
            return RunMetrics.for_provider(meters)
        except Exception as error:  # noqa: BLE001 - the application's
            logger.warning("OtelConnector: no metrics, the application's meter provider raised %s", error_text(error))
            return RunMetrics()
    options = _options(exporting, "metrics")
    if options is None or not (tracing.is_own or _names_a_collector(options)):
        return RunMetrics()
    metrics = RunMetrics.for_endpoint(tracing.resource, options, _share(_metric_exporters, options, tracing))
    if tracing.route is not None:
        metrics.gauges.watch("traces", tracing.route.outbox.totals)
    return metrics


def _names_a_collector(options: ExportOptions) -> bool:
    """Whether the environment has a collector for metrics, where an application exports the spans itself.

    Values that Cascade does not understand are for the exporters of the application.
    """
    return not options.problems and any(os.environ.get(name, "").strip() for name in _NAMES_OF_COLLECTORS)


def _logs(tracing: Tracing | None, exporting: dict[str, Any], logs: bool | str | None) -> "RunLogs | None":
    from cascade.connectors.otel.logs import RunLogs, chosen_level

    level = chosen_level(logs)
    if level is None or tracing is None:
        return None
    options = _options(exporting, "logs")
    if options is None:
        message = f"{_no_endpoint_for_logs(exporting)}; no logs are exported"
        report(Problem("OTEL_LOGS_EXPORTER", str(exporting["endpoint"]), message))
        return None
    return RunLogs(
        tracing.resource, options, level, _share(_log_outboxes, options, tracing), is_explicit=logs is not None
    )


def _share(registry: Registry[T], options: ExportOptions, tracing: Tracing) -> Share[T]:
    """Shares the objects of a registry between the connectors of this destination and resource.

    The resource of a provider of our own follows from the environment. The instance id is new in a forked child, where the
    objects begin anew.
    """
    whose: Hashable = None
    if not tracing.is_own:
        resource = tracing.provider.resource
        described = {key: value for key, value in resource.attributes.items() if key != a.SERVICE_INSTANCE_ID}
        whose = frozenset(described.items()), resource.schema_url
    return partial(registry.get, (destination(options), whose))


def _options(exporting: dict[str, Any], signal: Signal) -> ExportOptions | None:
    """None when the endpoint is the complete URL of another signal."""
    options = ExportOptions.from_environment(**exporting, signal=signal)
    is_elsewhere = options.protocol != "grpc" and options.endpoint == exporting["endpoint"]
    return None if is_elsewhere else options
