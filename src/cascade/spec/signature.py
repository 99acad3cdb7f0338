"""Checks the function of a task, the arguments of a call, and the lists of a map."""

import inspect
from collections import UserString
from collections.abc import Callable, Iterable, Iterator, Mapping, MappingView
from collections.abc import Set as AbstractSet
from contextlib import suppress
from functools import lru_cache, partial
from keyword import iskeyword
from types import FunctionType, MethodType
from typing import Any

from cascade.spec.nested import SOURCES, require_values, require_visible
from cascade.spec.resource import Inject
from cascade.spec.unmapped import Unmapped, require_list

_CONSTANT = "for the same value in each call, wrap it in cs.unmapped(...)"
_GENERATOR = inspect.CO_GENERATOR | inspect.CO_ASYNC_GENERATOR

Check = Callable[..., object]
"""Function that raises TypeError for the arguments that the task's function does not accept."""


def check_of(function: Any, name: str) -> Check:
    """Return a function with the same parameters and no body. Its errors have the given name.

    If the function has no signature, as some built-in functions, it accepts all arguments.
    """
    if isinstance(function, MethodType):
        return partial(check_of(function.__func__, name), function.__self__)
    template = _compiled(", ".join(_sources_of(_parameters(function))))
    check = FunctionType(template.__code__, {}, name, template.__defaults__)
    check.__kwdefaults__ = template.__kwdefaults__
    check.__qualname__ = str(getattr(function, "__qualname__", name))
    return check


def positional_only(function: Any) -> tuple[str, ...]:
    """Return the names of the positional-only parameters."""
    return tuple(p.name for p in _parameters(function) if p.kind is p.POSITIONAL_ONLY)


def makes_generators(function: Any) -> bool:
    """Return True if the function returns a generator, which can be read once."""
    if type(function) is FunctionType:
        return bool(function.__code__.co_flags & _GENERATOR)
    return inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function)


def require_function(function: Any) -> None:
    """Raise TypeError for an object that cannot be the function of a task."""
    if isinstance(function, classmethod):
        raise TypeError("task() needs a function, got a classmethod: put @cs.task below @classmethod")
    if not callable(function):
        raise TypeError(f"task() needs a function, got {function!r}")
    for value in _bound_values(function):
        prefix = "task(): a default of the function, or an argument of the partial, is"
        require_values(value, prefix, "pass it as an argument when the task is called")
    if isinstance(function, partial) and any(type(value) is Inject for value in function.args):
        raise TypeError(
            "task() needs a partial without cs.inject(...) among its positional arguments: give it by keyword"
        )


def _bound_values(function: Any) -> Iterator[Any]:
    if isinstance(function, partial):
        yield from (*function.args, *function.keywords.values())
        yield from _bound_values(function.func)
    elif isinstance(function, FunctionType):
        yield from (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values())


_ANY = tuple(inspect.signature(lambda *args, **kwargs: (args, kwargs)).parameters.values())


def _parameters(function: Any) -> Iterable[inspect.Parameter]:
    """Return the parameters of the function itself: a decorator may pass other arguments to the wrapped function."""
    for follow_wrapped in (False, True):
        with suppress(TypeError, ValueError):
            return inspect.signature(function, follow_wrapped=follow_wrapped).parameters.values()
    return _ANY


def _sources_of(parameters: Iterable[inspect.Parameter]) -> Iterator[str]:
    """Yield the source code of the parameters, with None for each default."""
    previous: Any = None
    for position, p in enumerate(parameters):
        if previous is p.POSITIONAL_ONLY and p.kind is not previous:
            yield "/"
        if p.kind is p.KEYWORD_ONLY and previous not in {p.KEYWORD_ONLY, p.VAR_POSITIONAL}:
            yield "*"
        star = "*" if p.kind is p.VAR_POSITIONAL else "**" if p.kind is p.VAR_KEYWORD else ""
        name = f"_{position}" if iskeyword(p.name) else p.name
        yield f"{star}{name}" if p.default is p.empty else f"{name}=None"
        previous = p.kind
    if previous is inspect.Parameter.POSITIONAL_ONLY:
        yield "/"


@lru_cache(maxsize=1024)
def _compiled(parameters: str) -> FunctionType:
    scope: dict[str, Any] = {}
    exec(f"def check({parameters}): pass", scope)  # noqa: S102 - the parameters' names are identifiers
    function = scope["check"]
    assert isinstance(function, FunctionType)  # noqa: S101 - for the type checker
    return function


def require_literal_items(lists: Mapping[str, Any], owner: str) -> None:
    """Raise TypeError unless each argument of a `.map` is lazy, unmapped, or an ordered collection. The text names `owner`."""
    constants = [name for name, value in lists.items() if type(value) is Unmapped]
    require_list(constants, len(lists), owner)
    for name, value in lists.items():
        if type(value) is Unmapped:
            require_visible((), {name: value.value}, owner)
        elif not issubclass(type(value), SOURCES):
            require_items(value, f"{owner}: '{name}'", is_alone=len(lists) - len(constants) == 1)


def require_items(value: object, name: str, *, is_alone: bool = True) -> None:
    """Raise TypeError unless the value is an ordered collection. The text begins with `name`.

    A set has no order, so it is accepted only as the single argument of a map. No method of the value is called.
    """
    kind = type(value)
    if issubclass(kind, (list, tuple)):
        return
    if issubclass(kind, (str, UserString, bytes, bytearray, memoryview)):
        unit = "character" if issubclass(kind, (str, UserString)) else "byte"
        reason = f"which would be one call for each {unit}; {_CONSTANT}"
    elif issubclass(kind, Mapping):
        reason = f"which has no list of values: give list(d), list(d.values()) or list(d.items()); {_CONSTANT}"
    elif issubclass(kind, AbstractSet) and not is_alone and not issubclass(kind, MappingView):
        reason = "which has no order that matches the other arguments: give sorted(...) or list(...)"
    elif issubclass(kind, Inject):
        reason = (
            "which is one value for all calls: make it the default of the parameter, or wrap it in cs.unmapped(...)"
        )
    elif hasattr(kind, "__dataframe__") or hasattr(kind, "iterrows"):
        reason = "which iterates over its columns: give one list for each parameter, such as list(frame['name'])"
    elif hasattr(kind, "__iter__") or hasattr(kind, "__getitem__"):
        return
    else:
        reason = _CONSTANT
    raise TypeError(f"{name} must be a list, got {kind.__name__}: {reason}")
