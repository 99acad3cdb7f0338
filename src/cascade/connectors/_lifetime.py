"""Notifies connectors of forks and of the exit of the process.

`atexit` does not run in a child of `multiprocessing` with `fork` or `forkserver` (`Process`, `Pool`,
`ProcessPoolExecutor`), nor in a prefork worker of Celery. There a finalizer of `multiprocessing`, or Celery's signal
`worker_process_shutdown`, is used. A process that calls `os._exit` itself ends without any of them.
"""

import atexit
import os
import sys
import weakref
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from cascade._internal_errors import raise_in_tests
from cascade._loggers import get_logger

logger = get_logger(__name__)

T = TypeVar("T")


class ProcessListener(Protocol):
    """Object that is notified of forks and of the exit of its process."""

    def reset_after_fork(self) -> None:
        """Discard the state of the parent. It is called in a forked child, in its only thread."""
        ...

    def start_exit(self) -> Callable[[], None]:
        """Begin the last flush without waiting. The returned function waits for it, with a time limit, and closes.

        It may be called more than once.
        """
        ...


# By id: the equality of an object may depend on its content, which changes.
_watched: "weakref.WeakValueDictionary[int, ProcessListener]" = weakref.WeakValueDictionary()

_LAST = -1000
"""Exit priority of the finalizer: after those of the program, and after its own children have been joined."""


class _Exits:
    """Calls `_close_at_exit` in children that end without `atexit`."""

    def __init__(self) -> None:
        self._is_hooked = False
        self._finalizer: Any = None

    def register(self) -> None:
        """Register with `multiprocessing`, if it is imported: now in a child, and in each child when it begins.

        A child first clears the registry of finalizers. Then it calls the functions that are registered here.
        """
        util = sys.modules.get("multiprocessing.util")
        if not hasattr(util, "register_after_fork") or util is None:
            return
        if not self._is_hooked:
            self._is_hooked = True
            util.register_after_fork(self, _Exits._begin_child)
        process = sys.modules.get("multiprocessing.process")
        if process is not None and process.parent_process() is not None:
            self._add_finalizer(util)

    def reset_after_fork(self) -> None:
        self._finalizer = None
        self.register()
        if signals := sys.modules.get("celery.signals"):  # the pool's workers end without finalizers
            signals.worker_process_shutdown.connect(_close_with_celery, weak=False, dispatch_uid=__name__)

    def _begin_child(self) -> None:
        self._add_finalizer(sys.modules["multiprocessing.util"])

    def _add_finalizer(self, util: Any) -> None:
        if self._finalizer is None or not self._finalizer.still_active():
            self._finalizer = util.Finalize(None, _close_at_exit, exitpriority=_LAST)


_exits = _Exits()


def watch(one: ProcessListener) -> None:
    """Notify `one` of forks and of the exit, as long as it is referenced elsewhere."""
    _watched[id(one)] = one
    _exits.register()


def _reset_after_fork() -> None:
    for one in list(_watched.values()):
        _guarded(one.reset_after_fork)
    _exits.reset_after_fork()


def _close_at_exit() -> None:
    try:
        # All flushes begin before the first wait, so the exit takes as long as the longest flush.
        for finish in [_guarded(one.start_exit) for one in list(_watched.values())]:
            if finish is not None:
                _guarded(finish)
    except KeyboardInterrupt:  # without this, `atexit` prints a traceback
        logger.warning("The last flush was interrupted; telemetry that was not delivered is lost")


def _guarded(call: Callable[[], T]) -> T | None:
    """Return the result of the call. An exception is logged, so that the other objects are still called."""
    try:
        return call()
    except Exception as error:
        raise_in_tests(error)
        logger.exception("%r failed at a fork or at the exit", call)
        return None


def _close_with_celery(**_: object) -> None:
    _close_at_exit()


atexit.register(_close_at_exit)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset_after_fork)
