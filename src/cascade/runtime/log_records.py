"""Records of the standard library's `logging` that say which run, task, trace and span they were made in."""

import logging
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial, wraps
from typing import Any

from cascade.messaging.bus import MessageBus as Messages
from cascade.messaging.renderer import as_json, plain
from cascade.messaging.subject import subject
from cascade.runtime.bus import MessageBus
from cascade.runtime.events import Event, RunFinished, RunStarted, TaskEvent
from cascade.runtime.task_context import TaskContext, current_task
from cascade.telemetry.identity import RUN, RunTrace, span_id
from cascade.telemetry.redact import redact

Handler = Callable[[Any], None]

IDS = ("run_id", "task_id", "task_name", "trace_id", "span_id")
"""What `CorrelationFilter` puts on a record."""

# `message` and `asctime` are left behind by other formatters; `taskName` is asyncio's, on every record from 3.12 on.
_EMPTY = logging.LogRecord("", logging.NOTSET, "", 0, "", (), None)  # not from a factory of the application
STANDARD = frozenset({*vars(_EMPTY), *IDS, "message", "asctime", "taskName"})
"""The attributes of a record that are not its `extra`."""


class CorrelationFilter(logging.Filter):
    """Lets every record pass, with `run_id`, `task_id`, `task_name`, `trace_id` and `span_id` on it.

    Add it to a handler, or to a `QueueHandler` before it, whose listener no longer knows the task. Then formats may say
    `%(trace_id)s`. The span is the task's, or that of its attempt with a retry policy; outside of tasks all five are
    empty. What a record already has, from its `extra` or from another such filter, stays.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        known = vars(record)
        for name, value in _ids_of(current_task()).items():
            known.setdefault(name, value)
        return True


class JsonFormatter(logging.Formatter):
    """One JSON object per line, in the form of `log_format="json"`.

    `timestamp` (UTC), `level`, `logger`, `message`; the five ids of `CorrelationFilter`, which it does not need, inside
    of tasks; `exception` and `stack`, if there are any; `data` with what the record's `extra` brought.
    """

    def format(self, record: logging.LogRecord) -> str:
        known = vars(record)
        ids = {**_ids_of(current_task()), **{name: known[name] for name in IDS if name in known}}
        line = {
            "timestamp": datetime.fromtimestamp(record.created, UTC).isoformat(),
            "level": record.levelname,
            "logger": record.name,
            "message": message_of(record),
            **{name: plain(value) for name, value in ids.items() if value},
            **self._failure(record),
        }
        if extra := extra_of(record):
            line["data"] = plain(extra)
        return as_json(redact(line))

    def _failure(self, record: logging.LogRecord) -> dict[str, str]:
        shown = {}
        if record.exc_info and not record.exc_text:
            record.exc_text = self.formatException(record.exc_info)
        if record.exc_text:
            shown["exception"] = record.exc_text
        if record.stack_info:
            shown["stack"] = self.formatStack(record.stack_info)
        return shown


def message_of(record: logging.LogRecord) -> str:
    """The record's text. Never raises: arguments that do not fit leave the message as it was written."""
    try:
        return str.__str__(record.getMessage())
    except Exception as error:  # noqa: BLE001 - an argument's own __str__ may do anything
        written = record.msg if isinstance(record.msg, str) else f"<{type(record.msg).__qualname__}>"
        return f"{str.__str__(written)} <arguments that cannot be shown: {type(error).__name__}>"


def extra_of(record: logging.LogRecord) -> dict[str, Any]:
    """What `extra` brought."""
    return {name: value for name, value in vars(record).items() if name not in STANDARD and isinstance(name, str)}


def _ids_of(task: TaskContext | None) -> dict[str, str]:
    if task is None:
        return dict.fromkeys(IDS, "")
    span = task.current_span
    found = (task.run_id, task.task_id, task.name, span.trace_id, span.span_id)
    return dict(zip(IDS, found, strict=True))


class LogCorrelation:
    """Provides the ids of an event while a handler prints messages about it. Keeps the traces of the active runs.

    Args:
        event_bus: The bus of the events.
        messages: Returns the bus that the handlers print to.
    """

    def __init__(self, event_bus: MessageBus, messages: Callable[[], Messages]) -> None:
        self._messages = messages
        self._traces: dict[str, RunTrace] = {}
        event_bus.subscribe(RunStarted, self._begin)

    def with_ids(self, handler: Handler) -> Handler:
        """The handler, with the ids of its event in `subject` while it runs, if the renderer prints them."""

        @wraps(handler)
        def tell(event: Event) -> None:
            if self._messages().shows_subject is not True:  # a mock of the bus is not asked for its truth
                handler(event)
                return
            token = subject.set(partial(self._ids_of, event))
            try:
                handler(event)
            finally:
                subject.reset(token)

        return tell

    def forget(self, event: RunFinished) -> None:
        """To be subscribed after the handlers, which want the ids of the run's last message."""
        self._traces.pop(event.run_id or "", None)

    def _begin(self, event: RunStarted) -> None:
        if isinstance(event.trace, RunTrace) and event.run_id:
            self._traces[event.run_id] = event.trace

    def _ids_of(self, event: Event) -> dict[str, str]:
        task_id = event.task_id if isinstance(event, TaskEvent) else RUN
        ids = {"run_id": event.run_id, "task_id": task_id}
        if trace := self._traces.get(event.run_id or ""):
            place = trace.place_of(task_id, event.map_id if isinstance(event, TaskEvent) else None)
            ids |= {"trace_id": place.trace_id, "span_id": span_id(trace.run_id, task_id)}
        return {key: value for key, value in ids.items() if value}
