"""Number and delays of the retries of a task, and the random factor of all delays."""

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Real
from operator import index
from random import SystemRandom
from typing import Any

MAX_DELAY = 86_400.0
"""One day, in seconds. Without it, a delay of one second with a `backoff` of 2 reaches 24 days at the 22nd retry."""

RetryCondition = type[Exception] | Callable[[Exception], bool]
"""A class of errors, or a function that returns True for an error that a task is to retry."""
RetryOn = RetryCondition | Sequence[RetryCondition]

_random = SystemRandom()  # not `random`, which the program may seed and which forked processes share


@dataclass(frozen=True)
class RetryPolicy:
    """Up to `max_attempts` retries after the first call of a task.

    The k-th retry, counted from 1, starts `min(delay * backoff ** (k - 1), max_delay) * (1 - jitter * u)` seconds after
    the failure. `u` is a random number from 0 up to 1, drawn for each retry by a generator that `random.seed` does not
    affect. Jitter only shortens a delay.

    Attributes:
        max_attempts: Number of retries, an integer from 0.
        delay: Seconds before the first retry, from 0 to `max_delay`.
        backoff: Factor between successive delays, from 0. The factor 2 doubles each delay.
        max_delay: Upper limit of a delay in seconds, from 0; one day by default.
        jitter: Maximum share by which a delay is shortened at random, from 0 (none) to 1 (down to no delay).
        retry_on: The errors that are retried: an exception class, a function `error -> bool`, or a sequence of both. An error
            is retried if one of them matches; with None, each `Exception` is. The functions are called in the event loop and
            must not block. If one raises an error, the task fails with its own error and a note. The attribute is None
            or a tuple.

    `asyncio.CancelledError`, `KeyboardInterrupt` and `SystemExit` are never retried.

    Raises:
        TypeError: A value has the wrong type, or a class in `retry_on` is not a subclass of `Exception`.
        ValueError: A value is out of its range, infinite or not a number.
    """

    max_attempts: int
    delay: float = 0.0
    backoff: float = 1.0
    max_delay: float = MAX_DELAY
    jitter: float = 0.0
    retry_on: RetryOn | None = None

    def __post_init__(self) -> None:
        check_retry(self.max_attempts, self.delay, self.backoff, self.max_delay, self.jitter, self.retry_on)
        if self.retry_on is not None:
            object.__setattr__(self, "retry_on", _conditions(self.retry_on))

    def retries(self, error: Exception) -> bool:
        """Return True if the error of an attempt is one that `retry_on` matches.

        Raises:
            Exception: A function of `retry_on` has raised it.
        """
        conditions: Any = self.retry_on
        return conditions is None or any(_matches(condition, error) for condition in conditions)

    def delay_before(self, retry: int) -> float:
        """Return the seconds to wait before the given retry, counted from 1."""
        try:
            delay = float(self.delay) * float(self.backoff) ** (retry - 1) if self.delay else 0.0
        except OverflowError:
            delay = math.inf
        return min(delay, float(self.max_delay)) * (1.0 - self.jitter * _random.random() if self.jitter else 1.0)


def check_retry(
    max_attempts: Any,
    delay: Any,
    backoff: Any,
    max_delay: Any,
    jitter: Any,
    retry_on: Any,
    *,
    owner: str = "RetryPolicy",
    count: str = "max_attempts",
    first: str = "delay",
) -> None:
    """Check the fields of a retry policy. `count` and `first` are the names of `max_attempts` and `delay` in the errors.

    Raises:
        TypeError: A value has the wrong type.
        ValueError: A value is out of its range.
    """
    _check_count(count, max_attempts, owner)
    _check_number(first, delay, _SECONDS, owner=owner)
    _check_number("max_delay", max_delay, _SECONDS, owner=owner)
    _check_number("backoff", backoff, "a finite number from 0, such as 2 to double each delay", owner=owner)
    _check_number("jitter", jitter, "a share from 0 to 1, such as 0.5", maximum=1.0, owner=owner)
    if delay > max_delay:
        raise ValueError(
            f"{owner}: {first}={delay!r} exceeds max_delay={max_delay!r} seconds; "
            "give a shorter delay or a longer max_delay"
        )
    if retry_on is not None:
        conditions = _conditions(retry_on)
        if not conditions:
            raise ValueError(
                f"{owner}: retry_on is empty, so that no error is retried; leave it out to retry each error"
            )
        for condition in conditions:
            _check_condition(condition, owner)


