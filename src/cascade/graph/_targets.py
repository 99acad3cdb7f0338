"""Several targets of one run: lazy results in a container, such as a list, a tuple or a dict, at any depth.

The value of the run has the shape of the container. Other values in it stay unchanged.
"""

from collections.abc import Coroutine, Iterator
from typing import Any

from cascade.graph.model import SHAPE, Graph
from cascade.spec.input import InputSpec
from cascade.spec.nested import ATOMS, LAZY, is_container, sources_in
from cascade.spec.resource import Inject, ResourceDefinition
from cascade.spec.routing import Router
from cascade.spec.task import Task

_NO_TARGETS = (Task, Router, InputSpec, ResourceDefinition, Inject, Graph, Coroutine)
"""Types of objects that are mistaken for lazy results."""


def checked_shape(target: Any) -> Any:
    """Return a container of targets. It may have no lazy result if it is a list, a tuple or a dict.

    Raises:
        TypeError: The target is no such container, or an item of it is an object that is no target, such as a task that was
            not called.
    """
    kind = type(target)
    if not is_container(kind) or issubclass(kind, _NO_TARGETS):
        raise TypeError(f"Cannot build a workflow from {_advice_for(target)}")
    items = dict.values(target) if issubclass(kind, dict) else target if issubclass(kind, (list, tuple)) else ()
    for item in items:
        if type(item) not in ATOMS and issubclass(type(item), _NO_TARGETS):
            raise TypeError(f"Cannot build a workflow from a {kind.__name__} with {_advice_for(item)}")
    if not issubclass(kind, (list, tuple, dict)) and next(targets_in(target), None) is None:
        raise TypeError(f"Cannot build a workflow from {_advice_for(target)}")
    return target


def targets_in(shape: Any) -> Iterator[Any]:
    """Yield the lazy results in a container of targets, with repetitions.

    Raises:
        TypeError: The container has a Router, or a lazy result is in a set or an iterator.
    """
    for source in sources_in(shape, SHAPE):
        if not isinstance(source, LAZY):
            raise TypeError(f"Cannot build a workflow from a {type(shape).__name__} with {_advice_for(source)}")
        yield source


def _advice_for(target: object) -> str:
    """Return the kind of a target that is not a lazy result, and the fix. Does not call the repr of the target."""
    call = "call a task to get a lazy result"
    match target:
        case None:
            return f"None: {call}, and return it from the function that builds the workflow"
        case Task():
            return f"a task: {call}, {target.name}(...)"
        case Router():
            return f"a Router: it is an argument only; {call} and pass the Router to it"
        case ResourceDefinition() | Inject():
            return f"a resource: {call} that takes it with cs.inject(...)"
        case InputSpec():
            return (
                f"a {type(target).__name__}, which only describes an input: use cs.Param(...) or cs.Env(...), or {call}"
            )
        case set() | frozenset() | Iterator():
            return f"a {type(target).__name__}: give several targets in a list, a tuple or a dict"
        case Graph():
            return "a graph in a container: run it as a target of its own"
        case Coroutine():
            return f"a coroutine: decorate its function with @cs.task, then {call}"
        case _ if callable(target):
            name = getattr(target, "__name__", type(target).__name__)
            return f"a {type(target).__name__}: decorate {name} with @cs.task, then {call}"
        case _:
            return f"a {type(target).__name__}: {call}"
