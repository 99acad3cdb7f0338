"""Values that `.map` takes as a list: iterable, and in an order."""

from collections import UserString
from collections.abc import Mapping, MappingView
from collections.abc import Set as AbstractSet
from typing import Any

from cascade.spec.lazy_types import LazyResult, MappedLazyResult
from cascade.spec.resource import Inject
from cascade.spec.routing import Router

_CONSTANT = "for the same value in each call, give [value] * n"


def require_literal_items(lists: Mapping[str, Any], owner: str) -> None:
    """Raise TypeError unless each argument of a `.map` is lazy or has items in an order."""
    for name, value in lists.items():
        if not issubclass(type(value), (LazyResult, MappedLazyResult, Router)):
            require_items(value, f"{owner}: '{name}'", is_alone=len(lists) == 1)


def require_items(value: object, place: str, *, is_alone: bool = True) -> None:
    """Raise TypeError unless the value has items in an order. It calls no method of the value.

    The order of a set is arbitrary, so a set is accepted only as the one argument of a map.
    """
    kind = type(value)
    if issubclass(kind, (list, tuple)):
        return
    if issubclass(kind, (str, UserString, bytes, bytearray, memoryview)):
        part = "character" if issubclass(kind, (str, UserString)) else "byte"
        reason = f"which would be one call for each {part}; {_CONSTANT}"
    elif issubclass(kind, Mapping):
        reason = "which has no list of values: give list(d), list(d.values()) or list(d.items())"
    elif issubclass(kind, AbstractSet) and not is_alone and not issubclass(kind, MappingView):
        reason = "which has no order that matches the other arguments: give sorted(...) or list(...)"
    elif issubclass(kind, Inject):
        reason = "which is one value for all calls: make it the default of the parameter"
    elif hasattr(kind, "__dataframe__") or hasattr(kind, "iterrows"):
        reason = "which iterates over its columns: give one list for each parameter, such as list(frame['name'])"
    elif hasattr(kind, "__iter__") or hasattr(kind, "__getitem__"):
        return
    else:
        reason = _CONSTANT
    raise TypeError(f"{place} must be a list, got {kind.__name__}: {reason}")
