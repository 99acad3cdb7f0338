"""Log correlation: adds the ids of run, task, trace and span to records of `logging` and to printed messages."""

import logging
from datetime import UTC, datetime
from typing import Any

from cascade.messaging.renderer import as_json, plain
from cascade.runtime.bus import MessageBus
from cascade.runtime.events import Event, RunFinished, RunStarted, TaskEvent
from cascade.runtime.task_context import TaskContext, current_task
from cascade.telemetry.identity import RUN, RunTrace, span_id
from cascade.telemetry.redact import redact_value

IDS = ("run_id", "task_id", "task_name", "trace_id", "span_id")
"""The attributes that `CorrelationFilter` adds to a record."""

# Other formatters add `message` and `asctime`; Python 3.12 and later add `taskName`.
_EMPTY = logging.LogRecord("", logging.NOTSET, "", 0, "", (), None)  # not from a factory of the application
STANDARD = frozenset({*vars(_EMPTY), *IDS, "message", "asctime", "taskName"})
"""The attributes of a record that are not its `extra`."""


class CorrelationFilter(logging.Filter):
    """Filter that adds `run_id`, `task_id`, `task_name`, `trace_id` and `span_id` to every record, and drops none.

    Formats can use the ids, such as `%(trace_id)s`. Add the filter to a handler. With a `QueueHandler`, add it to that
    handler: its listener runs outside of the task. The span is that of the task, or of its attempt with a retry policy.
    Outside of tasks all five are empty. Attributes that a record already has are kept.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        known = vars(record)
        for name, value in _ids_of(current_task()).items():
            known.setdefault(name, value)
        return True


class JsonFormatter(logging.Formatter):
    """One JSON object per line, in the form of `log_format="json"`.

    The keys are `timestamp` (UTC), `level`, `logger` and `message`; inside tasks the five ids of `CorrelationFilter`,
    with or without that filter; `exception` and `stack`, if any; `data` with the values of `extra`.
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
        return as_json(redact_value(line))

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
    """Return the text of the record. If the arguments do not match the message, returns the unformatted message."""
    try:
        return str.__str__(record.getMessage())
    except Exception as error:  # noqa: BLE001 - an argument's own __str__ may do anything
        written = record.msg if isinstance(record.msg, str) else f"<{type(record.msg).__qualname__}>"
        return f"{str.__str__(written)} <arguments that cannot be shown: {type(error).__name__}>"


def extra_of(record: logging.LogRecord) -> dict[str, Any]:
    """Return the values of `extra`."""
    return {name: value for name, value in vars(record).items() if name not in STANDARD and isinstance(name, str)}


def _ids_of(task: TaskContext | None) -> dict[str, str]:
    if task is None:
        return dict.fromkeys(IDS, "")
    span = task.current_span
    found = (task.run_id, task.task_id, task.name, span.trace_id, span.span_id)
    return dict(zip(IDS, found, strict=True))


class LogCorrelation:
    """Returns the ids of an event for the messages about it. Stores the traces of the active runs."""

    def __init__(self, event_bus: MessageBus) -> None:
        self._traces: dict[str, RunTrace] = {}
        event_bus.subscribe(RunStarted, self._begin)

    def forget(self, event: RunFinished) -> None:
        """Drop the trace of a run. Subscribe it after the handlers, which need the ids for the last message."""
        self._traces.pop(event.run_id or "", None)

    def ids_of(self, event: Event) -> dict[str, str]:
        """Return the ids of the run and of the task of an event, as far as they are known."""
        task_id, map_id = (event.task_id, event.map_id) if isinstance(event, TaskEvent) else (RUN, None)
        ids = {"run_id": event.run_id} if event.run_id else {}
        if task_id:
            ids["task_id"] = task_id
        if trace := self._traces.get(event.run_id or ""):
            ids["trace_id"] = trace.location_of(task_id, map_id).trace_id
            ids["span_id"] = span_id(trace.run_id, task_id)
        return ids

    def _begin(self, event: RunStarted) -> None:
        if isinstance(event.trace, RunTrace) and event.run_id:
            self._traces[event.run_id] = event.trace
