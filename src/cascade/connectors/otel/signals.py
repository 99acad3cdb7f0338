"""Setup of the signals of a connector: the tracer, the metrics and the logs. Logs are not exported by default."""

import os
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, cast

from opentelemetry import trace

from cascade._forks import no_fork
from cascade._internal_errors import raise_in_tests
from cascade._loggers import get_logger
from cascade.connectors.otel.environment import SettingWarning, warn_once
from cascade.connectors.otel.export_queue import ExportQueue
from cascade.connectors.otel.options import ExportOptions, Signal
from cascade.connectors.otel.provider import RunTracer, application_tracer_provider, cascade_tracer, tracer_of
from cascade.connectors.otel.routing import Registry, Share, destination
from cascade.connectors.otel.transport import prepare
from cascade.telemetry import attributes as a
from cascade.telemetry.sanitize import error_text

if TYPE_CHECKING:
    from cascade.connectors.otel.logs import RunLogs
    from cascade.connectors.otel.metrics import RunMetrics
    from cascade.connectors.otel.metrics.export import MetricExporter

logger = get_logger("cascade.connectors.otel")

T = TypeVar("T")

_log_queues: Registry[ExportQueue] = Registry(lambda queue: queue.retire())
_metric_exporters: "Registry[MetricExporter]" = Registry(lambda exporter: exporter.retire())


_COLLECTOR_VARIABLES = (
    "OTEL_EXPORTER_OTLP_ENDPOINT",
    "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT",
    "OTEL_METRICS_EXPORTER",
)


class Signals:
    """The metrics and the logs of one connector.

    Args:
        tracer: The tracer of the connector; None if the SDK is disabled.
        arguments: Arguments `endpoint`, `protocol` and `headers` of the connector.
        metrics: Whether metrics are exported.
        logs: The argument `logs` of the connector.
    """

    def __init__(
        self, tracer: RunTracer | None, arguments: dict[str, Any], *, metrics: bool, logs: bool | str | None
    ) -> None:
        self.metrics = _metrics(tracer, arguments, is_wanted=metrics)
        self._logs = _logs(tracer, arguments, logs)

    def reserve(self, exit_timeout: float) -> None:
        """Register as a user of the shared exports. They are flushed for `exit_timeout` seconds when the process exits."""
        self.metrics.reserve(exit_timeout)
        if self._logs is not None:
            self._logs.reserve(exit_timeout)

    def start_run(self, run_id: str) -> None:
        if self._logs is not None:
            self._logs.attach(run_id)

    def end_run(self, run_id: str) -> None:
        self.metrics.end_run(run_id)
        if self._logs is not None:
            self._logs.detach(run_id)

    def start_flush(self, timeout: float) -> Callable[[float], str]:
        """Start a flush of the logs. The returned function exports the metrics, which count the spans sent until then.

        It waits for both, at most `timeout` seconds from now or until its argument, a time of `time.monotonic`. It
        returns a warning about undelivered log records, or an empty text.
        """
        end = time.monotonic() + timeout
        wait_for_logs = self._logs.start_flush(timeout) if self._logs is not None else None

        def wait(limit: float) -> str:
            self.metrics.start_flush(max(0.0, end - time.monotonic()))(limit)
            return wait_for_logs(limit) if wait_for_logs is not None else ""

        return wait


def check_logs(arguments: dict[str, Any], logs: bool | str | None) -> None:
    """Check the `logs` argument of a connector.

    Raises:
        ValueError: `logs` is not a level, or the `endpoint` argument is the URL of another signal.
    """
    from cascade.connectors.otel.logs import chosen_level

    if (
        logs is not None
        and chosen_level(logs) is not None
        and arguments["endpoint"]
        and not _options(arguments, "logs")
    ):
        raise ValueError(_no_endpoint_for_logs(arguments))


def _no_endpoint_for_logs(arguments: dict[str, Any]) -> str:
    return (
        f"logs: endpoint={arguments['endpoint']!r} is the complete URL of the traces; use an endpoint without a path, "
        "or OTEL_EXPORTER_OTLP_LOGS_ENDPOINT and no endpoint argument"
    )


def _metrics(tracer: RunTracer | None, arguments: dict[str, Any], *, is_wanted: bool) -> "RunMetrics":
    from cascade.connectors.otel.metrics import RunMetrics, application_meter_provider

    if tracer is None or not is_wanted:
        return RunMetrics()
    if not any(arguments.values()) and (meters := application_meter_provider()) is not None:
        try:
            return RunMetrics.for_provider(meters)
        except Exception as error:  # noqa: BLE001 - code of the application
            raise_in_tests(error)
            logger.warning("OtelConnector: no metrics, the application's meter provider raised %s", error_text(error))
            return RunMetrics()
    options = _options(arguments, "metrics")
    if options is None or not (tracer.own is not None or _has_collector(options)):
        return RunMetrics()
    metrics = RunMetrics.for_endpoint(tracer.resource, options, _share(_metric_exporters, options, tracer))
    if tracer.target is not None:
        metrics.add_report("traces", tracer.target.queue.totals)
    return metrics


