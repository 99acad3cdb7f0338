"""Converts values to JSON, and exceptions to text. Secrets are masked before a text is truncated.

No function raises an exception. The only code of the user that is called is `str(exception)`.
"""

import dataclasses
import datetime as dt
import decimal
import enum
import json
import math
import pathlib
import traceback
import uuid
from collections.abc import Iterable, Iterator
from collections.abc import Set as AbstractSet
from functools import lru_cache
from itertools import islice
from typing import Any

from cascade._internal_errors import raise_in_tests
from cascade.telemetry._secret_patterns import MASK, is_masked, mask_mapping, rules_version
from cascade.telemetry.limits import (
    MAX_ERROR_BYTES,
    MAX_NAME_BYTES,
    MAX_STACK_BYTES,
    MAX_VALUE_BYTES,
    truncate,
    truncate_stack,
)
from cascade.telemetry.redact import mask_items, mask_url_at_end, redact_text

MAX_DEPTH = 8
MAX_ITEMS = 100
MAX_TEXT_BYTES = 1_000
_INT_LIMIT = 2**63
_PRINTABLE: tuple[Any, ...] = (
    *(dt.datetime, dt.date, dt.time, dt.timedelta),
    *(decimal.Decimal, uuid.UUID, pathlib.PurePath),
)
_BYTES: tuple[Any, ...] = (bytes, bytearray, memoryview)
_SEQUENCES: tuple[Any, ...] = (list, tuple, set, frozenset)
_KEYS = (str, int, float, bytes, enum.Enum)
_CUT = "…"
_OWN_NOTES = ("task ", "Later, ", "The setup of ")
"""Beginnings of the notes that Cascade adds to exceptions."""
_KINDS = {"params": "params", "arguments": "arguments", "output": "results"}
"""Kind of a captured value, by its key in the metadata."""
_MARGIN = 16 * 1024
"""Characters beyond the limit up to which a whole text is masked."""
_CUT_MARGIN = 1_024
"""Characters beside a cut that are dropped, because they may be a part of a secret."""


def masked(value: str, limit: int) -> str:
    """Return the text with its secrets masked, truncated to `limit` bytes of UTF-8.

    If the text is much longer than the limit, only its beginning is masked and kept.
    """
    if len(value) <= limit + _MARGIN:
        return truncate(redact_text(value), limit)
    return truncate(redact_text(mask_url_at_end(value[: limit + _MARGIN]))[:-_CUT_MARGIN] + _CUT, limit)


def masked_end(value: str, limit: int) -> str:
    """Return the last `limit` characters of the masked text. If the text is much longer, only its end is masked."""
    if len(value) <= limit + _MARGIN:
        return redact_text(value)[-limit:]
    end = value[-limit - _MARGIN :]
    before, marker, rest = end.partition("-----END")
    if marker and "-----BEGIN" not in before:  # the end of a private key that begins before the cut
        return redact_text(MASK + rest)[-limit:]
    return redact_text(end)[_CUT_MARGIN:][-limit:]


def masked_name(name: str) -> str:
    """Return the name of a task, an input or a resource, masked and truncated to `MAX_NAME_BYTES`."""
    return _masked_name(name, rules_version())


def masked_tags(tags: Iterable[str]) -> list[str]:
    """Return the tags of a task or a run, each masked and truncated to `MAX_NAME_BYTES`, without repetitions."""
    return list(dict.fromkeys(map(masked_name, tags)))


@lru_cache(maxsize=4096)
def _masked_name(name: str, version: int) -> str:  # noqa: ARG001 - a part of the cache's key
    return masked(name, MAX_NAME_BYTES)


def error_text(error: BaseException, limit: int = MAX_ERROR_BYTES) -> str:
    """Return an exception as `<type>: <message>`."""
    return truncate(f"{type(error).__name__}: {error_message(error, limit)}", limit)


