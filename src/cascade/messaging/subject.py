"""What the message that is being shown is about: ids for a renderer whose reader is a machine."""

from collections.abc import Callable, Mapping
from contextvars import ContextVar

Ids = Callable[[], Mapping[str, str]]

subject: ContextVar[Ids | None] = ContextVar("cascade_message_subject", default=None)
"""Makes the ids, when asked: a message that is not shown costs nothing. Set only around a call of the bus, and only
while its renderer has a true `shows_subject`."""


def subject_ids() -> Mapping[str, str]:
    """`run_id`, `task_id`, `trace_id` and `span_id` of the message that is being shown, as far as they are known."""
    make = subject.get()
    return {} if make is None else make()
