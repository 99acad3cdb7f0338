"""Renderers of messages: lines of text, or lines of JSON."""

import json
import math
import re
import sys
from datetime import UTC, datetime
from typing import Any, TextIO

from cascade.messaging.bus import MessageStore
from cascade.messaging.subject import subject_ids
from cascade.telemetry.redact import redact_text, redact_value

LEVELS = {"DEBUG": 10, "INFO": 20, "WARNING": 30, "ERROR": 40, "OFF": 100}
"""The severity of each level. No message has the level OFF, so a renderer with that minimum prints nothing."""

_MAX_DEPTH = 20
_MAX_BITS = 4_000
"""Python writes no integers of more than 4,300 digits."""


def severity(level: object, *, argument: str = "min_level") -> int:
    """The severity of a level, which is a name in upper or lower case.

    Raises:
        ValueError: There is no such level. The text names `argument`, the value and the levels.
    """
    found = LEVELS.get(level.upper()) if isinstance(level, str) else None
    if found is None:
        raise ValueError(f"{argument}={level!r}: choose from {', '.join(LEVELS)}")
    return found


class _LineRenderer:
    """Writes a line for each message of a minimum level. Without a stream, it uses the `sys.stderr` of the moment."""

    def __init__(self, stream: TextIO | None, min_level: str) -> None:
        self._min_level = severity(min_level)
        self._stream = stream

    def _shown(self, level: str) -> bool:
        return LEVELS.get(level.upper(), 0) >= self._min_level

    def _write(self, line: str) -> None:
        stream = sys.stderr if self._stream is None else self._stream
        try:
            _write_line(stream, line)
            stream.flush()
        except Exception:  # noqa: BLE001 - closed, broken, absent, or an object of the program: it must not end the run
            return


class CliRenderer(_LineRenderer):
    """Writes the texts of the store, one line for each message, with secrets masked and control characters escaped."""

    def __init__(self, store: MessageStore, stream: TextIO | None = None, min_level: str = "INFO") -> None:
        super().__init__(stream, min_level)
        self._store = store

    def render(self, msg_id: str, level: str, **kwargs: Any) -> None:
        if self._shown(level):
            # An exception may have no text: "TimeoutError: ".
            shown = {name: _masked(value) for name, value in kwargs.items()}
            self._write(printable(self._store.get(msg_id, **shown)).removesuffix(": "))


class JsonRenderer(_LineRenderer):
    """Writes one JSON object per line: `timestamp`, `level`, `event_id`, and `data`, in which secrets are masked.

    Before `data` it has the `run_id`, `task_id`, `trace_id` and `span_id` of the message, as far as they are known.
    """

    shows_subject = True

    def __init__(self, stream: TextIO | None = None, min_level: str = "INFO") -> None:
        super().__init__(stream, min_level)

    def render(self, msg_id: str, level: str, **kwargs: Any) -> None:
        if self._shown(level):
            now = datetime.now(UTC).isoformat()
            head = {"timestamp": now, "level": level.upper(), "event_id": msg_id}
            self._write(as_json({**head, **subject_ids(), "data": redact_value(plain(kwargs))}))


def _masked(value: Any) -> Any:
    """A value of a message. It is masked by itself: a name before it in the message's text is no key of it."""
    if isinstance(value, (str, dict, list)):
        return redact_value(value)
    if isinstance(value, (int, float)) or value is None:
        return value
    try:
        return redact_text(str(value))
    except Exception:  # noqa: BLE001 - a value's own __str__ may do anything; the store describes the error
        return value


def as_json(value: Any) -> str:
    """The value as JSON on one line, of printable ASCII characters only."""
    return json.dumps(value).replace("\x7f", "\\u007f")


def printable(text: str) -> str:
    """The text with its control characters, line breaks, bidirectional controls and surrogates as Python escapes.

    Unescaped, a name or an error could move the cursor or imitate another line.
    """
    return text if text.isprintable() else _UNPRINTABLE.sub(_escape, text)


_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def _escape(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode("ascii")


def _write_line(stream: TextIO, line: str) -> None:
    try:
        stream.write(f"{line}\n")
    except UnicodeEncodeError:  # a terminal that is not in UTF-8
        stream.write(line.encode("ascii", "backslashreplace").decode() + "\n")


def plain(value: Any, above: tuple[int, ...] = ()) -> Any:
    """The value as JSON. A value without a JSON form (NaN, another type, a container of itself) becomes its repr."""
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, int):
        return value if int.bit_length(value) < _MAX_BITS else f"<int, {int.bit_length(value)} bits>"
    if isinstance(value, float) and math.isfinite(value):
        return value
    if isinstance(value, (dict, list, tuple)) and len(above) < _MAX_DEPTH and id(value) not in above:
        return _plain_container(value, (*above, id(value)))
    return _shown_by_repr(value)


def _plain_container(value: Any, above: tuple[int, ...]) -> Any:
    if isinstance(value, dict):
        return {k if isinstance(k, str) else _shown_by_repr(k): plain(v, above) for k, v in value.items()}
    return [plain(item, above) for item in value]


def _shown_by_repr(value: Any) -> str:
    try:
        return repr(value)
    except Exception:  # noqa: BLE001 - a value's own __repr__ may do anything
        return f"<{type(value).__name__}: repr failed>"
