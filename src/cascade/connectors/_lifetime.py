"""The life of the process: a fork, and the exit.

`atexit` does not run in a child of `multiprocessing` with `fork` or `forkserver` (`Process`, `Pool`,
`ProcessPoolExecutor`), nor in a prefork worker of Celery. There a finalizer of `multiprocessing`, or Celery's signal
`worker_process_shutdown`, takes its place. A process that calls `os._exit` itself ends without any of them.
"""

import atexit
import os
import sys
import threading
import weakref
from collections.abc import Callable
from typing import Any, Protocol


class Watched(Protocol):
    """Receives the events of its process; no call may raise."""

    def reset_after_fork(self) -> None:
        """Forget the state of the parent. Called in a forked child, which has no thread but the calling one."""
        ...

    def start_exit(self) -> Callable[[], None]:
        """Begin the last flush without waiting; the returned function waits, within a bound of its own, and closes.

        It may be called more than once.
        """
        ...


# By id: a watched object may compare by its content, which changes.
_watched: "weakref.WeakValueDictionary[int, Watched]" = weakref.WeakValueDictionary()

FORK_PATIENCE = 1.0
"""Seconds that a fork waits for a gRPC call that is out; a collector that does not answer holds it up no longer."""
_LAST = -1000
"""Exit priority of the finalizer: after those of the program, and after its own children have been joined."""


class _Exits:
    """Calls `_close_at_exit` in children that end without `atexit`."""

    def __init__(self) -> None:
        self._is_hooked = False
        self._finalizer: Any = None

    def register(self) -> None:
        """Register with `multiprocessing`, if it is imported: now in a child, and in each child when it begins.

        A child clears the registry of finalizers when it begins; then it calls those that are registered here.
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


class _ForkGate:
    """Delays a fork while a thread is in a block that a child could not continue without: a gRPC call, an import.

    gRPC skips its own fork handlers while a call is out; what a child can then do with gRPC is undefined. A child
    cannot import a module that another thread was importing. A fork waits `FORK_PATIENCE` seconds at most.
    """

    def __init__(self) -> None:
        self._is_registered = not hasattr(os, "register_at_fork")
        self.reset()

    def reset(self) -> None:
        self._changed = threading.Condition()
        self._inside = 0
        self._forks = 0

    def __enter__(self) -> None:
        with self._changed:
            if not self._is_registered:
                # The hook that is registered last runs first: before the locks of logging and of thread pools are
                # taken for the fork, which a block may need.
                self._is_registered = True
                os.register_at_fork(before=self.begin_fork, after_in_parent=self.end_fork, after_in_child=self.reset)
            while self._forks:
                self._changed.wait()
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._inside -= 1
            self._changed.notify_all()

    def begin_fork(self) -> None:
        with self._changed:
            self._forks += 1
            self._changed.wait_for(lambda: not self._inside, FORK_PATIENCE)

    def end_fork(self) -> None:
        with self._changed:
            self._forks -= 1
            self._changed.notify_all()


class ModuleLock:
    """A lock that is free in a forked child, though another thread of the parent held it."""

    def __init__(self) -> None:
        self._reset()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._reset)

    def _reset(self) -> None:
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


no_fork = _ForkGate()
_exits = _Exits()


def watch(one: Watched) -> None:
    """Call it at forks and at the exit, for as long as it is referenced elsewhere."""
    _watched[id(one)] = one
    _exits.register()


def _reset_after_fork() -> None:
    for one in list(_watched.values()):
        one.reset_after_fork()
    _exits.reset_after_fork()


def _close_at_exit() -> None:
    # All flushes have begun before the first wait: the exit takes as long as the longest, not as the sum.
    for finish in [one.start_exit() for one in list(_watched.values())]:
        finish()


def _close_with_celery(**_: object) -> None:
    _close_at_exit()


atexit.register(_close_at_exit)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset_after_fork)
