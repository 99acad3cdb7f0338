"""The two steps of a resource's generator: to its `yield`, and from there to its end."""

import inspect
from typing import Any

from cascade.spec.nested import require_values


def begin(name: str, generator: Any) -> Any:
    """Run a plain generator up to its `yield`, and return the resource. Raises RuntimeError if it does not yield."""
    try:
        value = next(generator)
    except StopIteration:
        raise _no_yield(name) from None
    try:
        require_values(value, f"Resource '{name}' is")
    except TypeError:
        generator.close()
        raise
    return value


async def begin_async(name: str, generator: Any) -> Any:
    """Run an async generator up to its `yield`, and return the resource. Raises RuntimeError if it does not yield."""
    try:
        value = await anext(generator)
    except StopAsyncIteration:
        raise _no_yield(name) from None
    try:
        require_values(value, f"Resource '{name}' is")
    except TypeError:
        await generator.aclose()
        raise
    return value


def end(name: str, generator: Any) -> None:
    """Run the teardown of a plain generator. Raises RuntimeError if it yields again."""
    try:
        next(generator)
    except StopIteration:
        return
    generator.close()
    raise _second_yield(name)


async def end_async(name: str, generator: Any) -> None:
    """Run the teardown of an async generator. Raises RuntimeError if it yields again."""
    try:
        await anext(generator)
    except StopAsyncIteration:
        return
    await generator.aclose()
    raise _second_yield(name)


def end_if_begun(name: str, generator: Any) -> None:
    """Run the teardown of a plain generator whose setup has succeeded."""
    if inspect.getgeneratorstate(generator) == inspect.GEN_SUSPENDED:
        end(name, generator)


def _no_yield(name: str) -> RuntimeError:
    return RuntimeError(f"Resource '{name}' did not yield: yield the resource exactly once")


def _second_yield(name: str) -> RuntimeError:
    return RuntimeError(f"Resource '{name}' yielded twice: yield the resource exactly once")
