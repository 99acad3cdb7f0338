"""Cache of properties of functions that `inspect` needs microseconds to find. It keeps no function alive."""

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

_T = TypeVar("_T")


def hashable_cache(compute: Callable[[Any], _T]) -> Callable[[Any], _T]:
    """Cache `compute(function)` for as long as the function is alive.

    The result must not refer to the function: the entry would keep it alive. A function is compared by identity. The
    result is not cached for an object that defines its own `__eq__` or `__hash__`, or that has no weak references, such
    as a bound method.
    """
    known: WeakKeyDictionary[Any, _T] = WeakKeyDictionary()

    @wraps(compute)
    def cached(function: Any) -> _T:
        kind: Any = type(function)
        if kind.__hash__ is not object.__hash__ or kind.__eq__ is not object.__eq__ or not kind.__weakrefoffset__:
            return compute(function)
        try:
            return known[function]
        except KeyError:
            found = known[function] = compute(function)
            return found

    return cached
