"""How what was run has ended, and what it was, in the words that events and messages have for it."""

import asyncio
from functools import lru_cache
from typing import Any


def result_of(error: BaseException | None) -> str:
    """The word of the CI/CD conventions for how something ended."""
    match error:
        case None:
            return "success"
        case asyncio.CancelledError():
            return "cancellation"
        case TimeoutError():
            return "timeout"
        case _:
            return "failure"


def status_of(result: str) -> str:
    """The events' word for a result."""
    return _STATUS.get(result, "Failed")


_STATUS = {"success": "Succeeded", "cancellation": "Cancelled"}


def name_of(function: Any) -> str:
    """Module and qualified name of a task's function."""
    try:
        return _name_of(function)
    except TypeError:  # a callable that cannot be hashed
        return _find_name(function)


def _find_name(function: Any) -> str:
    return f"{getattr(function, '__module__', '')}.{getattr(function, '__qualname__', '')}".strip(".")


_name_of = lru_cache(maxsize=1024)(_find_name)