def error_message(error: BaseException, limit: int = MAX_ERROR_BYTES) -> str:
    """Return the masked message of an exception, truncated to `limit` bytes."""
    try:
        return masked(str.__str__(str(error)), limit)
    except BaseException as broken:  # noqa: BLE001 - an exception's own __str__ may do anything
        return f"<its text raised {type(broken).__name__}>"


def stack_text(error: BaseException, limit: int = MAX_STACK_BYTES, *, indent: bool = False) -> str:
    """Return the masked stack trace of an exception in at most `limit` bytes. A longer one loses its middle.

    With `indent`, the lines after the first one of each message and note are indented, so that they do not look like frames.
    """
    try:
        parts = traceback.format_exception(error)
    except BaseException:  # noqa: BLE001 - the classes of the exception and its causes may do anything
        frames = traceback.format_tb(BaseException.__dict__["__traceback__"].__get__(error))
        parts = ["Traceback (most recent call last):\n", *frames, error_text(error)]
    parts = [part if len(part) <= _MARGIN else masked(part, _MARGIN) + "\n" for part in parts]
    whole = redact_text("".join(_indented(parts) if indent else parts))
    whole = str.encode(whole, "utf-8", "replace").decode()
    return truncate_stack(whole, limit)


def _indented(parts: list[str]) -> Iterator[str]:
    is_note = False  # True after the message of an exception, up to the next traceback
    for part in parts:
        lines = part.removesuffix("\n").split("\n")
        if not lines[0]:  # "During handling of the above exception, …"
            yield part
            is_note = False
            continue
        indented = [line if line.startswith(" ") else f"    {line}" for line in lines]
        is_own = not is_note or part.startswith(_OWN_NOTES)
        yield "\n".join([lines[0], *indented[1:]] if is_own else indented) + "\n"
        is_note = is_note or not lines[0].startswith((" ", "Traceback "))


def sanitize(value: Any, *, depth: int = MAX_DEPTH, items: int = MAX_ITEMS, limit: int = MAX_TEXT_BYTES) -> Any:
    """Return the value as JSON with secrets masked and with limits of depth, items and bytes of texts.

    An object without a JSON form is replaced by the name of its type.
    """
    try:
        return _sanitized(value, depth, items, limit, ())
    except BaseException as error:  # noqa: BLE001 - a subclass of dict or list may do anything
        raise_in_tests(error)
        return _by_type(value)


