"""Log correlation: adds the ids of run, task, trace and span to records of `logging` and to printed messages."""

import logging
from datetime import UTC, datetime
from typing import Any

from cascade.messaging.renderer import IDS, LOGGER, RECORD_FIELDS, as_json, plain, printable
from cascade.runtime.bus import MessageBus
from cascade.runtime.events import Event, RunFinished, RunStarted, TaskEvent
from cascade.runtime.task_context import TaskContext, current_task
from cascade.telemetry.identity import RUN, RunTrace, span_id
from cascade.telemetry.redact import redact_value

TASK_LOGGER = "cascade.task"
"""Name of the logger that `get_logger` returns without a name."""
OF_TASK = ("attempt", "map_index", "label")
"""The attributes that a `TaskLogger` adds to a record, besides the ids. An attribute without a value is empty."""


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


class TaskLogger(logging.LoggerAdapter[logging.Logger]):
    """Logger whose records have the ids, the attempt, the map index and the label of the current task, and begin with it.

    The task is determined at each call. Outside of tasks, records have no text before them, and empty attributes.
    """

    def log(self, level: int, msg: object, *args: object, **kwargs: Any) -> None:
        if not self.isEnabledFor(level):
            return
        task = current_task()
        if task is not None:
            msg = _TaskText.of(msg, task, escapes=bool(args))
        kwargs["extra"] = {**_ids_of(task), **_of_task(task), **(kwargs.get("extra") or {})}
        kwargs["stacklevel"] = kwargs.get("stacklevel", 1) + 1  # the caller, not this method
        self.logger.log(level, msg, *args, **kwargs)


def get_logger(name: str | None = None) -> logging.LoggerAdapter[logging.Logger]:
    """Return a logger for the code of tasks. The default of `name` is "cascade.task".

    The text of a record begins with the name of the task, and its label or map index: `convert[notes.txt]: 3 pages`. The record
    has the attributes `run_id`, `task_id`, `task_name`, `trace_id`, `span_id`, `attempt`, `map_index` and `label`. The logger may be
    created anywhere, and works in threads, in coroutines and outside of tasks. Levels and handlers are those of
    `logging.getLogger(name)`.
    """
    return TaskLogger(logging.getLogger(TASK_LOGGER if name is None else name), {})


class _TaskText(str):
    """Text of a record that begins with its task. `plain` is the text of the caller."""

    __slots__ = ("plain",)
    plain: str

    @classmethod
    def of(cls, msg: object, task: TaskContext, *, escapes: bool) -> object:
        """Return a text. `escapes` is whether the text is a format. An object whose `str` fails is returned unchanged."""
        place = task.map_index if task.label is None else task.label
        prefix = printable(task.name if place is None else f"{task.name}[{place}]")
        try:
            plain = str(msg)
        except Exception:  # noqa: BLE001 - `logging` reports the error, and the task continues
            return msg
        text = cls(f"{prefix.replace('%', '%%') if escapes else prefix}: {plain}")
        text.plain = plain
        return text


class JsonFormatter(logging.Formatter):
    """One JSON object per line, in the form of `log_format="json"`.

    The keys are `timestamp` (UTC), `level`, `logger` and `message`; `event_id` for a message of a run; inside tasks the five ids of `CorrelationFilter`,
    with or without that filter; `exception` and `stack`, if any; `data` with the values of `extra`.
    """

    def format(self, record: logging.LogRecord) -> str:
        known = vars(record)
        ids = {**_ids_of(current_task()), **{name: known[name] for name in IDS if name in known}}
        extra = extra_of(record)
        event = {"event_id": extra.pop("event_id")} if record.name == LOGGER and "event_id" in extra else {}
        line = {
            "timestamp": datetime.fromtimestamp(record.created, UTC).isoformat(),
            "level": record.levelname,
            "logger": record.name,
            **event,
            "message": message_of(record),
            **{name: plain(value) for name, value in ids.items() if value},
            **self._failure(record),
        }
        if extra:
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
        if type(record.msg) is _TaskText:  # the task is in the attributes
            return record.msg.plain % record.args if record.args else record.msg.plain
        return str.__str__(record.getMessage())
    except Exception as error:  # noqa: BLE001 - an argument's own __str__ may do anything
        written = record.msg if isinstance(record.msg, str) else f"<{type(record.msg).__qualname__}>"
        return f"{str.__str__(written)} <arguments that cannot be shown: {type(error).__name__}>"


def extra_of(record: logging.LogRecord) -> dict[str, Any]:
    """Return the values of `extra`, with the attributes of a `TaskLogger` that are not empty."""
    found = {name: value for name, value in vars(record).items() if name not in RECORD_FIELDS and isinstance(name, str)}
    return {name: value for name, value in found.items() if name not in OF_TASK or value != ""}


def _of_task(task: TaskContext | None) -> dict[str, Any]:
    if task is None:
        return dict.fromkeys(OF_TASK, "")
    found = (task.attempt or None, task.map_index, task.label)
    return {name: "" if value is None else value for name, value in zip(OF_TASK, found, strict=True)}


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
