"""Ids of the run and the task that the current message is about."""

from collections.abc import Callable, Mapping
from contextvars import ContextVar

Ids = Callable[[], Mapping[str, str]]

subject: ContextVar[Ids | None] = ContextVar("cascade_message_subject", default=None)
"""Returns the ids when it is called, so that a message that is not rendered costs nothing. It is set only during a call of
the bus, and only if its renderer has a true `shows_subject`."""


def subject_ids() -> Mapping[str, str]:
    """`run_id`, `task_id`, `trace_id` and `span_id` of the current message, as far as they are known."""
    make = subject.get()
    return {} if make is None else make()
