"""Parameters of functions: which ones get resources, and the names of positional arguments."""

import inspect
from collections.abc import Callable, Iterable, Mapping
from functools import wraps
from types import FunctionType
from typing import Any, NamedTuple, TypeVar
from weakref import ref

from cascade.spec.resource import Inject

_T = TypeVar("_T")


class InjectedParameter(NamedTuple):
    """Parameter whose default is an `Inject`. `position` is None for a keyword-only parameter."""

    position: int | None
    positional_only: bool
    resource_name: str


def hashable_cache(compute: Callable[[Any], _T]) -> Callable[[Any], _T]:
    """Cache `compute(function)` for the lifetime of the function: `inspect` needs microseconds.

    The result must not refer to the function, because the entry would keep it alive. Results are not cached for an object
    that defines `__eq__` or `__hash__`, or has no weak references, such as a bound method.
    """
    known: dict[ref[Any], _T] = {}

    def forget(function: ref[Any]) -> None:
        known.pop(function, None)

    @wraps(compute)
    def cached(function: Any) -> _T:
        if type(function) is not FunctionType and not _is_compared_by_identity(type(function)):
            return compute(function)
        found: Any = known.get(ref(function), known)  # `known` is the marker for no entry
        if found is known:
            found = known[ref(function, forget)] = compute(function)
        value: _T = found
        return value

    return cached


def _is_compared_by_identity(kind: Any) -> bool:
    return kind.__hash__ is object.__hash__ and kind.__eq__ is object.__eq__ and bool(kind.__weakrefoffset__)


@hashable_cache
def injected_names(function: Any) -> Mapping[str, InjectedParameter]:
    """Return the parameters whose default is an `Inject`, by name."""
    return {
        p.name: InjectedParameter(
            None if p.kind is p.KEYWORD_ONLY else position, p.kind is p.POSITIONAL_ONLY, p.default.resource_name
        )
        for position, p in enumerate(_parameters(function))
        if type(p.default) is Inject
    }


def positional_only_defaults(function: Any, given: int, resources: Mapping[str, Any]) -> list[Any]:
    """Return the defaults of the positional-only parameters after the given ones, up to the last resource."""
    defaults = [p.default for p in _parameters(function) if p.kind is p.POSITIONAL_ONLY][given:]
    while defaults and type(defaults[-1]) is not Inject:
        defaults.pop()
    return [resources[default.resource_name] if type(default) is Inject else default for default in defaults]


def injected_defaults(function: Any) -> Mapping[str, Inject]:
    """Return the `Inject` of each parameter that has one as default.

    Not cached, unlike `injected_names`: an `Inject` may refer to the function.
    """
    return {p.name: p.default for p in _parameters(function) if type(p.default) is Inject}


class PositionalNames(NamedTuple):
    """Names of the parameters for positional arguments. `rest` is the name of `*args`, or ""."""

    names: tuple[str, ...]
    rest: str

    def of(self, position: int) -> str:
        return self.names[position] if position < len(self.names) else self.rest


@hashable_cache
def positional_names(function: Any) -> PositionalNames:
    """Return the names of the parameters for positional arguments."""
    parameters = list(_parameters(function))
    names = (p.name for p in parameters if p.kind in {p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD})
    return PositionalNames(tuple(names), next((p.name for p in parameters if p.kind is p.VAR_POSITIONAL), ""))


def defaults_of(function: Any, names: frozenset[str]) -> dict[str, Any]:
    """Return the defaults of the parameters with the given names, without resources."""
    wanted = (p for p in _parameters(function) if p.name in names)
    return {p.name: p.default for p in wanted if p.default is not p.empty and type(p.default) is not Inject}


def _parameters(function: Any) -> Iterable[inspect.Parameter]:
    if not callable(function):
        return ()
    try:
        return inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # built-in functions without a signature
        return ()
