"""Names by which another process imports the same object."""

from importlib import import_module
from types import MethodType
from typing import Any

from cascade.spec.task import Task

_FIX = "a stored graph needs objects that are at the top of a module that can be imported"


def name_of(thing: Any, owner: str) -> dict[str, str]:
    """Module and qualified name of a function or a class; of a task, those of its function.

    Raises:
        ValueError: The name does not lead to the same object, as for a lambda, a partial, a bound method or a local
            function. The text begins with `owner`.
    """
    function = thing.func if isinstance(thing, Task) else thing
    kind = type(function)
    name = {
        "module": str(getattr(function, "__module__", None) or kind.__module__),
        "qualname": str(getattr(function, "__qualname__", kind.__qualname__)),
    }
    try:
        found = imported(name)
    except ValueError as error:
        raise ValueError(f"{owner}: {error}") from error
    found = found.func if isinstance(found, Task) else found
    if found is function or (isinstance(function, MethodType) and found == function):  # one object for each access
        return name
    raise ValueError(
        f"{owner}: {name['module']}.{name['qualname']} is another object than the given {kind.__name__}; {_FIX}"
    )


def imported(name: dict[str, str]) -> Any:
    """The object with a module and a qualified name. Raises ValueError if there is none."""
    found: Any
    try:
        found = import_module(name["module"])
        for part in name["qualname"].split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"Cannot import {name['module']}.{name['qualname']}: {error}; {_FIX}") from error
    return found
