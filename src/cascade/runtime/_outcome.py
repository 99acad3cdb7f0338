"""How what was run has ended, and what it was, in the words that events and messages have for it."""

import asyncio
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
    return f"{getattr(function, '__module__', '')}.{getattr(function, '__qualname__', '')}".strip(".")
