"""Constraints, and the pure functions that parse them from a topic and a payload."""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from fnmatch import translate
from functools import lru_cache
from typing import Any, ClassVar, Literal
from urllib.parse import unquote

from cascade.spec.metadata import ConstraintRef
from cascade.telemetry.limits import MAX_NAME_BYTES, MAX_TIME, truncate
from cascade.telemetry.sanitize import masked, masked_name
from cascade.telemetry.wire import InvalidPayload

ScopeKind = Literal["global", "run", "task"]
ConstraintKey = tuple[str, str]
"""Scope and type. At most one constraint applies for each key."""

MAX_COUNT = 1_000_000
"""Maximum of a concurrency limit, of a rate per second and of a burst. A higher number limits nothing."""
MAX_CAPACITY = 1e12
MAX_NAME = 256
"""Maximum length of a constraint id and of a resource name, in characters, because JSON Schema counts characters."""
BURST_SECONDS = 0.05
"""Default burst of a rate: the number of tasks that it allows in this time. Timers have about this accuracy."""

_UNITS = {"s": 1, "m": 60, "h": 3600}
_BLANK = r"[ \t\r\n]*"
_NUMBERS = {
    "s": r"0{0,3}[0-9]{1,6}(\.[0-9]{1,9})?|0{0,2}1000000(\.0{1,9})?",
    "m": r"0?[0-5]?[0-9]{1,7}(\.[0-9]{1,9})?|0?60000000(\.0{1,9})?",
    "h": r"[0-9]{1,9}(\.[0-9]{1,9})?",
}
"""Patterns of numbers with up to 9 digits before and after the point, and at most `MAX_COUNT` per second."""
RATE = _BLANK + "(" + "|".join(f"({number}){_BLANK}/{_BLANK}{unit}" for unit, number in _NUMBERS.items()) + ")" + _BLANK
"""Pattern of a rate per second, minute or hour: `10/s`, `2.5/m`. The syntax is common to Python and ECMA-262."""
ZERO_RATE = r"^[ \t\r\n0.]*/"
_RATE = re.compile(RATE)
_KEYS = ("type", "params", "id", "expires_at")
_WILDCARDS = frozenset("*?[")
_SHOWN = 60


class RefusedError(ValueError):
    """Raised when a message is not a valid constraint. The text names the value and the allowed values."""


