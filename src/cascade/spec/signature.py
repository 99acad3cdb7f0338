"""Parameters of a task's function: the check of a call's arguments, and of the object that becomes a task."""

import inspect
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import lru_cache, partial
from keyword import iskeyword
from types import FunctionType, MethodType
from typing import Any

from cascade.spec.nested import require_values
from cascade.spec.resource import Inject

_GENERATOR = inspect.CO_GENERATOR | inspect.CO_ASYNC_GENERATOR

Check = Callable[..., object]
"""Raises TypeError for arguments that the function does not accept, as Python does when the function is called."""


def check_of(function: Any, name: str) -> Check:
    """A function with the parameters of the given one, and without its body. `name` is in the texts of its errors.

    An object without a signature, as some built-in functions are, accepts all arguments.
    """
    if isinstance(function, MethodType):
        return partial(check_of(function.__func__, name), function.__self__)
    template = _compiled(", ".join(_texts(_parameters(function))))
    check = FunctionType(template.__code__, {}, name, template.__defaults__)
    check.__kwdefaults__ = template.__kwdefaults__
    check.__qualname__ = str(getattr(function, "__qualname__", name))
    return check


def positional_only(function: Any) -> tuple[str, ...]:
    """Names of the function's positional-only parameters."""
    return tuple(p.name for p in _parameters(function) if p.kind is p.POSITIONAL_ONLY)


def makes_generators(function: Any) -> bool:
    """Whether the function's value is a generator, which can be read once."""
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
        place = "task(): a default of the function, or an argument of the partial, is"
        require_values(value, place, "pass it as an argument when the task is called")
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
    """The function's own parameters: a decorator may pass other arguments to the function that it wraps."""
    for follow_wrapped in (False, True):
        with suppress(TypeError, ValueError):
            return inspect.signature(function, follow_wrapped=follow_wrapped).parameters.values()
    return _ANY


def _texts(parameters: Iterable[inspect.Parameter]) -> Iterator[str]:
    """The parameters as they are written in a definition, each default as None."""
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
