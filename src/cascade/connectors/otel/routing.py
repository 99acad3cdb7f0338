"""The queues of a span: those of its run, else those of the runs in its trace, else the provider's own.

The first connector's provider becomes the process's global one. It also serves the instrumentation in the tasks of all
later runs, whose connectors may send to another endpoint. A span below a task has the run's id, and takes the run's
targets for as long as a context of the run is in use, after the run's end too. A span that has only the trace id takes
the targets of the runs in that trace; of ended runs, the latest `KEPT_TRACES` traces are known.
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
from cascade.connectors.otel.batch import Counters, Item
from cascade.connectors.otel.export_queue import ExportQueue
from cascade.connectors.otel.options import ExportOptions
from cascade.connectors.otel.sdk_hooks import is_cascade_span
from cascade.telemetry import attributes as a

KEPT_TRACES = 1_000
"""Traces of ended runs whose targets are kept, some 300 bytes each."""

_HELD = "_cascade_targets"
"""Attribute of the SDK's span objects below a task that keeps the run's targets alive."""


@dataclass(eq=False, slots=True)
class ExportTarget:
    """A queue, and the counters of the spans that are put through this target: those of a run if it has a `run_id`.

    The spans count in `parent` as well, the counters of the connector.
    """

    queue: ExportQueue
    run_id: str = ""
    parent: Counters | None = None
    counters: Counters = field(init=False)

    def __post_init__(self) -> None:
        self.counters = self.queue.new_counters(self.parent)

    def put(self, item: Item, *, urgent: bool = False, important: bool = False) -> None:
        self.queue.put(item, urgent=urgent, important=important, counters=self.counters)

    def put_span(self, span: ReadableSpan) -> None:
        """Put a span. The marker of a run's start does not wait for a batch, and the run's own span is dropped last."""
        ours, is_run = is_cascade_span(span), span.kind is SpanKind.SERVER
        is_marker = ours and not is_run and a.RUN_TARGET in (span.attributes or {})
        self.put(span, urgent=is_marker, important=ours and is_run)


class RunTargets:
    """The targets of one run: one for each connector that exports it. Referenced by the run and by the spans below it."""

    __slots__ = ("__weakref__", "targets")

    def __init__(self) -> None:
        self.targets: tuple[ExportTarget, ...] = ()


class _Table:
    """The targets of the process, by run and by trace."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.runs: weakref.WeakValueDictionary[object, RunTargets] = weakref.WeakValueDictionary()
        self.traces: dict[int, tuple[ExportTarget, ...]] = {}
        self.ended: OrderedDict[int, tuple[ExportTarget, ...]] = OrderedDict()

    def reset_after_fork(self) -> None:
        """Replace the lock, which a thread of the parent may have held. The child's spans take the same targets."""
        self.lock = threading.Lock()


_table = _Table()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_table.reset_after_fork)


def run_targets(run_id: str, target: ExportTarget) -> RunTargets:
    """Add a target to those of a run. They are known for as long as the returned object is referenced."""
    with _table.lock:
        found = _table.runs.get(run_id)
        if found is None:
            found = _table.runs[run_id] = RunTargets()
        found.targets = (*found.targets, target)
        return found


def add_target(trace_id: int, target: ExportTarget) -> None:
    """Send the spans of this trace that way, until `remove_target`."""
    with _table.lock:
        _table.traces[trace_id] = (*_table.traces.get(trace_id, ()), target)


def remove_target(trace_id: int, target: ExportTarget) -> None:
    """End a target. Until the trace has another, its late spans still take it."""
    with _table.lock:
        left = tuple(one for one in _table.traces.pop(trace_id, ()) if one is not target)
        if left:
            _table.traces[trace_id] = left
        others = (one for one in _table.ended.pop(trace_id, ()) if one.queue is not target.queue)
        _table.ended[trace_id] = (*others, target)
        if len(_table.ended) > KEPT_TRACES:
            _table.ended.popitem(last=False)


