"""Which outboxes a span belongs to: those of the runs whose trace it is in, else the provider's own.

The first connector's provider becomes the process's global one, and serves the instrumentation in the tasks of all
later runs, whose connectors may send elsewhere.
"""

from collections import defaultdict
from collections.abc import Sequence

from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor

from cascade.connectors.otel._outbox import SpanOutbox
from cascade.connectors.otel._tally import Tally
from cascade.telemetry.identity import RUN_STARTED

SCOPE = "cascade"

_routes: dict[int, list["Route"]] = defaultdict(list)


class Route:
    """An outbox, and the count that spans put through here belong to."""

    def __init__(self, outbox: SpanOutbox) -> None:
        self.outbox = outbox
        self.tally: Tally = outbox.tally()

    def put(self, span: ReadableSpan) -> None:
        # A run shows as soon as it starts: its marker does not wait for a batch.
        urgent = span.name == RUN_STARTED and _is_ours(span)
        self.outbox.put(span, urgent=urgent, tally=self.tally)


def _is_ours(span: ReadableSpan) -> bool:
    return span.instrumentation_scope is not None and span.instrumentation_scope.name == SCOPE


def add_route(trace_id: str, route: Route) -> None:
    """Spans of this trace go that way, until `remove_route`."""
    _routes[int(trace_id, 16)].append(route)


def remove_route(trace_id: str, route: Route) -> None:
    key = int(trace_id, 16)
    if route in _routes.get(key, ()):
        _routes[key].remove(route)
    if not _routes.get(key):
        _routes.pop(key, None)


class RoutingProcessor(SpanProcessor):
    """Puts ended spans on their route."""

    def __init__(self, own: Route | None) -> None:
        self._own = own

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        pass

    def on_end(self, span: ReadableSpan) -> None:
        context = span.get_span_context()
        if context is None or not context.trace_flags.sampled:
            return
        for route in self._routes_of(span, context.trace_id):
            route.put(span)

    def _routes_of(self, span: ReadableSpan, trace_id: int) -> Sequence[Route]:
        own = () if self._own is None else (self._own,)
        if _is_ours(span):  # a connector's spans are its own business, whoever else traces the same run
            return own
        return _routes.get(trace_id) or own

    def shutdown(self) -> None:
        if self._own is not None:
            self._own.outbox.close()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        if self._own is None:
            return True
        report = self._own.outbox.flush(timeout_millis / 1000)
        return not report.pending and not report.lost
