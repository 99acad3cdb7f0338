"""Registry of the export state of the process: the connectors of one destination share one object."""

import os
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from typing import Any, Generic, TypeVar

from cascade.connectors import _lifetime
from cascade.connectors.otel._options import ExportOptions

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