@dataclass(frozen=True, slots=True)
class Scope:
    """The tasks that a constraint applies to: all tasks, those of one run, or those whose name matches a pattern.

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
    """The common fields of all constraints.

    `expires_at` is in Unix seconds. A constraint without it applies until it is cleared.
    """

    type: ClassVar[str]
    scope: Scope
    id: str
    expires_at: float | None

    @property
    def key(self) -> ConstraintKey:
        return str(self.scope), self.type

    @property
    def params(self) -> dict[str, Any]:
        return {}

    @property
    def reference(self) -> ConstraintRef:
        """The constraint in the messages of a task that it blocks."""
        return {"scope": masked_name(str(self.scope)), "type": self.type, "id": masked_name(self.id)}


@dataclass(frozen=True, slots=True)
class Pause(Constraint):
    """No task of the scope starts."""

    type = "pause"


@dataclass(frozen=True, slots=True)
class Concurrency(Constraint):
    """At most `limit` tasks of the scope run at once."""

    type = "concurrency"
    limit: int

    @property
    def params(self) -> dict[str, Any]:
        return {"limit": self.limit}


@dataclass(frozen=True, slots=True)
class RateLimit(Constraint):
    """At most `rate` tasks of the scope start per second, and up to `burst` at once after a time without starts.

    `given` is the rate as written in the message.
    """

    type = "rate_limit"
    rate: float
    burst: float
    given: str

    @property
    def params(self) -> dict[str, Any]:
        return {"rate": self.given, "burst": self.burst}


@dataclass(frozen=True, slots=True)
class Capacity(Constraint):
    """The system resource `name` has this capacity."""

    type = "resource"
    name: str
    capacity: float

    @property
    def params(self) -> dict[str, Any]:
        return {"name": self.name, "capacity": self.capacity}


class Matcher:
    """Matches the tasks of a scope.

    Raises:
        RefusedError: The pattern is invalid.
    """

    __slots__ = ("_matches", "_scope")

    def __init__(self, scope: Scope) -> None:
        self._scope = scope
        self._matches: Callable[[str], object] | None = None
        if scope.kind == "task" and not scope.is_name:
            try:
                self._matches = re.compile(translate(scope.name)).match
            except re.error as error:
                raise RefusedError(f"the pattern {_shown(scope.name)} is invalid: {error}") from None

    def __call__(self, run_ids: tuple[str, ...], name: str) -> bool:
        """Return True if the scope contains a task of this name.

        `run_ids` are the ids of its run and of the enclosing runs.
        """
        match self._scope.kind:
            case "global":
                return True
            case "run":
                return self._scope.name in run_ids
            case "task":
                return name == self._scope.name or (self._matches is not None and self._matches(name) is not None)


def parse_topic(topic: str, prefix: str) -> tuple[Scope, str]:
    """Return the scope and the type of a topic below `prefix`, which ends with `constraints/`.

    Raises:
        RefusedError: The topic has no valid scope.
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
        RefusedError: The message is invalid.
    """
    if isinstance(payload, InvalidPayload):
        raise RefusedError(payload.reason)
    if not isinstance(payload, Mapping):
        raise RefusedError(f"it must be a JSON object, not {type(payload).__name__}")
    parse = _PARSERS_BY_TYPE.get(kind)
    if parse is None:
        raise RefusedError(f"the topic's type {_shown(kind)} is unknown: choose from {', '.join(CONSTRAINT_TYPES)}")
    if payload.get("type") != kind:
        raise RefusedError(f"type {_shown(payload.get('type'))} differs from the type of the topic, {kind!r}")
    _check_keys(payload, "", _KEYS)
    params = payload.get("params")
    if not isinstance(params, dict) and not (params is None and kind == "pause"):
        raise RefusedError(f"params must be an object, got {_shown(params)}")
    return parse(scope, _id(payload.get("id", kind)), _time(payload.get("expires_at")), params or {})


def _pause(scope: Scope, own_id: str, expires_at: float | None, params: dict[str, Any]) -> Pause:
    _check_keys(params, " in params")
    return Pause(scope, own_id, expires_at)


def _concurrency(scope: Scope, own_id: str, expires_at: float | None, params: dict[str, Any]) -> Concurrency:
    _check_keys(params, " in params", ("limit",))
    given = params.get("limit")
    limit = _integer(given)
    if limit is None or not 1 <= limit <= MAX_COUNT:
        raise RefusedError(
            f"limit must be an integer from 1 to {MAX_COUNT:,}, got {_shown(given)}; use pause to stop all tasks"
        )
    return Concurrency(scope, own_id, expires_at, limit)


def _rate_limit(scope: Scope, own_id: str, expires_at: float | None, params: dict[str, Any]) -> RateLimit:
    _check_keys(params, " in params", ("rate", "burst"))
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
    _check_keys(params, " in params", ("name", "capacity"))
    if scope.kind == "task":
        raise RefusedError("a resource is common to all tasks: use the scope global or run/{run_id}")
    name: Any = params.get("name")
    capacity: Any = params.get("capacity")
    if not isinstance(name, str) or not 1 <= len(name) <= MAX_NAME:
        raise RefusedError(f"name must be a resource name of 1 to {MAX_NAME} characters, got {_shown(name)}")
    if not _is_number(capacity) or not 0 <= capacity <= MAX_CAPACITY:
        raise RefusedError(f"capacity must be a number from 0 to {MAX_CAPACITY:g}, got {_shown(capacity)}")
    return Capacity(scope, own_id, expires_at, name, float(capacity))


_PARSERS: dict[type[Constraint], Callable[[Scope, str, float | None, dict[str, Any]], Constraint]] = {
    Pause: _pause,
    Concurrency: _concurrency,
    RateLimit: _rate_limit,
    Capacity: _capacity,
}
_PARSERS_BY_TYPE = {kind.type: parse for kind, parse in _PARSERS.items()}
CONSTRAINT_CLASSES = tuple(_PARSERS)
CONSTRAINT_TYPES = tuple(_PARSERS_BY_TYPE)


def _decoded(level: str) -> str:
    try:
        name = unquote(level, errors="strict")
    except UnicodeDecodeError:
        raise RefusedError(f"{_shown(level)} is not percent-encoded UTF-8") from None
    if not name or len(name.encode("utf-8", "replace")) > MAX_NAME_BYTES:
        raise RefusedError(f"a name or pattern must have 1 to {MAX_NAME_BYTES} bytes, got {_shown(name)}")
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
    """Return the integer value of a JSON number, as in `4.0` and `4e0` (JSON Schema, 6.1.1). None for another value."""
    if isinstance(value, float):
        return int(value) if value.is_integer() else None
    return value if type(value) is int else None


def _rate(value: Any) -> float:
    """Return the starts per second; 0 for an invalid rate."""
    if not isinstance(value, str) or not _RATE.fullmatch(value):
        return 0.0
    number, unit = value.split("/")
    return float(number) / _UNITS[unit.strip()]


def _check_keys(found: Mapping[str, Any], location: str, known: tuple[str, ...] = ()) -> None:
    if not found.keys() <= set(known):
        key: Any = min((key for key in found if key not in known), key=repr)
        near = _near(str(key)[:_SHOWN].lower(), known)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        allowed = ", ".join(known) or "none"
        raise RefusedError(f"unknown key {_shown(key)}{location}{hint}; allowed keys: {allowed}")


@lru_cache(maxsize=256)  # many messages may have the same fault
def _near(key: str, known: tuple[str, ...]) -> list[str]:
    return get_close_matches(key, known, 1)


def _shown(value: Any) -> str:
    """Return a short text for a value of a message, which may be very long."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > 10**_SHOWN:
        return "a huge number"
    if isinstance(value, str):
        return truncate(repr(masked(value, _SHOWN)), _SHOWN)
    return masked(repr(value[:_SHOWN] if isinstance(value, list) else value), _SHOWN)
