"""The metrics and the logs of a connector: by default metrics are exported, and logs are not."""

import os
import time
from collections.abc import Callable, Hashable
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from cascade._loggers import get_logger
from cascade.connectors.otel.environment import SettingWarning, warn_once
from cascade.connectors.otel.export_queue import ExportQueue
from cascade.connectors.otel.options import ExportOptions, Signal
from cascade.connectors.otel.provider import Tracing
from cascade.connectors.otel.routing import Registry, Share, destination
from cascade.telemetry import attributes as a
from cascade.telemetry.safe import error_text

if TYPE_CHECKING:
    from cascade.connectors.otel.logs import RunLogs
    from cascade.connectors.otel.metrics import RunMetrics
    from cascade.connectors.otel.metrics.export import MetricExporter

import asyncio
import math
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import cast

from opentelemetry import trace

from cascade._forks import no_fork
from cascade.connectors.otel.batch import FlushReport
from cascade.connectors.otel.live_spans import SpanFactory
from cascade.connectors.otel.provider import application_provider, own_tracing, tracing_of
from cascade.connectors.otel.provider_flush import flush_of
from cascade.connectors.otel.routing import ExportTarget
from cascade.connectors.otel.transport import prepare

logger = get_logger("cascade.connectors.otel")

T = TypeVar("T")

