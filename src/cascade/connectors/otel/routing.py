"""Routing of ended spans to the export queues of their runs, and the objects that connectors of one destination share.

The provider of the first connector becomes the global one. It therefore gets the spans of instrumentation in the tasks of
all later runs, whose connectors may send to other endpoints. A span is put into the queues of:

1. the run whose id is in its attributes, as long as an object references the `RunTargets` of the run, even after its end;
2. otherwise the runs in its trace, or the ended runs of its trace (the latest `KEPT_TRACES` traces are kept);
3. otherwise the provider that ends it.
"""

import os
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor
from opentelemetry.trace import SpanKind

from cascade.connectors import _lifetime
from cascade.connectors.otel.buffer import Counters
from cascade.connectors.otel.export_queue import ExportQueue
from cascade.connectors.otel.options import ExportOptions
from cascade.connectors.otel.sdk_hooks import is_cascade_span
from cascade.telemetry import attributes as a

KEPT_TRACES = 1_000
"""Traces of ended runs whose targets are kept. Each takes some 300 bytes."""

_TARGETS = "_cascade_targets"
"""Attribute of span objects of the SDK below a task. It references the targets of the run, which therefore stay known."""


@dataclass(eq=False, slots=True)
class ExportTarget:
    """A queue, and counters of the spans of one connector, or of one of its runs if there is a `run_id`.

    The spans of a run also count in `parent`, the counters of its connector.
    """

    queue: ExportQueue
    run_id: str = ""
    parent: Counters | None = None
    counters: Counters = field(init=False)

    def __post_init__(self) -> None:
        self.counters = self.queue.new_counters(self.parent)

    def put_span(self, span: ReadableSpan) -> None:
        """Put a span. The marker of a run's start is sent at once. The span of a run is dropped last."""
        is_own, is_run = is_cascade_span(span), span.kind is SpanKind.SERVER
        is_marker = is_own and not is_run and a.RUN_TARGET in (span.attributes or {})
        self.queue.put(span, urgent=is_marker, important=is_own and is_run, counters=self.counters)


class RunTargets:
    """Targets of one run, one for each connector that exports it. The run and the spans below it reference this object."""

    __slots__ = ("__weakref__", "targets")

    def __init__(self) -> None:
        self.targets: tuple[ExportTarget, ...] = ()


