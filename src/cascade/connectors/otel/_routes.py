"""Which outboxes a span belongs to: those of the runs whose trace it is in, else the provider's own.

The first connector's provider becomes the process's global one, and serves the instrumentation in the tasks of all
later runs, whose connectors may send elsewhere.
"""

import threading
from collections.abc import Iterable
from dataclasses import dataclass, field

from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor
from opentelemetry.trace import SpanKind

from cascade.connectors.otel._batch import Item
from cascade.connectors.otel._outbox import Outbox
from cascade.connectors.otel._scope import SCOPE
from cascade.connectors.otel._tally import Tally
from cascade.telemetry import attributes as a
from cascade.telemetry.identity import RUN_STARTED

_lock = threading.Lock()
_routes: dict[int, tuple["Route", ...]] = {}


@dataclass(eq=False, slots=True)
class Route:
    """An outbox, and the count that spans put through here belong to: a run's, where it has a `run_id`."""

    outbox: Outbox
    run_id: str = ""
    tally: Tally = field(init=False)

    def __post_init__(self) -> None:
        self.tally = self.outbox.tally()

    def put(self, item: Item, *, urgent: bool = False, important: bool = False) -> None:
        self.outbox.put(item, urgent=urgent, important=important, tally=self.tally)

    def put_span(self, span: ReadableSpan) -> None:
        # A run shows as soon as it starts: its marker does not wait for a batch.
        is_ours = _is_ours(span)
        self.put(span, urgent=is_ours and span.name == RUN_STARTED, important=is_ours and span.kind is SpanKind.SERVER)


def _is_ours(span: ReadableSpan) -> bool:
    return span.instrumentation_scope is not None and span.instrumentation_scope.name == SCOPE


def add_route(trace_id: int, route: Route) -> None:
    """Spans of this trace go that way, until `remove_route`."""
    with _lock:
        _routes[trace_id] = (*_routes.get(trace_id, ()), route)


def remove_route(trace_id: int, route: Route) -> None:
    with _lock:
        left = tuple(one for one in _routes.pop(trace_id, ()) if one is not route)
        if left:
            _routes[trace_id] = left


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
            route.put_span(span)

    def _routes_of(self, span: ReadableSpan, trace_id: int) -> Iterable[Route]:
        routes, own = _routes.get(trace_id, ()), self._own
        if _is_ours(span):  # a connector's spans are its own business, whoever else traces the same run
            routes = tuple(route for route in routes if own is not None and route.outbox is own.outbox)
        if not routes:
            return () if own is None else (own,)
        return routes if len(routes) == 1 else _one_for_each_outbox(routes, (span.attributes or {}).get(a.RUN_ID))

    def shutdown(self) -> None:
        """Flush. The outbox stays open: it belongs to all connectors of its destination, and closes at exit."""
        self.force_flush()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        if self._own is None:
            return True
        report = self._own.outbox.flush(timeout_millis / 1000)
        return not report.pending and not report.lost


def _one_for_each_outbox(routes: Iterable[Route], run_id: object) -> Iterable[Route]:
    """Of several runs in one trace, a span counts for its own where it says whose it is."""
    chosen: dict[Outbox, Route] = {}
    for route in routes:
        if route.outbox not in chosen or route.run_id == run_id:
            chosen[route.outbox] = route
    return chosen.values()