def _has_collector(options: ExportOptions) -> bool:
    """Return whether the environment sets a collector for metrics, which is required if the application exports the spans.

    Values that are invalid for Cascade are meant for the exporters of the application.
    """
    return not options.problems and any(os.environ.get(name, "").strip() for name in _COLLECTOR_VARIABLES)


def _logs(tracer: RunTracer | None, arguments: dict[str, Any], logs: bool | str | None) -> "RunLogs | None":
    from cascade.connectors.otel.logs import RunLogs, chosen_level

    level = chosen_level(logs)
    if level is None or tracer is None:
        return None
    options = _options(arguments, "logs")
    if options is None:
        message = f"{_no_endpoint_for_logs(arguments)}; no logs are exported"
        warn_once(SettingWarning("OTEL_LOGS_EXPORTER", str(arguments["endpoint"]), message))
        return None
    return RunLogs(tracer.resource, options, level, _share(_log_queues, options, tracer), is_explicit=logs is not None)


def _share(registry: Registry[T], options: ExportOptions, tracer: RunTracer) -> Share[T]:
    """Share an object of a registry between the connectors of this destination and resource.

    The resource of a provider of Cascade depends on the environment alone. The instance id is left out, because it
    changes in a forked child, which keeps the objects.
    """
    owner: Hashable = None
    if tracer.own is None:
        resource = tracer.provider.resource
        described = {key: value for key, value in resource.attributes.items() if key != a.SERVICE_INSTANCE_ID}
        owner = frozenset(described.items()), resource.schema_url
    return partial(registry.get, (destination(options), owner))


def _options(arguments: dict[str, Any], signal: Signal) -> ExportOptions | None:
    """Return the options of a signal; None if the endpoint is the complete URL of another signal."""
    options = ExportOptions.from_environment(**arguments, signal=signal)
    is_elsewhere = options.protocol != "grpc" and options.endpoint == arguments["endpoint"]
    return None if is_elsewhere else options


@dataclass(frozen=True, slots=True)
class Exports:
    """Signals and tracer of a connector. Without a tracer nothing is exported."""

    signals: Signals
    tracer: RunTracer | None = None


class ExportSetup:
    """Sets up the exports at the first call: an application may set its providers after it has created the connector.

    The constructor checks the arguments and does not change the providers of the process.

    Args:
        provider: The tracer provider to use; None for that of the application, or one of Cascade.
        arguments: Arguments `endpoint`, `protocol` and `headers` of the connector. If one is set, a provider of Cascade
            is used.
        metrics: Whether metrics are exported.
        logs: The argument `logs` of the connector.

    Raises:
        ValueError: An argument has an invalid value, or contradicts another argument.
        TypeError: `provider` is not a tracer provider.
    """

    def __init__(
        self,
        provider: trace.TracerProvider | None,
        arguments: dict[str, Any],
        *,
        metrics: bool,
        logs: bool | str | None,
    ) -> None:
        is_own = any(arguments.values())
        if provider is not None and is_own:
            raise ValueError(
                "endpoint, protocol and headers have no effect on tracer_provider; set them in its exporter"
            )
        if provider is not None and not isinstance(provider, trace.TracerProvider):
            raise TypeError(f"tracer_provider={provider!r} is not an opentelemetry TracerProvider")
        if is_own:
            # Invalid variables are reported when the exports are set up.
            prepare(replace(ExportOptions.from_environment(**arguments), problems=()))
        check_logs(arguments, logs)
        self._provider = provider
        self._arguments = arguments
        self._metrics = metrics
        self._logs = logs
        self.error = ""

    def __call__(self) -> Exports:
        """Return the exports. An exception is raised once; then nothing is exported, and `error` is its text."""
        chosen: Exports | None = self.__dict__.get("_exports")
        if chosen is not None:
            return chosen
        try:
            with no_fork:  # it imports modules
                made = self._make()
        except Exception as error:
            self.error = error_text(error)
            self.__dict__.setdefault("_exports", Exports(Signals(None, {}, metrics=False, logs=False)))
            raise
        # Several threads may set up the exports at the same time. They get the same provider, and `setdefault` is atomic.
        return cast("Exports", self.__dict__.setdefault("_exports", made))

    def _make(self) -> Exports:
        tracer = self._tracer()
        signals = Signals(tracer, self._arguments, metrics=self._metrics, logs=self._logs)
        return Exports(signals, tracer)

    def _tracer(self) -> RunTracer | None:
        # A proxy represents the global provider, which may have been set since.
        if self._provider is not None and not isinstance(self._provider, trace.ProxyTracerProvider):
            return tracer_of(self._provider)
        if not any(self._arguments.values()) and (found := application_tracer_provider()) is not None:
            return tracer_of(found)
        return cascade_tracer(ExportOptions.from_environment(**self._arguments))