class _TargetTable:
    """Targets of the process by run, by trace, and by trace of ended runs."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.runs: weakref.WeakValueDictionary[object, RunTargets] = weakref.WeakValueDictionary()
        self.traces: dict[int, tuple[ExportTarget, ...]] = {}
        self.ended: OrderedDict[int, tuple[ExportTarget, ...]] = OrderedDict()

    def reset_after_fork(self) -> None:
        """Replace the lock, which a thread of the parent may have held. The targets stay valid in the child."""
        self.lock = threading.Lock()


_table = _TargetTable()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_table.reset_after_fork)


def run_targets(run_id: str, target: ExportTarget) -> RunTargets:
    """Add a target to a run. The run has its targets while the returned object is referenced."""
    with _table.lock:
        found = _table.runs.get(run_id)
        if found is None:
            found = _table.runs[run_id] = RunTargets()
        found.targets = (*found.targets, target)
        return found


def add_target(trace_id: int, target: ExportTarget) -> None:
    """Add a target to a trace, until `remove_target`."""
    with _table.lock:
        _table.traces[trace_id] = (*_table.traces.get(trace_id, ()), target)


def remove_target(trace_id: int, target: ExportTarget) -> None:
    """Remove a target from a trace. Late spans are still put there, unless the trace has another target."""
    with _table.lock:
        if remaining := tuple(one for one in _table.traces.pop(trace_id, ()) if one is not target):
            _table.traces[trace_id] = remaining
        others = (one for one in _table.ended.pop(trace_id, ()) if one.queue is not target.queue)
        _table.ended[trace_id] = (*others, target)
        if len(_table.ended) > KEPT_TRACES:
            _table.ended.popitem(last=False)


class RoutingProcessor(SpanProcessor):
    """Puts ended spans into the queues of their targets. It follows the `TaskIdProcessor`, which sets the id of the run."""

    def __init__(self, own: ExportTarget | None) -> None:
        self._own = own

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:  # noqa: ARG002 - the protocol's
        targets = _table.runs.get((span.attributes or {}).get(a.RUN_ID))
        if targets is not None:
            setattr(span, _TARGETS, targets)

    def on_end(self, span: ReadableSpan) -> None:
        context = span.get_span_context()
        if context is None or not context.trace_flags.sampled:
            return
        for target in self._targets_of(span, context.trace_id):
            target.put_span(span)

    def _targets_of(self, span: ReadableSpan, trace_id: int) -> Iterable[ExportTarget]:
        own, run_id = self._own, (span.attributes or {}).get(a.RUN_ID)
        if is_cascade_span(span):  # other connectors of the run have a span of their own for it
            live = _table.traces.get(trace_id, ())
            targets = tuple(target for target in live if own is not None and target.queue is own.queue)
        elif (run := _table.runs.get(run_id)) is not None:
            targets = run.targets
        else:
            targets = _table.traces.get(trace_id) or _table.ended.get(trace_id, ())
        if not targets:
            return () if own is None else (own,)
        return targets if len(targets) == 1 else _one_for_each_queue(targets, run_id)

    def shutdown(self) -> None:
        """Flush the queue. It stays open for all connectors of its destination, and is closed when the process exits."""
        self.force_flush()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        if self._own is None:
            return True
        report = self._own.queue.flush(timeout_millis / 1000)
        return not report.pending and not report.lost


def _one_for_each_queue(targets: Iterable[ExportTarget], run_id: object) -> Iterable[ExportTarget]:
    """Return one target for each queue, if possible that of the run with this id."""
    chosen: dict[ExportQueue, ExportTarget] = {}
    for target in targets:
        if target.queue not in chosen or target.run_id == run_id:
            chosen[target.queue] = target
    return chosen.values()


KEPT_DESTINATIONS = 64
"""Destinations whose objects are kept without a connector, with their counts and the health of the collector."""

T = TypeVar("T")
Share = Callable[[Callable[[], T]], T]
"""Function that returns the shared object of one destination. Its argument creates that object."""

_registries: "list[Registry[Any]]" = []


class Registry(Generic[T]):
    """Shared objects, one per destination.

    An object exists while it is referenced by a connector, by a thread that has work for it, or by the list of the
    `KEPT_DESTINATIONS` destinations that were used last. A forked child keeps the objects, which reset themselves.

    Args:
        retire: Called with an object that leaves the list, so that its idle threads end.
    """

    def __init__(self, retire: Callable[[T], None]) -> None:
        self._retire = retire
        self._lock = threading.Lock()
        self._live: weakref.WeakValueDictionary[Hashable, T] = weakref.WeakValueDictionary()
        self._recent: OrderedDict[Hashable, T] = OrderedDict()
        _registries.append(self)
        _lifetime.watch(self)

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """Return the object of a destination. `make` creates it, and its exceptions are raised unchanged."""
        with self._lock:
            found = self._live.get(key)
            if found is None:
                found = self._live[key] = make()
            self._recent[key] = found
            self._recent.move_to_end(key)
            evicted = self._recent.popitem(last=False) if len(self._recent) > KEPT_DESTINATIONS else None
        if evicted is not None:  # without the lock: finalizers run here
            self._retire(evicted[1])
        return found

    def clear(self) -> None:
        """Remove all objects. Connectors keep those that they use."""
        with self._lock:
            removed, self._recent = self._recent, OrderedDict()
            self._live.clear()
        removed.clear()  # without the lock: finalizers run here

    def reset_after_fork(self) -> None:
        self._lock = threading.Lock()

    def start_exit(self) -> Callable[[], None]:
        """Remove the objects, which are closed at exit. A run in a later `atexit` handler creates new ones."""
        return self.clear


def clear_registries() -> None:
    """Remove the shared objects of all destinations, and the targets of ended runs. For tests."""
    with _table.lock:
        _table.ended.clear()
    for registry in _registries:
        registry.clear()


def destination(options: ExportOptions, environ: Mapping[str, str] = os.environ) -> Hashable:
    """Return the key of a destination: the options of a signal, and the variables that configure its export.

    The variables configure the resource, the sampler and the limits of spans, the temporality, interval and exemplars of
    metrics, and the proxies.
    """
    fields = (
        *(options.endpoint, options.protocol, options.signal, frozenset(options.headers.items()), options.timeout),
        *(options.compression, options.insecure),
        *(options.certificate, options.client_key, options.client_certificate),
    )
    settings = ((name, value) for name, value in environ.items() if _is_relevant(name))
    return fields, frozenset(settings)


def _is_relevant(name: str) -> bool:
    return name.startswith("OTEL_") or name[-6:].lower() == "_proxy"
