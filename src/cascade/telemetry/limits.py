"""Limits of messages and spans, and the functions that shorten texts, stack traces, messages and spans to a limit."""

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from cascade.spec.metadata import ExceptionInfo

MAX_NAME_BYTES = 256
"""Bytes of the name of a task, which is the name of a span and a label of dashboards."""
MAX_VALUE_BYTES = 2_000
"""Grafana Tempo truncates the values of attributes at 2,048 bytes by default."""
MAX_ERROR_BYTES = 2_000
MAX_STACK_BYTES = 16 * 1024
"""Bytes of a stack trace: about 150 frames. A longer one loses its middle."""
MAX_LINKS = 128
"""The default limit of the OpenTelemetry SDK for the links of a span."""
MAX_CONTROL_EVENTS = 64
"""Decisions about constraints in the last message and the span of a run: half of the SDK's default limit of events."""
MAX_LATER_ERRORS = 20
"""Errors after the first one, such as those of teardowns, in the last message and the span of a run."""
MAX_FAILURES = 64
"""Failures after which a run continued, in its last message and its span: half of the SDK's default limit of events."""
MAX_FAILURE_BYTES = 500
"""Bytes of the text of such a failure. The span of the task has the whole text."""
MIN_WAIT_NS = 1_000_000
"""Nanoseconds of the shortest wait in a message."""
MAX_TIME = 1e11
"""Unix seconds of the largest valid time, in the year 5138. A time in milliseconds is larger."""
MAX_LISTED_TASKS = 20
"""Running tasks, and waiting tasks, that the retained state of a run lists: one screen of a dashboard."""
MAX_MESSAGE_BYTES = 256 * 1024
"""Between the limits of AWS IoT Core (128 KiB) and Azure Event Grid (512 KiB)."""
SMALL_LIST = 16
"""Entries of `links` and `waits` that fit into any message. A link has at most 8,500 bytes, a wait 3,500."""

# Keys of metadata in the order in which they are removed. Ids, times and states always stay.
_REMOVED_FROM_MESSAGE = (
    *("arguments", "output", "params", "tasks", "inputs", "links", "attempts", "waits", "control", "later_errors"),
    *("failures", "exception", "parts"),
)
_REMOVED_FROM_SPAN = ("output", "arguments", "params", "control", "failures", "waits", "links")
_LARGE = frozenset(_REMOVED_FROM_MESSAGE)
"""Keys that may make a message too large. Most messages have none of them and are not measured."""
_LISTS = frozenset({"links", "waits"})

_CUT = "…"
_MIN_TEXT_BYTES = 200  # of the message and of the stack trace of an exception
_LINK_BYTES = 50
_PART_BYTES = 600  # the link to a part, and the event
_FAILURE_BYTES = 300  # the id, the name and the label of a failed task
_EXCEPTION_BYTES = 150  # the event of an exception, with the names of its attributes


def truncate(value: str, limit: int) -> str:
    """Return the string with at most `limit` bytes of UTF-8. A lone surrogate is replaced by `?`."""
    if len(value) * 4 <= limit and value.isascii():
        return value
    encoded = str.encode(value[:limit], "utf-8", "replace")
    if len(encoded) <= limit and len(value) <= limit:
        return encoded.decode()
    room = limit - len(_CUT.encode())
    return encoded[:room].decode("utf-8", "ignore") + _CUT


def utf8_size(value: str) -> int:
    """Return the number of bytes of a text in UTF-8, without a call of methods that a subclass of str overrides."""
    return str.__len__(value) if str.isascii(value) else len(str.encode(value, "utf-8", "replace"))


