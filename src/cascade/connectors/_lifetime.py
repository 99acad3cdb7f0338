"""Process events for connectors: a reset in a forked child, one flush of all at the interpreter's exit."""

import atexit
import os
import weakref
from collections.abc import Callable
from typing import Protocol


class Watched(Protocol):
    """Receives the events of its process; no call may raise."""

    def reset_after_fork(self) -> None: ...

    def start_exit(self) -> Callable[[], None]:
        """Begin the last flush without waiting; the returned function waits, within a bound of its own, and closes."""
        ...


_watched: "weakref.WeakSet[Watched]" = weakref.WeakSet()


def watch(one: Watched) -> None:
    """Call it, while something else refers to it, after a fork and at the interpreter's exit."""
    _watched.add(one)


def _reset_after_fork() -> None:
    for one in list(_watched):
        one.reset_after_fork()


def _close_at_exit() -> None:
    # All flushes have begun before the first wait: the exit takes as long as the longest, not as the sum.
    for finish in [one.start_exit() for one in list(_watched)]:
        finish()


atexit.register(_close_at_exit)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset_after_fork)
