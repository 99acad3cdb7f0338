"""Constraints, and pure functions that read them from a topic and a payload. Invalid input is refused with a reason."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from fnmatch import translate
from functools import lru_cache
from typing import Any, Literal, get_args
from urllib.parse import unquote

from cascade.spec.metadata import ConstraintRef
from cascade.telemetry.limits import MAX_NAME_BYTES, MAX_TIME, truncate
from cascade.telemetry.safe import masked, masked_name
from cascade.telemetry.wire import InvalidPayload

ScopeKind = Literal["global", "run", "task"]

MAX_COUNT = 1_000_000
"""Tasks at once, starts per second, and starts in a burst. A higher number limits nothing."""
MAX_CAPACITY = 1e12
MAX_NAME = 256
"""Characters of an id or of a resource's name. JSON Schema counts characters, not bytes."""
BURST_SECONDS = 0.05
"""A rate without a burst is even: the tasks of this time may start at once, since timers are no more exact."""

_UNITS = {"s": 1, "m": 60, "h": 3600}
_BLANK = r"[ \t\r\n]*"
_NUMBERS = {
    "s": r"0{0,3}[0-9]{1,6}(\.[0-9]{1,9})?|0{0,2}1000000(\.0{1,9})?",
    "m": r"0?[0-5]?[0-9]{1,7}(\.[0-9]{1,9})?|0?60000000(\.0{1,9})?",
    "h": r"[0-9]{1,9}(\.[0-9]{1,9})?",
}
"""Numbers of up to 9 digits, with up to 9 more after the point, that are at most `MAX_COUNT` per second."""
RATE = _BLANK + "(" + "|".join(f"({number}){_BLANK}/{_BLANK}{unit}" for unit, number in _NUMBERS.items()) + ")" + _BLANK
"""A whole number or a fraction per second, minute or hour: `10/s`, `2.5/m`. The syntax is common to Python and ECMA-262."""
ZERO_RATE = r"^[ \t\r\n0.]*/"
_RATE = re.compile(RATE)
_KEYS = ("type", "params", "id", "expires_at")
_WILDCARDS = frozenset("*?[")
_SHOWN = 60


class RefusedError(ValueError):
    """Raised when a message is no constraint; the text says why, and what would be one."""


@dataclass(frozen=True, slots=True)
class Scope:
    """Tasks that a constraint applies to: all, those of one run, or those whose name is, or matches, a pattern.

    `is_name` is true for one task name without a wildcard.
    """

    kind: ScopeKind
    name: str = ""
    is_name: bool = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "is_name", self.kind == "task" and _WILDCARDS.isdisjoint(self.name))

    def __str__(self) -> str:
        return f"{self.kind}/{self.name}" if self.name else self.kind


@dataclass(frozen=True, slots=True)
class Constraint:
    """The common fields of all constraints. `expires_at` is in Unix seconds; None lasts until it is cleared."""

    scope: Scope
    id: str
    expires_at: float | None

    @property
    def type(self) -> str:
        return TYPES[type(self)]

    @property
    def params(self) -> dict[str, Any]:
        return {}

    @property
    def description(self) -> ConstraintRef:
        """The constraint in the messages of a task that waits for it."""
        return {"scope": masked_name(str(self.scope)), "type": self.type, "id": masked_name(self.id)}


@dataclass(frozen=True, slots=True)
class Pause(Constraint):
    """No task of the scope starts."""


@dataclass(frozen=True, slots=True)
class Concurrency(Constraint):
    """At most `limit` tasks of the scope run at once."""

    limit: int

    @property
    def params(self) -> dict[str, Any]:
        return {"limit": self.limit}


@dataclass(frozen=True, slots=True)
class RateLimit(Constraint):
    """At most `rate` tasks start per second, and up to `burst` at once after a time without starts; `given` is the text of the message."""

    rate: float
    burst: float
    given: str

    @property
    def params(self) -> dict[str, Any]:
        return {"rate": self.given, "burst": self.burst}


@dataclass(frozen=True, slots=True)
class Capacity(Constraint):
    """The system resource `name` has this capacity."""

    name: str
    capacity: float

    @property
    def params(self) -> dict[str, Any]:
        return {"name": self.name, "capacity": self.capacity}


