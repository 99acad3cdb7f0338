"""Any value as JSON, any exception as text: nothing here ever raises, and no user code is called but `str(exception)`."""

import dataclasses
import datetime as dt
import decimal
import enum
import math
import pathlib
import traceback
import uuid
from collections.abc import Iterable
from itertools import islice
from typing import Any

from cascade.telemetry.limits import MAX_ERROR_BYTES, MAX_STACK_BYTES

MAX_DEPTH = 8
MAX_ITEMS = 100
MAX_TEXT_BYTES = 1_000
_BIGGEST_INT = 2**63
_PRINTABLE = (dt.date, dt.time, dt.timedelta, decimal.Decimal, uuid.UUID, pathlib.PurePath)
_CUT = "…"


def text(value: str, limit: int) -> str:
    """The string, cut to `limit` bytes of UTF-8; a lone surrogate, which UTF-8 has no form for, becomes `?`."""
    if len(value) * 4 <= limit and value.isascii():
        return value
    encoded = str.encode(value[:limit], "utf-8", "replace")
    if len(encoded) <= limit and len(value) <= limit:
        return encoded.decode()
    room = limit - len(_CUT.encode())
    return encoded[:room].decode("utf-8", "ignore") + _CUT


def error_text(error: BaseException, limit: int = MAX_ERROR_BYTES) -> str:
    """An exception as `<Type>: <message>`."""
    return text(f"{type(error).__name__}: {error_message(error, limit)}", limit)


def error_message(error: BaseException, limit: int = MAX_ERROR_BYTES) -> str:
    try:
        return text(str.__str__(str(error)), limit)
    except BaseException as broken:  # noqa: BLE001 - an exception's own __str__ may do anything
        return f"<its text raised {type(broken).__name__}>"


def stack_text(error: BaseException, limit: int = MAX_STACK_BYTES) -> str:
    """An exception's stack trace; of one that is too long the middle is left out."""
    try:
        whole = "".join(traceback.format_exception(error))
    except BaseException:  # noqa: BLE001 - it calls code of the exception's class, and of its causes
        frames = traceback.format_tb(BaseException.__dict__["__traceback__"].__get__(error))
        whole = "".join(["Traceback (most recent call last):\n", *frames, error_text(error)])
    whole = str.encode(whole, "utf-8", "replace").decode()
    if len(whole) <= limit // 4 or len(whole.encode()) <= limit:
        return whole
    half = (limit - 16) // 2
    encoded = whole.encode()
    head, tail = encoded[:half].decode("utf-8", "ignore"), encoded[-half:].decode("utf-8", "ignore")
    return f"{head}\n  {_CUT}\n{tail}"


def safe(value: Any, *, depth: int = MAX_DEPTH, items: int = MAX_ITEMS, limit: int = MAX_TEXT_BYTES) -> Any:
    """The value as JSON has it, cut in depth, length and text; what JSON has no form for is shown by its type."""
    try:
        return _safe(value, depth, items, limit, ())
    except BaseException:  # noqa: BLE001 - a subclass of dict or list may do anything
        return _by_type(value)


def _safe(value: Any, depth: int, items: int, limit: int, above: tuple[int, ...]) -> Any:
    match value:
        case None | bool():
            return value
        case enum.Enum():
            return text(f"{type(value).__name__}.{value._name_}", limit)
        case str():
            return text(str.__str__(value), limit)
        case int():
            return int(value) if -_BIGGEST_INT <= value < _BIGGEST_INT else _big(value)
        case float():
            return float(value) if math.isfinite(value) else _not_finite(value)
        case bytes() | bytearray() | memoryview():
            return f"<{type(value).__name__}, {len(value)} B>"
        case _ if isinstance(value, _PRINTABLE):
            return text(str(value), limit)
    if depth == 0 or id(value) in above:
        return _CUT
    return _container(value, depth - 1, items, limit, (*above, id(value)))


def _container(value: Any, depth: int, items: int, limit: int, above: tuple[int, ...]) -> Any:
    if isinstance(value, dict):
        return _mapping(dict.items(value), dict.__len__(value), depth, items, limit, above)
    if isinstance(value, (list, tuple, set, frozenset)):
        shown = [_safe(item, depth, items, limit, above) for item in islice(value, items)]
        return shown if len(value) <= items else [*shown, f"{_CUT} {len(value) - items} more"]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in dataclasses.fields(value)]
        found = vars(value) if hasattr(value, "__dict__") else {name: getattr(value, name) for name in names}
        return _mapping(((n, found[n]) for n in names if n in found), len(names), depth, items, limit, above)
    return _by_type(value)


def _mapping(
    pairs: Iterable[tuple[Any, Any]], size: int, depth: int, items: int, limit: int, above: tuple[int, ...]
) -> dict[str, Any]:
    result = {_key(key, limit): _safe(item, depth, items, limit, above) for key, item in islice(pairs, items)}
    if size > items:
        result[_CUT] = f"{size - items} more"
    return result


def _key(key: Any, limit: int) -> str:
    shown = _safe(key, 0, 0, limit, ()) if isinstance(key, (str, int, float, bytes, enum.Enum)) else _by_type(key)
    return shown if isinstance(shown, str) else str(shown)


def _big(value: int) -> str:
    # Python refuses to write integers of more than 4,300 digits in decimal.
    bits = int.bit_length(value)
    return str(int(value)) if bits < 4_000 else f"<int, {bits} bits>"  # noqa: PLR2004


def _not_finite(value: float) -> str:
    if math.isnan(value):
        return "NaN"
    return "Infinity" if value > 0 else "-Infinity"


def _by_type(value: Any) -> str:
    kind = type(value)
    return text(f"<{kind.__module__}.{kind.__qualname__}>", MAX_TEXT_BYTES)
