"""Cache of properties of functions that `inspect` needs microseconds to find. It keeps no function alive."""

from collections.abc import Callable
from functools import wraps
from types import FunctionType
from typing import Any, TypeVar
from weakref import ref

_T = TypeVar("_T")


def hashable_cache(compute: Callable[[Any], _T]) -> Callable[[Any], _T]:
    """Cache `compute(function)` for as long as the function is alive.

    The result must not refer to the function: the entry would keep it alive. A function is compared by identity. The
    result is not cached for an object that defines its own `__eq__` or `__hash__`, or that has no weak references, such
    as a bound method.
    """
    known: dict[ref[Any], _T] = {}

    def forget(function: ref[Any]) -> None:
        known.pop(function, None)

    @wraps(compute)
    def cached(function: Any) -> _T:
        if type(function) is not FunctionType and not _is_compared_by_identity(type(function)):
            return compute(function)
        found: Any = known.get(ref(function), known)  # `known` itself stands for no entry
        if found is known:
            found = known[ref(function, forget)] = compute(function)
        value: _T = found
        return value

    return cached


def _is_compared_by_identity(kind: Any) -> bool:
    return kind.__hash__ is object.__hash__ and kind.__eq__ is object.__eq__ and bool(kind.__weakrefoffset__)