def parse_topic(topic: str, prefix: str) -> tuple[Scope, str]:
    """Scope and type from a topic below `prefix`, which ends with `constraints/`.

    Raises:
        RefusedError: The topic names no scope.
    """
    match topic.removeprefix(prefix).split("/"):
        case ["global", kind]:
            return Scope("global"), kind
        case ["run", name, kind]:
            return Scope("run", _decoded(name)), kind
        case ["task", name, kind]:
            return Scope("task", _decoded(name)), kind
    raise RefusedError("the topic must end with global/{type}, run/{run_id}/{type} or task/{name}/{type}")


def parse_constraint(scope: Scope, kind: str, payload: Mapping[str, Any]) -> Constraint:
    """Return the constraint that a message contains.

    Args:
        scope: The scope of the message's topic.
        kind: The type of the message's topic.
        payload: The JSON object of the message. It is valid if the JSON Schema of constraints accepts it, its type is
            that of the topic, and the type exists for the scope.

    Raises:
        RefusedError: The message is invalid. The text names the value and what is allowed.
    """
    if isinstance(payload, InvalidPayload):
        raise RefusedError(payload.reason)
    if not isinstance(payload, Mapping):
        raise RefusedError(f"it must be a JSON object, not {type(payload).__name__}")
    reader = _READERS.get(kind)
    if reader is None:
        raise RefusedError(f"the topic's type {_shown(kind)} is unknown: choose from {', '.join(_READERS)}")
    if payload.get("type") != kind:
        raise RefusedError(f"type {_shown(payload.get('type'))} does not agree with the topic's, {kind!r}")
    _check_keys(payload)
    params = payload.get("params")
    if not isinstance(params, dict) and not (params is None and kind == "pause"):
        raise RefusedError(f"params must be an object, got {_shown(params)}")
    return reader(scope, _id(payload.get("id", kind)), _time(payload.get("expires_at")), params or {})


class Matcher:
    """Matches the tasks of a scope.

    Raises:
        RefusedError: The pattern cannot be used.
    """

    __slots__ = ("_matches", "_scope")

    def __init__(self, scope: Scope) -> None:
        self._scope = scope
        self._matches: Callable[[str], object] | None = None
        if scope.kind == "task" and not scope.is_name:
            try:
                self._matches = re.compile(translate(scope.name)).match
            except re.error as error:
                raise RefusedError(f"the pattern {_shown(scope.name)} cannot be used: {error}") from None

    def __call__(self, run_ids: tuple[str, ...], name: str) -> bool:
        """Return True if the scope covers a task: its name, and the ids of its run and of the runs around that."""
        match self._scope.kind:
            case "global":
                return True
            case "run":
                return self._scope.name in run_ids
            case "task":
                return name == self._scope.name or (self._matches is not None and self._matches(name) is not None)


def _pause(scope: Scope, own_id: str, expires_at: float | None, params: dict[str, Any]) -> Pause:
    _only(params)
    return Pause(scope, own_id, expires_at)


def _concurrency(scope: Scope, own_id: str, expires_at: float | None, params: dict[str, Any]) -> Concurrency:
    _only(params, "limit")
    given = params.get("limit")
    limit = _integer(given)
    if limit is None or not 1 <= limit <= MAX_COUNT:
        raise RefusedError(
            f"limit must be an integer from 1 to {MAX_COUNT:,}, got {_shown(given)}; use pause to stop all tasks"
        )
    return Concurrency(scope, own_id, expires_at, limit)


def _rate_limit(scope: Scope, own_id: str, expires_at: float | None, params: dict[str, Any]) -> RateLimit:
    _only(params, "rate", "burst")
    given: Any = params.get("rate")
    rate = _rate(given)
    if not rate:
        raise RefusedError(
            f"rate must be like '10/s', '2.5/m' or '1/h', above zero and up to {MAX_COUNT:,}/s, got {_shown(given)}"
        )
    burst: Any = params.get("burst")
    if burst is None:
        burst = max(1.0, rate * BURST_SECONDS)
    elif not _is_number(burst) or not 1 <= burst <= MAX_COUNT:
        raise RefusedError(f"burst must be a number from 1 to {MAX_COUNT:,}, got {_shown(burst)}")
    return RateLimit(scope, own_id, expires_at, rate, float(burst), given.strip())


