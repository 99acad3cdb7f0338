"""Other resources for a while, in tests."""

import inspect
from collections.abc import Iterator
from typing import Any

from cascade._blocks import block
from cascade.runtime.engine import Engine
from cascade.spec.resource import ResourceDefinition


@block
def override_resource(engine: Engine, name: str, new_resource: Any) -> Iterator[None]:
    """Put another generator function, or resource definition, in a registered resource's place for the block.

    Raises:
        KeyError: The engine has no resource of that name.
        TypeError: The object cannot override a resource.
    """
    function = new_resource.func if isinstance(new_resource, ResourceDefinition) else new_resource
    if not (inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function)):
        raise TypeError(
            f"Cannot override resource '{name}' with {new_resource!r}: give a generator function or a resource definition"
        )
    original = engine.get_resource_provider(name)
    engine.override_resource_provider(name, function)
    try:
        yield
    finally:
        engine.override_resource_provider(name, original)
