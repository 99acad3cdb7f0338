"""Answers about functions, which `inspect` takes a microsecond and more for, found once."""

from collections.abc import Callable
from functools import lru_cache, wraps
from typing import Any, TypeVar

_T = TypeVar("_T")


def remembered(question: Callable[[Any], _T]) -> Callable[[Any], _T]:
    """The question, which is asked anew only of a callable that cannot be hashed."""
    known = lru_cache(maxsize=4096)(question)

    @wraps(question)
    def ask(function: Any) -> _T:
        try:
            return known(function)
        except TypeError:
            return question(function)

    return ask