def _capacity(scope: Scope, own_id: str, expires_at: float | None, params: dict[str, Any]) -> Capacity:
    _only(params, "name", "capacity")
    if scope.kind == "task":
        raise RefusedError("a resource belongs to all tasks: use the scope global or run/{run_id}")
    name: Any = params.get("name")
    capacity: Any = params.get("capacity")
    if not isinstance(name, str) or not 1 <= len(name) <= MAX_NAME:
        raise RefusedError(f"name must be a resource's name, up to {MAX_NAME} characters, got {_shown(name)}")
    if not _is_number(capacity) or not 0 <= capacity <= MAX_CAPACITY:
        raise RefusedError(f"capacity must be a number from 0 to {MAX_CAPACITY:g}, got {_shown(capacity)}")
    return Capacity(scope, own_id, expires_at, name, float(capacity))


_READERS: dict[str, Callable[[Scope, str, float | None, dict[str, Any]], Constraint]] = {
    "pause": _pause,
    "concurrency": _concurrency,
    "rate_limit": _rate_limit,
    "resource": _capacity,
}
TYPES: dict[type[Constraint], str] = {
    Pause: "pause",
    Concurrency: "concurrency",
    RateLimit: "rate_limit",
    Capacity: "resource",
}
CONSTRAINT_TYPES = tuple(_READERS)
assert set(TYPES.values()) == set(_READERS)  # noqa: S101 - two views of the same
assert get_args(ScopeKind) == ("global", "run", "task")  # noqa: S101 - what parse_topic knows


def _decoded(level: str) -> str:
    try:
        name = unquote(level, errors="strict")
    except UnicodeDecodeError:
        raise RefusedError(f"{_shown(level)} is not percent-encoded UTF-8") from None
    if not name or len(name.encode("utf-8", "replace")) > MAX_NAME_BYTES:
        raise RefusedError(f"a name or pattern has 1 to {MAX_NAME_BYTES} bytes, got {_shown(name)}")
    return name


def _id(value: Any) -> str:
    if not isinstance(value, str) or len(value) > MAX_NAME:
        raise RefusedError(f"id must be a string of up to {MAX_NAME} characters, got {_shown(value)}")
    return truncate(value, MAX_NAME_BYTES)


def _time(value: Any) -> float | None:
    if value is None:
        return None
    if not _is_number(value) or not 0 <= value <= MAX_TIME:
        raise RefusedError(f"expires_at must be in Unix seconds, got {_shown(value)}")
    return float(value)


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return isinstance(value, int) or math.isfinite(value)


def _integer(value: Any) -> int | None:
    """The integer that a JSON number is: `4.0` and `4e0` are integers too (JSON Schema, 6.1.1). None for all else."""
    if isinstance(value, float):
        return int(value) if value.is_integer() else None
    return value if type(value) is int else None


def _rate(value: Any) -> float:
    """Starts per second; 0 for a value that is no rate."""
    if not isinstance(value, str) or not _RATE.fullmatch(value):
        return 0.0
    number, unit = value.split("/")
    return float(number) / _UNITS[unit.strip()]


def _check_keys(payload: Mapping[str, Any]) -> None:
    if not payload.keys() <= set(_KEYS):
        key = _first_unknown(payload, _KEYS)
        raise RefusedError(f"the key {_shown(key)} is unknown{_hint(key, _KEYS)}: allowed are {', '.join(_KEYS)}")


def _only(params: Mapping[str, Any], *known: str) -> None:
    if not params.keys() <= set(known):
        key = _first_unknown(params, known)
        takes = f"takes {' and '.join(known)}" if known else "takes none"
        raise RefusedError(f"params has {_shown(key)}: this type {takes}{_hint(key, known)}")


def _first_unknown(found: Mapping[str, Any], known: Sequence[str]) -> Any:
    return min((key for key in found if key not in known), key=repr)


def _hint(key: Any, known: tuple[str, ...]) -> str:
    near = _near(str(key)[:_SHOWN].lower(), known)
    return f" (did you mean {near[0]!r}?)" if near else ""


@lru_cache(maxsize=256)  # a flood of messages with the same fault
def _near(key: str, known: tuple[str, ...]) -> list[str]:
    return get_close_matches(key, known, 1)


def _shown(value: Any) -> str:
    """A hostile value must not fill the message that refuses it."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > 10**_SHOWN:
        return "a huge number"
    if isinstance(value, str):
        return truncate(repr(masked(value, _SHOWN)), _SHOWN)
    return masked(repr(value[:_SHOWN] if isinstance(value, list) else value), _SHOWN)
