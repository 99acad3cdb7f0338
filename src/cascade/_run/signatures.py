"""Types of the functions that run a target. `P` are the parameters after the target."""

from typing import ParamSpec, Protocol, TypeVar

from cascade.spec.lazy_types import Target

P = ParamSpec("P")
T = TypeVar("T")


class Run(Protocol[P]):
    """A function that returns the value of the target."""

    def __call__(self, target: Target[T], *args: P.args, **kwargs: P.kwargs) -> T: ...


class RunAsync(Protocol[P]):
    """A coroutine function that returns the value of the target."""

    async def __call__(self, target: Target[T], *args: P.args, **kwargs: P.kwargs) -> T: ...