class RoutingProcessor(SpanProcessor):
    """Puts ended spans on their targets. To be added after the processor that marks spans with their run's id."""

    def __init__(self, own: ExportTarget | None) -> None:
        self._own = own

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:  # noqa: ARG002 - the protocol's
        targets = _table.runs.get((span.attributes or {}).get(a.RUN_ID))
        if targets is not None:
            setattr(span, _HELD, targets)

    def on_end(self, span: ReadableSpan) -> None:
        context = span.get_span_context()
        if context is None or not context.trace_flags.sampled:
            return
        for target in self._targets_of(span, context.trace_id):
            target.put_span(span)

    def _targets_of(self, span: ReadableSpan, trace_id: int) -> Iterable[ExportTarget]:
        own, run_id = self._own, (span.attributes or {}).get(a.RUN_ID)
        if is_cascade_span(span):  # only its own connector exports it, though others may trace the same run
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
        """Flush. The queue stays open: it belongs to all connectors of its destination, and closes at exit."""
        self.force_flush()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        if self._own is None:
            return True
        report = self._own.queue.flush(timeout_millis / 1000)
        return not report.pending and not report.lost


def _one_for_each_queue(targets: Iterable[ExportTarget], run_id: object) -> Iterable[ExportTarget]:
    """Return one target for each queue: the target of the span's own run, if the run id of the span is known."""
    chosen: dict[ExportQueue, ExportTarget] = {}
    for target in targets:
        if target.queue not in chosen or target.run_id == run_id:
            chosen[target.queue] = target
    return chosen.values()


RECENT = 64
"""Destinations whose state is kept without a connector. A run's totals and the health of its peer outlive the run."""

T = TypeVar("T")
Share = Callable[[Callable[[], T]], T]
"""Returns the shared object of one destination; the argument makes it."""

_registries: "list[Registry[Any]]" = []


class Registry(Generic[T]):
    """At most one object per destination.

    Python's reference counts are the reference counts: an object exists while a connector, a thread with work for it or
    the list of the `RECENT` destinations that were used last holds it. A forked child keeps the objects, which reset
    themselves.

    Args:
        retire: Called with an object that leaves the list, so that its idle threads end.
    """

    def __init__(self, retire: Callable[[T], None] = lambda _: None) -> None:
        self._retire = retire
        self._lock = threading.Lock()
        self._live: weakref.WeakValueDictionary[Hashable, T] = weakref.WeakValueDictionary()
        self._recent: OrderedDict[Hashable, T] = OrderedDict()
        _registries.append(self)
        _lifetime.watch(self)

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """Return the object of this destination; `make` creates it, and its exceptions are raised unchanged."""
        with self._lock:
            found = self._live.get(key)
            if found is None:
                found = make()
                self._live[key] = found
            self._recent[key] = found
            self._recent.move_to_end(key)
            evicted = self._recent.popitem(last=False) if len(self._recent) > RECENT else None
        if evicted is not None:  # without the lock: finalizers run here
            self._retire(evicted[1])
        return found

    def clear(self) -> None:
        """Forget all objects. Holders keep theirs."""
        with self._lock:
            forgotten, self._recent = self._recent, OrderedDict()
            self._live.clear()
        forgotten.clear()

    def reset_after_fork(self) -> None:
        self._lock = threading.Lock()

    def start_exit(self) -> Callable[[], None]:
        """Forget the objects, which close: a run in an `atexit` handler that comes later makes new ones."""
        return self.clear


def forget_all() -> None:
    """Forget the state of all destinations. For tests, whose receivers come and go."""
    for registry in _registries:
        registry.clear()


def destination(options: ExportOptions, environ: Mapping[str, str] = os.environ) -> Hashable:
    """Key of a destination: everything that decides where and how a signal is sent.

    Options cover one signal. The environment has the rest: resource, sampler and limits of spans, temporality, interval
    and exemplars of metrics, and the proxies.
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