def captured(value: Any, limit: int = MAX_VALUE_BYTES) -> Any:
    """Return a captured value as JSON of at most `limit` bytes, with secrets masked."""
    depth, items = MAX_DEPTH, MAX_ITEMS
    while True:
        shown = sanitize(value, depth=depth, items=items)
        if len(json.dumps(shown)) <= limit:
            return shown
        if depth <= 1 and items <= 1:
            return f"<{type(value).__module__}.{type(value).__qualname__}, too big>"
        depth, items = max(1, depth // 2), max(1, items // 3)


def without_captured(payload: dict[str, Any], *, keep: AbstractSet[str]) -> dict[str, Any]:
    """Return the payload, or a copy without captured values of other kinds than `keep`: params, arguments, results."""
    metadata = payload["body"].get("metadata", {})
    if _KINDS.keys().isdisjoint(metadata):
        return payload
    unwanted = [key for key, kind in _KINDS.items() if key in metadata and kind not in keep]
    if not unwanted:
        return payload
    kept = {key: value for key, value in metadata.items() if key not in unwanted}
    return {**payload, "body": {**payload["body"], "metadata": kept}}


def _sanitized(value: Any, depth: int, items: int, limit: int, parents: tuple[int, ...]) -> Any:
    # `isinstance` and `match` would read `value.__class__`, which may be code of the user.
    kind = type(value)
    if value is None or kind is bool:
        return value
    if issubclass(kind, enum.Enum):
        return truncate(f"{kind.__name__}.{value._name_}", limit)
    if issubclass(kind, str):
        return masked(str.__str__(value), limit)
    if issubclass(kind, int):
        number = int.__int__(value)
        return number if -_INT_LIMIT <= number < _INT_LIMIT else _big_int(number)
    if issubclass(kind, float):
        real = float.__float__(value)
        return real if math.isfinite(real) else _not_finite(real)
    if (base := _base(kind, _BYTES)) is not None:
        return f"<{kind.__name__}, {base.__len__(value)} B>"
    if (base := _base(kind, _PRINTABLE)) is not None:
        return masked(base.__str__(value), limit)
    if depth == 0 or id(value) in parents:
        return _CUT
    return _container(value, kind, depth - 1, items, limit, (*parents, id(value)))


def _container(value: Any, kind: type[Any], depth: int, items: int, limit: int, parents: tuple[int, ...]) -> Any:
    if issubclass(kind, dict):
        return _mapping(dict.items(value), dict.__len__(value), depth, items, limit, parents)
    if (base := _base(kind, _SEQUENCES)) is not None:
        size = base.__len__(value)
        own_names = _names_of(kind) if base is tuple else ()
        shown = [_sanitized(item, depth, items, limit, parents) for item in islice(base.__iter__(value), items)]
        shown = mask_items(shown, own_names) if base in {list, tuple} else shown
        return shown if size <= items else [*shown, f"{_CUT} {size - items} more"]
    if dataclasses.is_dataclass(kind):
        names = [field.name for field in dataclasses.fields(kind)]
        found = _attributes(value, names)
        return _mapping(((n, found[n]) for n in names if n in found), len(names), depth, items, limit, parents)
    return _by_type(value)


def _names_of(kind: type[Any]) -> tuple[str, ...]:
    """Return the names of the items of a named tuple."""
    names = getattr(kind, "_fields", ())
    return names if type(names) is tuple and all(type(name) is str for name in names) else ()


def _base(kind: type[Any], bases: tuple[Any, ...]) -> Any:
    """Return the first base class of `kind`, or None."""
    return next((base for base in bases if issubclass(kind, base)), None)


def _attributes(value: Any, names: list[str]) -> dict[str, Any]:
    try:
        found: dict[str, Any] = object.__getattribute__(value, "__dict__")
    except AttributeError:  # the class has slots
        return {name: object.__getattribute__(value, name) for name in names}
    return found


def _mapping(
    pairs: Iterable[tuple[Any, Any]], size: int, depth: int, items: int, limit: int, parents: tuple[int, ...]
) -> dict[str, Any]:
    result = {}
    for key, item in islice(pairs, items):
        shown = _sanitized(item, depth, items, limit, parents)
        # A key in bytes is replaced by its length, so that `mask_mapping` cannot check it.
        is_secret_key = issubclass(type(key), bytes) and is_masked(bytes.decode(key, "utf-8", "replace"), shown)
        result[_key(key, limit)] = MASK if is_secret_key else shown
    result = mask_mapping(result)
    if size > items:
        result[_CUT] = f"{size - items} more"
    return result


def _key(key: Any, limit: int) -> str:
    shown = _sanitized(key, 0, 0, limit, ()) if issubclass(type(key), _KEYS) else _by_type(key)
    return shown if isinstance(shown, str) else str(shown)


def _big_int(value: int) -> str:
    # Python does not convert integers of more than 4,300 digits to decimal.
    bits = int.bit_length(value)
    return str(int(value)) if bits < 4_000 else f"<int, {bits} bits>"  # noqa: PLR2004


def _not_finite(value: float) -> str:
    if math.isnan(value):
        return "NaN"
    return "Infinity" if value > 0 else "-Infinity"


def _by_type(value: Any) -> str:
    kind = type(value)
    return truncate(f"<{kind.__module__}.{kind.__qualname__}>", MAX_TEXT_BYTES)
