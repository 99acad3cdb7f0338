"""Forks of a process with threads: blocks that delay a fork, and locks that are free in the child."""

import os
import threading
from collections import Counter

FORK_TIMEOUT = 1.0
"""Seconds that a fork waits at most. A gRPC call to a collector that does not answer may take longer."""


class _ForkGuard:
    """Delays a fork while a thread is in a block that a child could not continue without: a gRPC call, an import.

    gRPC skips its own fork handlers while a call is out; what a child can then do with gRPC is undefined. A child
    cannot import a module that another thread was importing. A fork waits `FORK_TIMEOUT` seconds at most. A thread may
    enter again while it is inside.
    """

    def __init__(self) -> None:
        self._is_registered = not hasattr(os, "register_at_fork")
        self._begin()

    def _begin(self) -> None:
        self._changed = threading.Condition()
        self._inside = Counter[int]()  # by thread
        self._forks = 0

    def __enter__(self) -> None:
        with self._changed:
            if not self._is_registered:
                # The hook that is registered last runs first: before the locks of logging and of thread pools are
                # taken for the fork, which a block may need.
                self._is_registered = True
                os.register_at_fork(before=self.begin_fork, after_in_parent=self.end_fork, after_in_child=self._reset)
            me = threading.get_ident()
            while self._forks and not self._inside[me]:
                self._changed.wait()
            self._inside[me] += 1

    def __exit__(self, *_: object) -> None:
        with self._changed:
            me = threading.get_ident()
            self._inside[me] -= 1
            if not self._inside[me]:
                del self._inside[me]
            self._changed.notify_all()

    def _reset(self) -> None:
        me = threading.get_ident()
        depth = self._inside[me]
        self._begin()
        if depth:
            self._inside[me] = depth

    def begin_fork(self) -> None:
        with self._changed:
            self._forks += 1
            mine = {threading.get_ident()}
            self._changed.wait_for(lambda: self._inside.keys() <= mine, FORK_TIMEOUT)

    def end_fork(self) -> None:
        with self._changed:
            self._forks -= 1
            self._changed.notify_all()


class ForkSafeLock:
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


no_fork = _ForkGuard()
