"""How messages look: a line for a person, or a line of JSON for a machine."""

import json
import math
import sys
from datetime import UTC, datetime
from typing import Any, TextIO

from cascade.messaging.bus import MessageStore

LEVELS = {"DEBUG": 10, "INFO": 20, "WARNING": 30, "ERROR": 40}


class _LineRenderer:
    """Writes a line for each message from a level up; stderr is looked up anew each time, since it may be replaced."""

    def __init__(self, stream: TextIO | None, min_level: str) -> None:
        if str(min_level).upper() not in LEVELS:
            raise ValueError(f"min_level={min_level!r}: choose from {', '.join(LEVELS)}")
        self._stream = stream
        self._min_level = LEVELS[str(min_level).upper()]

    def _shown(self, level: str) -> bool:
        return LEVELS.get(level.upper(), 0) >= self._min_level

    def _write(self, line: str) -> None:
        stream = self._stream or sys.stderr
        try:
            stream.write(line + "\n")
            stream.flush()
        except UnicodeEncodeError:
            stream.write(line.encode("ascii", "backslashreplace").decode() + "\n")
        except (OSError, ValueError, AttributeError):
            return  # closed, broken or absent: a log that nobody can read must not end the run


class CliRenderer(_LineRenderer):
    """Texts for the terminal, from the store."""

    def __init__(self, store: MessageStore, stream: TextIO | None = None, min_level: str = "INFO") -> None:
        super().__init__(stream, min_level)
        self._store = store

    def render(self, msg_id: str, level: str, **kwargs: Any) -> None:
        if self._shown(level):
            self._write(self._store.get(msg_id, **kwargs))


class JsonRenderer(_LineRenderer):
    """One JSON object per line: `timestamp`, `level`, `event_id`, `data`."""

    def __init__(self, stream: TextIO | None = None, min_level: str = "INFO") -> None:
        super().__init__(stream, min_level)

    def render(self, msg_id: str, level: str, **kwargs: Any) -> None:
        if self._shown(level):
            now = datetime.now(UTC).isoformat()
            record = {"timestamp": now, "level": level.upper(), "event_id": msg_id, "data": _strict(kwargs)}
            self._write(json.dumps(record, default=_shown_by_repr))


def _strict(value: Any, depth: int = 20) -> Any:
    """What JSON has no form for (NaN, keys that are no strings, endless nesting), as its repr."""
    if isinstance(value, float) and not math.isfinite(value):
        return repr(value)
    if depth == 0:
        return _shown_by_repr(value)
    if isinstance(value, dict):
        return {k if isinstance(k, str) else _shown_by_repr(k): _strict(v, depth - 1) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_strict(item, depth - 1) for item in value]
    return value


def _shown_by_repr(value: Any) -> str:
    try:
        return repr(value)
    except Exception:  # noqa: BLE001 - a value's own __repr__ may do anything
        return f"<{type(value).__name__}: repr failed>"
