"""Renderers of messages: lines of text, lines of JSON, or records of `logging`."""

import json
import logging
import math
import re
import sys
import time
from collections.abc import Callable
from typing import Any, TextIO

from cascade._internal_errors import raise_in_tests
from cascade.messaging.bus import MessageStore, current_ids
from cascade.telemetry.redact import redact_text, redact_value
from cascade.telemetry.wire import timestamp

LEVELS = {"DEBUG": 10, "INFO": 20, "WARNING": 30, "ERROR": 40, "OFF": 100}
"""Severity of each level. No message has the level OFF: a renderer with that minimum prints nothing."""

LOGGER = "cascade"
"""Logger of the messages, and the parent of the loggers of Cascade's warnings."""

IDS = ("run_id", "task_id", "task_name", "trace_id", "span_id")
"""The attributes of a record that identify its run and its task."""

# Formatters add `message` and `asctime`; Python 3.12 and later add `taskName`.
_EMPTY = logging.LogRecord("", logging.NOTSET, "", 0, "", (), None)  # not from a factory of the application
RECORD_FIELDS = frozenset({*vars(_EMPTY), *IDS, "message", "asctime", "taskName"})
"""The attributes of a record that are not its `extra`."""

_MAX_DEPTH = 20
_MAX_BITS = 4_000
"""Python does not format integers of more than 4,300 digits."""


def severity(level: object, *, argument: str = "min_level") -> int:
    """Return the severity of a level, given by its name in upper or lower case.

    Raises:
        ValueError: The level is unknown. The text names `argument`, the value and the levels.
    """
    found = LEVELS.get(level.upper()) if isinstance(level, str) else None
    if found is None:
        raise ValueError(f"{argument}={level!r}: choose from {', '.join(LEVELS)}")
    return found


class _LineRenderer:
    """Prints one line for each message of a minimum level to a stream; the default is the current `sys.stderr`."""

    def __init__(self, stream: TextIO | None, min_level: str) -> None:
        self._min_level = severity(min_level)
        self._stream = stream

    def _is_shown(self, level: str) -> bool:
        return LEVELS.get(level.upper(), 0) >= self._min_level

    def _write(self, line: str) -> None:
        stream = sys.stderr if self._stream is None else self._stream
        try:
            try:
                stream.write(f"{line}\n")
            except UnicodeEncodeError:  # the terminal does not use UTF-8
                stream.write(line.encode("ascii", "backslashreplace").decode() + "\n")
            stream.flush()
        except Exception as error:  # noqa: BLE001 - a closed or broken stream must not end the run
            raise_in_tests(error)


class CliRenderer(_LineRenderer):
    """Prints the texts of the store, one line per message, with secrets masked and control characters escaped.

    A message of the level INFO is not printed while `is_displayed` returns True for its id, because a live view on the same
    terminal shows it. With the minimum level DEBUG, all messages are printed.
    """

    def __init__(
        self,
        store: MessageStore,
        stream: TextIO | None = None,
        min_level: str = "INFO",
        *,
        is_displayed: Callable[[str], bool] | None = None,
    ) -> None:
        super().__init__(stream, min_level)
        self._store = store
        self._is_displayed = None if self._min_level < LEVELS["INFO"] else is_displayed

    def render(self, msg_id: str, level: str, **kwargs: Any) -> None:
        if self._is_shown(level) and not (level == "info" and self._is_displayed and self._is_hidden(msg_id)):
            self._write(_text_of(self._store, msg_id, kwargs))

    def _is_hidden(self, msg_id: str) -> bool:
        try:
            return self._is_displayed is not None and self._is_displayed(msg_id) is True
        except Exception as error:  # noqa: BLE001 - a connector of the program must not lose a line
            raise_in_tests(error)
            return False


class JsonRenderer(_LineRenderer):
    """Prints one JSON object per line: `timestamp`, `level`, `event_id`, and `data`, in which secrets are masked.

    It also has the `run_id`, `task_id`, `trace_id` and `span_id` of the message, as far as they are known.
    """

    shows_ids = True

    def __init__(self, stream: TextIO | None = None, min_level: str = "INFO") -> None:
        super().__init__(stream, min_level)

    def render(self, msg_id: str, level: str, **kwargs: Any) -> None:
        if self._is_shown(level):
            now = timestamp(time.time_ns()).replace("Z", "+00:00")
            line = {"timestamp": now, "level": level.upper(), "event_id": msg_id, **current_ids()}
            line["data"] = redact_value(plain(kwargs))
            self._write(as_json(line))


