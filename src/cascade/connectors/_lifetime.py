"""What connectors need from their process: a fresh start after a fork, a last word at exit."""

import atexit
import os
import weakref
from typing import Protocol


class Watched(Protocol):
    """Told about the life of its process; neither call may raise."""

    def reset_after_fork(self) -> None: ...

    def close_at_exit(self) -> None: ...


_watched: "weakref.WeakSet[Watched]" = weakref.WeakSet()


def watch(one: Watched) -> None:
    """Tell it, for as long as somebody else holds it, of forks and of the interpreter's exit."""
    _watched.add(one)


def _reset_after_fork() -> None:
    for one in list(_watched):
        one.reset_after_fork()


def _close_at_exit() -> None:
    for one in list(_watched):
        one.close_at_exit()


atexit.register(_close_at_exit)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset_after_fork)
