"""The choice of a connector's tracer provider, metrics and logs, at its first run."""

from dataclasses import dataclass, replace
from typing import Any, cast

from opentelemetry import trace

from cascade._forks import no_fork
from cascade.connectors.otel._options import ExportOptions
from cascade.connectors.otel._routes import Route
from cascade.connectors.otel._signals import Signals, check_logs
from cascade.connectors.otel._transport import prepare
from cascade.connectors.otel.live_spans import SpanFactory
from cascade.connectors.otel.provider import Tracing, application_provider, own_tracing, tracing_of
from cascade.telemetry.safe import error_text


@dataclass(frozen=True, slots=True)
class Chosen:
    """The means of export of a connector. Without `tracing` nothing is exported."""

    signals: Signals
    tracing: Tracing | None = None
    factory: SpanFactory | None = None
    route: Route | None = None


class Choice:
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

    def __call__(self) -> Chosen:
        """The means of export. An error is raised once; after it nothing is exported, and `error` is its text."""
        chosen: Chosen | None = self.__dict__.get("_chosen")
        if chosen is not None:
            return chosen
        try:
            with no_fork:  # it imports modules
                made = self._make()
        except Exception as error:
            self.error = error_text(error)
            self.__dict__.setdefault("_chosen", Chosen(Signals(None, {}, metrics=False, logs=False)))
            raise
        # Threads may choose at the same time. They find the same provider, and `setdefault` is atomic.
        return cast("Chosen", self.__dict__.setdefault("_chosen", made))

    def _make(self) -> Chosen:
        tracing = self._tracing()
        signals = Signals(tracing, self._exporting, metrics=self._metrics, logs=self._logs)
        return Chosen(signals, tracing, SpanFactory(tracing), tracing.route) if tracing else Chosen(signals)

    def _tracing(self) -> Tracing | None:
        # A proxy stands for the process's provider, which may have been set since.
        if self._provider is not None and not isinstance(self._provider, trace.ProxyTracerProvider):
            return tracing_of(self._provider)
        if not any(self._exporting.values()) and (found := application_provider()) is not None:
            return tracing_of(found)
        return own_tracing(ExportOptions.from_environment(**self._exporting))