class LoggingRenderer:
    """Passes each message of a minimum level to the logger `cascade` of the `logging` module.

    The level of the logger applies, too. The text of the record is that of `CliRenderer` without the symbol at its start. The
    record has the attribute `event_id`, the five ids `IDS`, which are empty if they are unknown, and the values of the message.
    """

    shows_ids = True

    def __init__(self, store: MessageStore, min_level: str = "INFO") -> None:
        self._store = store
        self._min_level = severity(min_level)
        self._logger = logging.getLogger(LOGGER)

    def render(self, msg_id: str, level: str, **kwargs: Any) -> None:
        number = LEVELS.get(level.upper(), 0)
        if number < self._min_level:
            return
        try:
            if self._logger.isEnabledFor(number):
                values = {n: v for n, v in redact_value(plain(kwargs)).items() if n in IDS or n not in RECORD_FIELDS}
                extra = {**dict.fromkeys(IDS, ""), **current_ids(), **values, "event_id": msg_id}
                text = _SYMBOL.sub("", _text_of(self._store, msg_id, kwargs))
                self._logger.log(number, "%s", text, extra=extra)
        except Exception as error:  # noqa: BLE001 - a handler or filter of the program must not end the run
            raise_in_tests(error)


_SYMBOL = re.compile(r"^[^\x00-\x7f]*\s+")


def _text_of(store: MessageStore, msg_id: str, values: dict[str, Any]) -> str:
    """Return the text of a message, with secrets masked and control characters escaped."""
    shown: dict[str, Any] = {n: v if type(v) is float else _masked(v) for n, v in values.items()}
    return printable(store.get(msg_id, **shown)).removesuffix(": ")  # an exception may have no text: "TimeoutError: "


def _masked(value: Any) -> Any:
    """Mask the secrets in one value of a message. The text around it in the message does not count as a key of the value."""
    if isinstance(value, str):
        return redact_text(value)
    if isinstance(value, (int, float)) or value is None:
        return value
    if isinstance(value, (dict, list)):
        return redact_value(value)
    try:
        return redact_text(str(value))
    except Exception:  # noqa: BLE001 - a value's own __str__ may raise anything; the store describes the error
        return value


def as_json(value: Any) -> str:
    """Return the value as JSON on one line, in printable ASCII characters."""
    return _encode_json(value).replace("\x7f", "\\u007f")


_encode_json = json.JSONEncoder().encode  # `json.dumps` examines eleven arguments at each call


def printable(text: str) -> str:
    """Escape the control characters, line breaks, bidirectional controls and surrogates in a text, as Python does.

    Unescaped, a name or an error text could move the cursor or imitate another line.
    """
    return text if text.isprintable() else _UNPRINTABLE.sub(_escape, text)


_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def _escape(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode("ascii")


def plain(value: Any, above: tuple[int, ...] = ()) -> Any:
    """Convert a value to types of JSON. Other values (NaN, other types, a container of itself) become their repr."""
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, int):
        return value if int.bit_length(value) < _MAX_BITS else f"<int, {int.bit_length(value)} bits>"
    if isinstance(value, float) and math.isfinite(value):
        return value
    if isinstance(value, (dict, list, tuple)) and len(above) < _MAX_DEPTH and id(value) not in above:
        return _plain_container(value, (*above, id(value)))
    return _repr(value)


def _plain_container(value: Any, above: tuple[int, ...]) -> Any:
    if isinstance(value, dict):
        return {k if isinstance(k, str) else _repr(k): plain(v, above) for k, v in value.items()}
    return [plain(item, above) for item in value]


def _repr(value: Any) -> str:
    try:
        return repr(value)
    except Exception:  # noqa: BLE001 - a value's own __repr__ may raise anything
        return f"<{type(value).__name__}: repr failed>"
