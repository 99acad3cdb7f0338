"""Resources: objects that the tasks of a run share. A run sets a resource up once and tears it down at its end."""

import inspect
from collections.abc import AsyncIterable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, overload


@dataclass(repr=False)
class ResourceDefinition:
    """A generator function that yields the resource once. The code after its `yield` tears the resource down."""

    func: Callable[..., Any]
    name: str
    scope: str = "run"

    def __repr__(self) -> str:
        return f"<ResourceDefinition {self.name}>"


@dataclass(frozen=True)
class Inject:
    """Placeholder of a resource in the arguments of a task or of another resource."""

    resource_name: str
    definition: ResourceDefinition | None = field(default=None, compare=False, repr=False)


Generates = Callable[..., Iterable[Any] | AsyncIterable[Any]]
"""A generator function, or an asynchronous one."""


@overload
def resource(func: Generates) -> ResourceDefinition: ...
@overload
def resource(
    func: None = None, *, name: str | None = None, scope: str = "run"
) -> Callable[[Generates], ResourceDefinition]: ...
def resource(
    func: Generates | None = None, *, name: str | None = None, scope: str = "run"
) -> ResourceDefinition | Callable[[Generates], ResourceDefinition]:
    """Declare a resource. The generator function may be asynchronous.

    Args:
        func: Yields the resource once. The code after the `yield` tears the resource down.
        name: The name of the resource; by default the name of the function.
        scope: "run", the only scope. Each run sets up the resource once and tears it down once.

    Raises:
        TypeError: The function is not a generator function.
        ValueError: The scope is not "run".
    """
    if scope != "run":
        raise ValueError(f"scope must be 'run', got {scope!r}; each run sets up its resources and tears them down")

    def define(generator: Generates) -> ResourceDefinition:
        if not (inspect.isgeneratorfunction(generator) or inspect.isasyncgenfunction(generator)):
            label = getattr(generator, "__name__", repr(generator))
            raise TypeError(f"Resource '{label}' must be a generator function: yield the resource exactly once")
        return ResourceDefinition(generator, name or generator.__name__, scope)

    return define if func is None else define(func)


def inject(wanted: str | ResourceDefinition) -> Any:
    """Request a resource, as the default of a parameter (`db=cs.inject(database)`) or as an argument.

    A definition needs no registration; a name must be registered with the engine. If the engine has a resource with the
    name of the definition, it uses that resource instead, so that tests can override it.

    Raises:
        TypeError: `wanted` is neither a name nor a resource definition.
    """
    if isinstance(wanted, ResourceDefinition):
        return Inject(wanted.name, wanted)
    if not isinstance(wanted, str):
        raise TypeError(
            f"inject() needs a resource or its name, got {type(wanted).__name__}; declare it with @cs.resource"
        )
    return Inject(wanted)
