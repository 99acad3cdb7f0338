"""What the outboxes of a process need from it: a reset after a fork, a last flush at exit, no spans of their own."""

import atexit
import os
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from opentelemetry import context
from opentelemetry.context import _SUPPRESS_HTTP_INSTRUMENTATION_KEY, _SUPPRESS_INSTRUMENTATION_KEY


class Watched(Protocol):
    """Told about the life of its process; neither call may raise."""

    def reset_after_fork(self) -> None: ...

    def close_at_exit(self) -> None: ...


_watched: "weakref.WeakSet[Watched]" = weakref.WeakSet()


def watch(one: Watched) -> None:
    """Tell it, for as long as somebody else holds it, of forks and of the interpreter's exit."""
    _watched.add(one)


@contextmanager
def uninstrumented() -> Iterator[None]:
    """Keep instrumentation from making spans of the export itself, as the SDK's own processors do."""
    current = context.set_value(_SUPPRESS_INSTRUMENTATION_KEY, True)
    token = context.attach(context.set_value(_SUPPRESS_HTTP_INSTRUMENTATION_KEY, True, current))
    try:
        yield
    finally:
        context.detach(token)


def _reset_after_fork() -> None:
    for one in list(_watched):
        one.reset_after_fork()


def _close_at_exit() -> None:
    for one in list(_watched):
        one.close_at_exit()


atexit.register(_close_at_exit)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset_after_fork)
