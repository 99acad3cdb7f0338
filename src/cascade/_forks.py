"""Forks of a process with threads: blocks that delay a fork, and locks that are free in the child."""

import os
import threading
from collections import Counter

FORK_TIMEOUT = 1.0
"""Maximum number of seconds that a fork waits. A gRPC call to an unresponsive collector may take longer."""


class _ForkGuard:
    """Delays forks while another thread is in a `with` block of this object, such as a gRPC call or an import.

    gRPC skips its fork handlers during a call, so that gRPC may not work in the child. A child cannot import a module
    that another thread was importing. A fork waits `FORK_TIMEOUT` seconds at most. The block is reentrant.
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
                # The hook that is registered last runs first. Later, a fork holds the locks of logging and of thread
                # pools, which a block may need.
                self._is_registered = True
                os.register_at_fork(before=self.begin_fork, after_in_parent=self.end_fork, after_in_child=self._reset)
            thread = threading.get_ident()
            while self._forks and not self._inside[thread]:
                self._changed.wait()
            self._inside[thread] += 1

    def __exit__(self, *_: object) -> None:
        with self._changed:
            thread = threading.get_ident()
            self._inside[thread] -= 1
            if not self._inside[thread]:
                del self._inside[thread]
            self._changed.notify_all()

    def _reset(self) -> None:
        thread = threading.get_ident()
        depth = self._inside[thread]
        self._begin()
        if depth:
            self._inside[thread] = depth

    def begin_fork(self) -> None:
        with self._changed:
            self._forks += 1
            own = {threading.get_ident()}
            self._changed.wait_for(lambda: self._inside.keys() <= own, FORK_TIMEOUT)

    def end_fork(self) -> None:
        with self._changed:
            self._forks -= 1
            self._changed.notify_all()


class ForkSafeLock:
    """Lock that is free in a forked child, even if another thread of the parent held it."""

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
