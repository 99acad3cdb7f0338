"""`RunMetrics`: the metrics of one connector's runs."""

import math
import os
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Self

from opentelemetry.metrics import MeterProvider
from opentelemetry.sdk.resources import Resource

from cascade._loggers import get_logger
from cascade.connectors.otel._options import ExportOptions
from cascade.connectors.otel._sharing import Share
from cascade.connectors.otel._tally import FlushReport
from cascade.connectors.otel._transport import open_transport, prepare
from cascade.connectors.otel.metrics._destinations import Collector, Console, Destination
from cascade.connectors.otel.metrics._exporter import Exporter
from cascade.connectors.otel.metrics._instruments import Instruments, instruments_of
from cascade.connectors.otel.metrics._ledger import Ledger
from cascade.connectors.otel.metrics._levels import Gauges, Levels
from cascade.connectors.otel.metrics._measures import measure
from cascade.connectors.otel.metrics._settings import Settings

logger = get_logger("cascade.connectors.otel")


class RunMetrics:
    """The metrics of one connector's runs: aggregated and exported here, or recorded with a meter provider.

    Connectors that export to one destination share its exporter, and those of one meter provider its instruments. So a
    process has one series of each metric. No method but the constructors raises.
    """

    def __init__(
        self, sink: Ledger | Instruments | None = None, exporter: Exporter | None = None, *, is_shared: bool = False
    ) -> None:
        self._sink = sink
        self._exporter = exporter
        self._is_shared = is_shared
        self._gauges = sink.gauges if sink else Gauges()
        self._levels = Levels(self._gauges)

    @classmethod
    def own(
        cls,
        resource: Callable[[], Resource],
        options: ExportOptions,
        environ: Mapping[str, str] = os.environ,
        share: Share[Exporter] | None = None,
    ) -> Self:
        """Export to `options`, whose signal is "metrics", as the `OTEL_METRIC*` variables configure it.

        Args:
            resource: Returns the current resource, the same as that of the spans.
            options: Made for the signal "metrics".
            environ: The environment.
            share: Returns the exporter of the destination, which connectors share. None makes an exporter.
        """
        settings = Settings.from_environment(environ)
        if not settings.exporters:
            return cls()
        if "otlp" in settings.exporters:
            prepare(options)
        make = partial(_exporter, settings, resource, options)
        exporter = make() if share is None else share(make)
        return cls(exporter.ledger, exporter, is_shared=share is not None)

    @classmethod
    def of(cls, meter_provider: MeterProvider) -> Self:
        """Record with a provider's instruments, which the provider exports.

        Raises:
            TypeError: It is no meter provider.
        """
        return cls(instruments_of(meter_provider))

    def reserve(self, exit_timeout: float) -> None:
        """Register as a user of the exporter, which the process's exit flushes for `exit_timeout` seconds."""
        if self._exporter is not None:
            self._exporter.reserve(self, exit_timeout)

    def publish(self, payload: Mapping[str, Any]) -> None:
        """Take in a message of a run, at once: any message, those that say nothing here included."""
        sink = self._sink
        if sink is None:
            return
        try:
            measure(payload, sink, self._levels)
        except Exception:
            logger.debug("OtelConnector: no metrics from a message", exc_info=True)

    def entered(self) -> None:
        """A call of a task's code begins; from any thread."""
        self._levels.enter_task()

    def left(self) -> None:
        """That call has ended."""
        self._levels.leave_task()

    def end_run(self, run_id: str) -> None:
        """The run is over, though the message of its end may have been lost."""
        self._levels.end_run(run_id)

    def watch(self, signal: str, report: Callable[[], FlushReport]) -> None:
        """Count what becomes of the telemetry of a signal; `report` is called at each export, in the exporting thread."""
        self._gauges.watch(signal, report)

    def flush(self, timeout: float) -> None:
        """Export now, and wait for it `timeout` seconds at most."""
        self.start_flush(timeout)(math.inf)

    def start_flush(self, timeout: float) -> Callable[[float], None]:
        """Begin an export; the returned function waits for it, at most until its argument, a time of `time.monotonic`."""
        return self._exporter.start_flush(timeout) if self._exporter is not None else _no_wait

    def close(self, timeout: float) -> None:
        """Flush, and count no more. An exporter that is not shared is closed."""
        if self._exporter is not None:
            (self._exporter.flush if self._is_shared else self._exporter.close)(timeout)
        self._sink = None


def _no_wait(_limit: float) -> None:
    """Nothing is exported here."""


def _exporter(settings: Settings, resource: Callable[[], Resource], options: ExportOptions) -> Exporter:
    return Exporter(
        Ledger(settings),
        partial(_destination, settings, resource, options),
        interval=settings.interval,
        request_timeout=options.timeout,
    )


def _destination(settings: Settings, resource: Callable[[], Resource], options: ExportOptions) -> Destination:
    collector = Collector(resource, partial(open_transport, options)) if "otlp" in settings.exporters else None
    if "console" in settings.exporters or collector is None:
        return Console(resource, collector)
    return collector
