"""Types of the functions that run a target: the value has the shape of the target.

`P` are the parameters after the target. The value of a shape without a type here, such as a list in a list, has type Any.
"""

# A list of one kind of lazy results is no `list[Target[T]]`, because lists are invariant. `Sequence` includes the tuples of
# earlier overloads, which take precedence.
# mypy: disable-error-code="overload-overlap"
# pyright: reportOverlappingOverload=false

from collections.abc import Mapping, Sequence
from typing import Any, ParamSpec, Protocol, TypeVar, overload

from cascade._run.result import RunResult
from cascade.spec.lazy_types import Target
from cascade.spec.targets import Shape

P = ParamSpec("P")
A = TypeVar("A")
B = TypeVar("B")
C = TypeVar("C")
D = TypeVar("D")
K = TypeVar("K")
T = TypeVar("T")
Two = tuple[Target[A], Target[B]]
Three = tuple[Target[A], Target[B], Target[C]]
Four = tuple[Target[A], Target[B], Target[C], Target[D]]


class Run(Protocol[P]):
    """A function that returns the value of the target."""

    @overload
    def __call__(self, target: Target[T], *args: P.args, **kwargs: P.kwargs) -> T: ...
    @overload
    def __call__(self, target: Two[A, B], *args: P.args, **kwargs: P.kwargs) -> tuple[A, B]: ...
    @overload
    def __call__(self, target: Three[A, B, C], *args: P.args, **kwargs: P.kwargs) -> tuple[A, B, C]: ...
    @overload
    def __call__(self, target: Four[A, B, C, D], *args: P.args, **kwargs: P.kwargs) -> tuple[A, B, C, D]: ...
    @overload
    def __call__(self, target: tuple[Target[T], ...], *args: P.args, **kwargs: P.kwargs) -> tuple[T, ...]: ...
    @overload
    def __call__(self, target: Sequence[Target[T]], *args: P.args, **kwargs: P.kwargs) -> list[T]: ...
    @overload
    def __call__(self, target: Mapping[K, Target[T]], *args: P.args, **kwargs: P.kwargs) -> dict[K, T]: ...
    @overload
    def __call__(self, target: Shape, *args: P.args, **kwargs: P.kwargs) -> Any: ...


class RunAsync(Protocol[P]):
    """A coroutine function that returns the value of the target."""

    @overload
    async def __call__(self, target: Target[T], *args: P.args, **kwargs: P.kwargs) -> T: ...
    @overload
    async def __call__(self, target: Two[A, B], *args: P.args, **kwargs: P.kwargs) -> tuple[A, B]: ...
    @overload
    async def __call__(self, target: Three[A, B, C], *args: P.args, **kwargs: P.kwargs) -> tuple[A, B, C]: ...
    @overload
    async def __call__(self, target: Four[A, B, C, D], *args: P.args, **kwargs: P.kwargs) -> tuple[A, B, C, D]: ...
    @overload
    async def __call__(self, target: tuple[Target[T], ...], *args: P.args, **kwargs: P.kwargs) -> tuple[T, ...]: ...
    @overload
    async def __call__(self, target: Sequence[Target[T]], *args: P.args, **kwargs: P.kwargs) -> list[T]: ...
    @overload
    async def __call__(self, target: Mapping[K, Target[T]], *args: P.args, **kwargs: P.kwargs) -> dict[K, T]: ...
    @overload
    async def __call__(self, target: Shape, *args: P.args, **kwargs: P.kwargs) -> Any: ...


class Execute(Protocol[P]):
    """A function that returns the result of the run."""

    @overload
    def __call__(self, target: Target[T], *args: P.args, **kwargs: P.kwargs) -> RunResult[T]: ...
    @overload
    def __call__(self, target: Two[A, B], *args: P.args, **kwargs: P.kwargs) -> RunResult[tuple[A, B]]: ...
    @overload
    def __call__(self, target: Three[A, B, C], *args: P.args, **kwargs: P.kwargs) -> RunResult[tuple[A, B, C]]: ...
    @overload
    def __call__(self, target: Four[A, B, C, D], *args: P.args, **kwargs: P.kwargs) -> RunResult[tuple[A, B, C, D]]: ...
    @overload
    def __call__(
        self, target: tuple[Target[T], ...], *args: P.args, **kwargs: P.kwargs
    ) -> RunResult[tuple[T, ...]]: ...
    @overload
    def __call__(self, target: Sequence[Target[T]], *args: P.args, **kwargs: P.kwargs) -> RunResult[list[T]]: ...
    @overload
    def __call__(self, target: Mapping[K, Target[T]], *args: P.args, **kwargs: P.kwargs) -> RunResult[dict[K, T]]: ...
    @overload
    def __call__(self, target: Shape, *args: P.args, **kwargs: P.kwargs) -> RunResult[Any]: ...


class ExecuteAsync(Protocol[P]):
    """A coroutine function that returns the result of the run."""

    @overload
    async def __call__(self, target: Target[T], *args: P.args, **kwargs: P.kwargs) -> RunResult[T]: ...
    @overload
    async def __call__(self, target: Two[A, B], *args: P.args, **kwargs: P.kwargs) -> RunResult[tuple[A, B]]: ...
    @overload
    async def __call__(
        self, target: Three[A, B, C], *args: P.args, **kwargs: P.kwargs
    ) -> RunResult[tuple[A, B, C]]: ...
    @overload
    async def __call__(
        self, target: Four[A, B, C, D], *args: P.args, **kwargs: P.kwargs
    ) -> RunResult[tuple[A, B, C, D]]: ...
    @overload
    async def __call__(
        self, target: tuple[Target[T], ...], *args: P.args, **kwargs: P.kwargs
    ) -> RunResult[tuple[T, ...]]: ...
    @overload
    async def __call__(self, target: Sequence[Target[T]], *args: P.args, **kwargs: P.kwargs) -> RunResult[list[T]]: ...
    @overload
    async def __call__(
        self, target: Mapping[K, Target[T]], *args: P.args, **kwargs: P.kwargs
    ) -> RunResult[dict[K, T]]: ...
    @overload
    async def __call__(self, target: Shape, *args: P.args, **kwargs: P.kwargs) -> RunResult[Any]: ...