_SECONDS = "a finite number of seconds from 0"


def _conditions(retry_on: Any) -> tuple[RetryCondition, ...]:
    is_sequence = isinstance(retry_on, Sequence) and not isinstance(retry_on, str)
    conditions: tuple[Any, ...] = tuple(retry_on) if is_sequence else (retry_on,)
    return conditions


def _check_condition(condition: Any, owner: str) -> None:
    allowed = "retry_on must have exception classes and functions error -> bool"
    if isinstance(condition, type):
        if not issubclass(condition, Exception):
            reason = "is never retried" if issubclass(condition, BaseException) else "is no exception class"
            raise TypeError(
                f"{owner}: {allowed}, got {condition.__name__}, which {reason}; give subclasses of Exception"
            )
    elif not callable(condition):
        advice = "; give its class" if isinstance(condition, BaseException) else ""
        raise TypeError(f"{owner}: {allowed}, got {_shown(condition)}{advice}")
    elif inspect.iscoroutinefunction(condition):
        raise TypeError(f"{owner}: {allowed}, got a coroutine function; give a plain function")


def _matches(condition: Any, error: Exception) -> bool:
    if isinstance(condition, type):
        return isinstance(error, condition)
    found = condition(error)
    if inspect.iscoroutine(found):
        found.close()  # it is never awaited
        raise TypeError(f"a function of retry_on must return True or False; {condition!r} returned a coroutine")
    return bool(found)


def random_factor(least: float = 0.5) -> float:
    """Return a random factor from `least` to 1 for a delay, so that processes do not retry at the same time."""
    return 1.0 - (1.0 - least) * _random.random()


def checked_seconds(name: str, value: Any) -> float:
    """Return a number of seconds. Raises TypeError or ValueError if it is not a finite number from 0."""
    return _check_number(name, value, _SECONDS)


def checked_timeout(owner: str, value: Any) -> float:
    """Return a timeout in seconds. Raises TypeError or ValueError, with `owner` in the text, if it is not a number above 0."""
    allowed = "a finite number of seconds above 0"
    number = _check_number("timeout", value, allowed, owner=owner)
    if not number:
        raise ValueError(f"{owner}: timeout must be {allowed}, got {_shown(value)}; leave it out for no limit")
    return number


def _check_number(
    name: str, value: Any, allowed: str, *, maximum: float = math.inf, owner: str = "RetryPolicy"
) -> float:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{owner}: {name} must be {allowed}, got {_shown(value)}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not (math.isfinite(number) and 0 <= number <= maximum):
        negative = ", which is negative" if number < 0 else ""
        raise ValueError(f"{owner}: {name} must be {allowed}, got {_shown(value)}{negative}")
    return number


def _check_count(name: str, value: Any, owner: str) -> None:
    allowed = "an integer from 0, the number of retries after the first call"
    try:
        count = index(value)
    except TypeError:
        count = None
    if count is None or isinstance(value, bool):
        raise TypeError(f"{owner}: {name} must be {allowed}, got {_shown(value)}")
    if count < 0:
        raise ValueError(f"{owner}: {name} must be {allowed}, got {_shown(value)}, which is negative")


def _shown(value: Any) -> str:
    return repr(value) if isinstance(value, (bool, int, float, str, type(None))) else f"a {type(value).__name__}"
