"""Lazy results inside an argument's value: find them, and put their values in their place.

Both walk lists, tuples (named ones too), dicts and dataclass instances, with a stack of their own or one level per
level of nesting; a value without lazy results is never copied.
"""

from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass, replace
from typing import Any

from cascade.spec.lazy_types import LazyResult, MappedLazyResult
from cascade.spec.resource import Inject

LAZY = (LazyResult, MappedLazyResult)
_ATOMS = frozenset({str, int, float, bool, bytes, type(None), Inject})


def lazy_results_in(value: Any) -> Iterator[Any]:
    """Yield each lazy result nested in `value`, in order; one that stands there twice comes twice."""
    stack = [value]
    open_ids: set[int] = set()  # a literal may contain itself
    while stack:
        current = stack.pop()
        if type(current) in _ATOMS:
            continue
        if isinstance(current, LAZY):
            yield current
        elif (parts := _parts(current)) and id(current) not in open_ids:
            open_ids.add(id(current))
            stack.extend(reversed(parts))


def substitute(value: Any, value_of: Callable[[Any], Any]) -> Any:
    """`value` with each nested lazy result replaced by `value_of(lazy result)`."""
    if isinstance(value, LAZY):
        return value_of(value)
    if isinstance(value, dict):
        return {substitute(key, value_of): substitute(item, value_of) for key, item in value.items()}
    if isinstance(value, tuple):
        items = [substitute(item, value_of) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
    if isinstance(value, list):
        return [substitute(item, value_of) for item in value]
    if is_dataclass(value) and not isinstance(value, type):
        changed = {f.name: substitute(getattr(value, f.name), value_of) for f in fields(value) if f.init}
        return replace(value, **changed)
    return value


def _parts(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [*value.keys(), *value.values()]
    if isinstance(value, (list, tuple)):
        return list(value)
    if is_dataclass(value) and not isinstance(value, type):
        return [getattr(value, f.name, None) for f in fields(value)]
    return []