_log_queues: Registry[ExportQueue] = Registry(lambda queue: queue.retire())
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
        self.metrics.end_run(run_id)
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
    if tracing.target is not None:
        metrics.watch("traces", tracing.target.queue.totals)
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
        warn_once(SettingWarning("OTEL_LOGS_EXPORTER", str(exporting["endpoint"]), message))
        return None
    return RunLogs(
        tracing.resource, options, level, _share(_log_queues, options, tracing), is_explicit=logs is not None
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


@dataclass(frozen=True, slots=True)
class Exports:
    """The means of export of a connector. Without `tracing` nothing is exported."""

    signals: Signals
    tracing: Tracing | None = None
    factory: SpanFactory | None = None
    target: ExportTarget | None = None


class ExportSetup:
    """Chooses once, when it is first called: an application may set its providers after it has made the connector.

    The constructor checks all that does not depend on the choice, and leaves the process's providers alone.

    Args:
        provider: The tracer provider to use; None for the application's, or one of our own.
        exporting: Arguments `endpoint`, `protocol` and `headers` of the connector. One that is set makes a provider of
            our own.
        metrics: Whether metrics are exported.
        logs: As `chosen_level` takes it.

    Raises:
        ValueError: An argument has a value that is not allowed, or contradicts another one.
        TypeError: `provider` is no tracer provider.
    """

    def __init__(
        self,
        provider: trace.TracerProvider | None,
        exporting: dict[str, Any],
        *,
        metrics: bool,
        logs: bool | str | None,
    ) -> None:
        is_own = any(exporting.values())
        if provider is not None and is_own:
            raise ValueError("endpoint, protocol and headers are the business of the tracer_provider that is given")
        if provider is not None and not isinstance(provider, trace.TracerProvider):
            raise TypeError(f"tracer_provider={provider!r} is no opentelemetry TracerProvider")
        if is_own:
            # Problems of variables are reported when the variables are used.
            prepare(replace(ExportOptions.from_environment(**exporting), problems=()))
        check_logs(exporting, logs)
        self._provider = provider
        self._exporting = exporting
        self._metrics = metrics
        self._logs = logs
        self.error = ""

    def __call__(self) -> Exports:
        """The means of export. An error is raised once; after it nothing is exported, and `error` is its text."""
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
        # Threads may choose at the same time. They find the same provider, and `setdefault` is atomic.
        return cast("Exports", self.__dict__.setdefault("_exports", made))

    def _make(self) -> Exports:
        tracing = self._tracing()
        signals = Signals(tracing, self._exporting, metrics=self._metrics, logs=self._logs)
        return Exports(signals, tracing, SpanFactory(tracing), tracing.target) if tracing else Exports(signals)

    def _tracing(self) -> Tracing | None:
        # A proxy stands for the process's provider, which may have been set since.
        if self._provider is not None and not isinstance(self._provider, trace.ProxyTracerProvider):
            return tracing_of(self._provider)
        if not any(self._exporting.values()) and (found := application_provider()) is not None:
            return tracing_of(found)
        return own_tracing(ExportOptions.from_environment(**self._exporting))


_SLICE = 0.5
"""Seconds that one message waits for room: half of the publish queue's limit for one message."""

_GRACE = 1.0
"""Seconds beyond its bound after which a flush is taken to be stuck."""


async def flush(
    tracing: Tracing,
    targets: Sequence[ExportTarget],
    timeout: float,  # noqa: ASYNC109 - the bound is its purpose
    signals: Signals,
    *,
    has_spans: bool,
    strict: bool,
) -> tuple[FlushReport, str]:
    """Flush the spans of the targets, and beside them the other signals, in `timeout` seconds.

    Returns the report of the spans and a warning about other signals, which may be empty. With an application's provider
    the report has no counts, and its reason is for a strict connector: `ProviderFlush` logs.
    """
    if tracing.is_own:
        done = await _in_thread(lambda: _flushed(targets, timeout, signals), timeout + _GRACE)
        return done or (FlushReport(reason=_stuck(timeout)), "")
    run = partial(flush_of(tracing.provider).run, timeout, has_spans=has_spans, strict=strict)
    others = _in_thread(lambda: signals.start_flush(timeout)(math.inf), timeout + _GRACE)
    problem, warning = await asyncio.gather(_in_thread(run, timeout + _GRACE), others)
    return FlushReport(reason=problem or "" if strict else ""), warning or ""


def _flushed(targets: Sequence[ExportTarget], timeout: float, signals: Signals) -> tuple[FlushReport, str]:
    # Spans and logs begin before the first wait: silent destinations cost one wait and not one each.
    flushes = [target.queue.start_flush(timeout, counters=target.counters) for target in targets]
    wait_for_others = signals.start_flush(timeout)
    report = sum((flush.wait() for flush in flushes), FlushReport())
    # Where spans are not delivered, the other signals cost the run no further time.
    return report, wait_for_others(time.monotonic() if report.pending else math.inf)


class CapacityWaiter:
    """Waits for room in a queue, in one thread for however many tasks."""

    def __init__(self) -> None:
        self._waiting: asyncio.Future[Any] | None = None

    async def wait(self, queue: ExportQueue) -> None:
        """Return when it has room again or its peer is not alive, and after half a second in any case."""
        waiting = self._waiting
        if waiting is None or waiting.done() or waiting.get_loop() is not asyncio.get_running_loop():
            waiting = asyncio.ensure_future(_in_thread(lambda: queue.wait_for_capacity(_SLICE), _SLICE + _GRACE))
            self._waiting = waiting
        await asyncio.wait({waiting})


def _stuck(timeout: float) -> str:
    return f"the flush has not ended within {timeout:g} s"


async def _in_thread(work: Callable[[], Any], timeout: float) -> Any:  # noqa: ASYNC109 - as above
    """Run `work` in a daemon thread; return its result, or None after `timeout` seconds. Its exceptions are raised."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[Any] = loop.create_future()

    def settle(result: Any, error: Exception | None) -> None:
        if not done.done():
            done.set_result(result) if error is None else done.set_exception(error)

    def run() -> None:
        result: Any = None
        error: Exception | None = None
        try:
            result = work()
        except Exception as caught:  # noqa: BLE001 - raised again where it is awaited
            error = caught
        with suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(settle, result, error)

    threading.Thread(target=run, name="cascade-flush", daemon=True).start()
    await asyncio.wait({done}, timeout=timeout)
    if not done.done():
        done.cancel()
        return None
    return done.result()
