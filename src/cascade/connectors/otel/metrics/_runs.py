"""`RunMetrics`: what the connector tells its metrics."""

import os
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Self

from opentelemetry.metrics import MeterProvider
from opentelemetry.sdk.resources import Resource

from cascade._loggers import get_logger
from cascade.connectors import _lifetime
from cascade.connectors.otel._options import ExportOptions
from cascade.connectors.otel._tally import FlushReport
from cascade.connectors.otel._transport import open_transport
from cascade.connectors.otel.metrics._destinations import Collector, Console, Destination
from cascade.connectors.otel.metrics._exporter import Exporter
from cascade.connectors.otel.metrics._instruments import Instruments, instruments_of
from cascade.connectors.otel.metrics._ledger import Ledger
from cascade.connectors.otel.metrics._levels import Levels
from cascade.connectors.otel.metrics._measures import Sink, measure
from cascade.connectors.otel.metrics._settings import Settings

logger = get_logger("cascade.connectors.otel")

EXIT_TIMEOUT = 5.0
"""Seconds that the interpreter's exit may take for the last export; for a dead collector it is much less."""


class RunMetrics:
    """The metrics of a connector's runs: aggregated and exported here, or handed to a meter provider.

    Nothing raises, but for the making of it. In a forked child it begins anew; at the interpreter's exit there is a
    last export.
    """

    def __init__(self, sink: Sink | None = None, exporter: Exporter | None = None) -> None:
        self._sink = sink
        self._exporter = exporter
        self._levels = Levels()

    @classmethod
    def own(cls, resource: Resource, options: ExportOptions, environ: Mapping[str, str] = os.environ) -> Self:
        """Export to `options`, whose signal is "metrics", as `OTEL_METRIC*` variables say.

        Raises:
            ValueError: A variable's value is none that there is.
        """
        settings = Settings.from_environment(environ)
        made = cls()
        if settings.exporters:
            ledger = Ledger(made._levels, settings)
            made._sink = ledger
            made._exporter = Exporter(
                ledger,
                partial(_destination, settings, resource, options),
                interval=settings.interval,
                request_timeout=options.timeout,
            )
        _lifetime.watch(made)
        return made

    @classmethod
    def of(cls, meter_provider: MeterProvider) -> Self:
        """Measure with a provider's instruments; exporting is its own business.

        Raises:
            TypeError: It is no meter provider.
        """
        instruments = instruments_of(meter_provider)
        made = cls(instruments)
        instruments.attach(made._levels)
        _lifetime.watch(made)
        return made

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

    def watch(self, signal: str, report: Callable[[], FlushReport]) -> None:
        """Tell what becomes of the spans of a signal; `report` is asked at each export, in the exporting thread."""
        self._levels.watch(signal, report)

    def flush(self, timeout: float) -> None:
        """Export now, and wait for it `timeout` seconds at most."""
        if isinstance(self._sink, Instruments):
            self._sink.settle()
        if self._exporter is not None:
            self._exporter.flush(timeout)

    def close(self, timeout: float) -> None:
        """Flush; what comes later does not count."""
        if isinstance(self._sink, Instruments):
            self._sink.settle()
        if self._exporter is not None:
            self._exporter.close(timeout)
        self._sink = None

    def reset_after_fork(self) -> None:
        self._levels.reset_after_fork()
        if isinstance(self._sink, (Ledger, Instruments)):
            self._sink.reset_after_fork()
        if self._exporter is not None:
            self._exporter.reset_after_fork()

    def close_at_exit(self) -> None:
        self.close(EXIT_TIMEOUT)


def _destination(settings: Settings, resource: Resource, options: ExportOptions) -> Destination:
    collector = Collector(resource, partial(open_transport, options)) if "otlp" in settings.exporters else None
    if "console" in settings.exporters or collector is None:
        return Console(resource, collector)
    return collector