def truncate_stack(stack: str, limit: int) -> str:
    """Return a stack trace of at most `limit` bytes: its first line, and the last lines, which have the message.

    Up to a quarter of the limit is used for further lines at the beginning. A last line that is too long loses its end.
    """
    if len(stack) <= limit // 4 or len(stack.encode()) <= limit:
        return stack
    lines, cut = stack.splitlines(keepends=True), f"  {_CUT}\n"
    room = limit - len(cut.encode())
    head = _lines_within(lines[:-1], room // 4) or lines[:1]
    room -= len("".join(head).encode())
    tail = _lines_within(lines[len(head) :][::-1], room)[::-1]
    return truncate("".join([*head, cut, *(tail or [truncate(lines[-1], max(room, 0))])]), limit)


def _lines_within(lines: list[str], room: int) -> list[str]:
    """Return the first lines that have at most `room` bytes together."""
    found = []
    for line in lines:
        room -= len(line.encode())
        if room < 0:
            break
        found.append(line)
    return found


def truncate_exception(exception: ExceptionInfo, room: int) -> ExceptionInfo:
    """Return the exception with its texts truncated to about `room` bytes. At least a line of each text is kept."""
    message, stack = exception.get("message", ""), exception.get("stacktrace", "")
    free = room - exception_size({"type": exception["type"], "message": ""})
    message = truncate(message, max(_MIN_TEXT_BYTES, free // 4))
    return {
        "type": exception["type"],
        "message": message,
        "stacktrace": truncate_stack(stack, max(_MIN_TEXT_BYTES, free - 2 * utf8_size(message))),
    }


def message_size(payload: dict[str, Any]) -> int:
    """Return the number of bytes of an encoded message."""
    return len(json.dumps(payload, separators=(",", ":"), default=str))


def shrink(payload: dict[str, Any], limit: int = MAX_MESSAGE_BYTES) -> dict[str, Any]:
    """Return the message if it is small enough, or a copy without large values. `truncated` lists their keys."""
    metadata = payload["body"].get("metadata", {})
    if _LARGE.isdisjoint(metadata):
        return payload
    large = _LARGE.intersection(metadata)
    # Measuring a message takes as long as encoding it.
    is_small = limit >= MAX_MESSAGE_BYTES and large <= _LISTS and all(len(metadata[key]) <= SMALL_LIST for key in large)
    if is_small or message_size(payload) <= limit:
        return payload
    kept = dict(metadata)
    small = {**payload, "body": {**payload["body"], "metadata": kept}}
    _remove(kept, _REMOVED_FROM_MESSAGE, lambda: message_size(small) <= limit)
    return small


def _remove(metadata: dict[str, Any], keys: Iterable[str], fits: Callable[[], bool]) -> None:
    """Remove keys, in their order, until the metadata fits."""
    for key in keys:
        if key in metadata:
            del metadata[key]
            metadata["truncated"] = [*metadata.get("truncated", ()), key]
            if fits():
                return


def exception_size(exception: ExceptionInfo | None) -> int:
    """Estimate the bytes of an exception in a span. The event and the status have its type and message."""
    if exception is None:
        return 0
    message, stack = exception.get("message", ""), exception.get("stacktrace", "")
    return _EXCEPTION_BYTES + 3 * len(exception["type"]) + 2 * utf8_size(message) + utf8_size(stack)


def spans_size(metadata: Mapping[str, Any], span: int) -> tuple[int, int]:
    """Estimate the spans of a message and their bytes. `span` is the size of a span with its ids and names only."""
    spans, size = 1, span
    size += exception_size(metadata.get("exception"))
    for attempt in metadata.get("attempts", ()):
        spans += 1
        size += span + exception_size(attempt.get("exception"))
    for wait in metadata.get("waits", ()):
        spans += 1
        size += 2 * span if "constraint" in wait else span
    size += sum(_LINK_BYTES + len(link.get("tracestate", "")) for link in metadata.get("links", ()))
    size += sum(exception_size(error) for error in metadata.get("later_errors", ()))
    size += sum(_FAILURE_BYTES + exception_size(failure) for failure in metadata.get("failures", ()))
    size += len(metadata.get("parts", ())) * _PART_BYTES
    for key in ("arguments", "output", "params", "control"):
        if key in metadata:
            size += _value_size(metadata[key])
    return spans, size


def _value_size(value: Any) -> int:
    if isinstance(value, str):
        return min(MAX_VALUE_BYTES, utf8_size(value))
    size = len(json.dumps(value)) if isinstance(value, (dict, list)) else 10
    return size if isinstance(value, list) else min(MAX_VALUE_BYTES, size)


def shrink_spans(metadata: dict[str, Any], span: int, room: int, counted: int = 0) -> None:
    """Shorten the metadata so that its spans have about `room` bytes: first its exceptions, then whole values.

    Attempts up to number `counted` are not shortened. `span` is the argument of `spans_size`.
    """
    attempts = [attempt for attempt in metadata.get("attempts", ()) if attempt["attempt"] > counted]
    holders = [holder for holder in (metadata, *attempts) if "exception" in holder]
    later = metadata.get("later_errors", [])
    exceptions = [holder["exception"] for holder in holders] + later
    if exceptions:
        others = spans_size(metadata, span)[1] - sum(map(exception_size, exceptions))
        each = (room - others) // len(exceptions)
        for holder in holders:
            holder["exception"] = truncate_exception(holder["exception"], each)
        later[:] = [truncate_exception(error, each) for error in later]

    def fits() -> bool:
        return spans_size(metadata, span)[1] <= room

    if not fits():
        _remove(metadata, _REMOVED_FROM_SPAN, fits)
