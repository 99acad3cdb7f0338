"""Options of a task: what `cs.task(...)` accepts. They are the defaults of its calls; chain methods override them."""

import math
from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Literal, SupportsFloat, TypedDict

from cascade.spec.caching import NO_CACHE, Cache, checked_cache
from cascade.spec.constraint import ResourceConstraint, checked_constraints
from cascade.spec.retry import MAX_DELAY, RetryOn, RetryPolicy, check_retry, checked_timeout
from cascade.spec.tags import checked_tags

Label = str | Callable[..., str]
"""A text, or a function that returns a text for the arguments of a call."""

NO_TIMEOUT = math.inf
"""Timeout of a call that overrides the timeout of its task: no limit."""


class CoroutineTaskOptions(TypedDict, total=False):
    """Options of a task of a coroutine function. `cs.task` describes them."""

    name: str | None
    retries: int | None
    retry_delay: float | None
    backoff: float | None
    max_delay: float | None
    jitter: float | None
    retry_on: RetryOn | None
    timeout: float | None
    cache: Cache | Literal[False] | None
    constraints: Mapping[str, SupportsFloat] | ResourceConstraint | None
    label: Label | None
    tags: list[str] | tuple[str, ...] | AbstractSet[str] | None


class TaskOptions(CoroutineTaskOptions, total=False):
    """Options of a task. `cs.task` describes them."""

    threaded: bool | None


@dataclass(frozen=True, slots=True)
class CallOptions:
    """Options of a call: those of its task, of its chain methods, or both together. None is an option that is not given.

    Attributes:
        timeout: Seconds, or `NO_TIMEOUT`.
    """

    retry_policy: RetryPolicy | None = None
    cache_policy: Cache | None = None
    constraints: ResourceConstraint | None = None
    timeout: float | None = None
    label: Label | None = None
    tags: tuple[str, ...] | None = None

    def over(self, defaults: "CallOptions | None") -> "CallOptions":
        """Return these options, and those of `defaults` in place of the options that are not given."""
        if defaults is None:
            return self
        return CallOptions(
            _first(self.retry_policy, defaults.retry_policy),
            _first(self.cache_policy, defaults.cache_policy),
            _first(self.constraints, defaults.constraints),
            _first(self.timeout, defaults.timeout),
            _first(self.label, defaults.label),
            _first(self.tags, defaults.tags),
        )


def _first(value: Any, default: Any) -> Any:
    return default if value is None else value


def call_options(options: Mapping[str, Any]) -> CallOptions | None:
    """Return the options of a task's calls; None if the task has none of them. An option that is None is not given.

    Raises:
        TypeError: An option is unknown, has the wrong type, or needs another one.
        ValueError: A value is out of its range.
    """
    if unknown := options.keys() - _NAMES:
        raise TypeError(_unknown_option(min(unknown)))
    given = {name: value for name, value in options.items() if value is not None}
    found = CallOptions(_retry_policy(given), **{_FIELDS[n]: _CHECKS[n](given[n]) for n in _CHECKS if n in given})
    return None if found == _NONE else found


_NAMES = frozenset(TaskOptions.__annotations__) | frozenset(CoroutineTaskOptions.__annotations__)
_NONE = CallOptions()
_RETRY_FIELDS: dict[str, tuple[str, Any]] = {
    "retry_delay": ("delay", 0.0),
    "backoff": ("backoff", 1.0),
    "max_delay": ("max_delay", MAX_DELAY),
    "jitter": ("jitter", 0.0),
    "retry_on": ("retry_on", None),
}
"""Field of a retry policy and its default, by option."""
_FIELDS = {
    "timeout": "timeout",
    "cache": "cache_policy",
    "constraints": "constraints",
    "label": "label",
    "tags": "tags",
}


def _unknown_option(name: str) -> str:
    close = get_close_matches(name, _NAMES, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"task() has no option {name!r}; {hint}The options are {', '.join(sorted(_NAMES))}"


def _retry_policy(given: Mapping[str, Any]) -> RetryPolicy | None:
    """Return the retry policy of a task.

    Raises:
        TypeError: An option of retries is given without their number.
    """
    used = [name for name in _RETRY_FIELDS if name in given]
    if "retries" not in given:
        if used:
            raise TypeError(f"task(): {used[0]}= has no effect without retries=; add the number of retries, retries=3")
        return None
    values = {field: given.get(name, default) for name, (field, default) in _RETRY_FIELDS.items()}
    check_retry(given["retries"], **values, owner="task()", count="retries", first="retry_delay")
    return RetryPolicy(given["retries"], **values)


def checked_label(label: Label) -> Label:
    """Return a label. Raises TypeError if it is neither a text nor a function."""
    if isinstance(label, str):
        return str.__str__(label)  # a subclass may have no hash
    if callable(label):
        return label
    raise TypeError(f"label must be a text or a function that returns one, got {type(label).__name__}")


_CHECKS: dict[str, Callable[[Any], Any]] = {
    "timeout": lambda value: checked_timeout("task()", value),
    "cache": lambda value: NO_CACHE if value is False else checked_cache(value, "task()"),
    "constraints": lambda value: checked_constraints(value, "task()"),
    "label": checked_label,
    "tags": checked_tags,
}
