"""`block` and `async_block`: context managers for blocks through which users' exceptions pass.

Those of `contextlib` assign `__traceback__` to the exception. A frozen dataclass refuses the assignment, and its own
error would replace the user's exception. These decorators only pass the exception on: the generator cannot swallow it.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator
from functools import wraps
from types import TracebackType
from typing import Generic, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


def block(function: Callable[P, Iterator[T]]) -> Callable[P, "_Block[T]"]:
    """Make a context manager of a generator function that yields once, in a `try` with a `finally`."""

    @wraps(function)
    def enter(*args: P.args, **kwargs: P.kwargs) -> "_Block[T]":
        return _Block(function(*args, **kwargs))

    return enter


def async_block(function: Callable[P, AsyncIterator[T]]) -> Callable[P, "_AsyncBlock[T]"]:
    """Make an asynchronous context manager of an async generator function that yields once."""

    @wraps(function)
    def enter(*args: P.args, **kwargs: P.kwargs) -> "_AsyncBlock[T]":
        return _AsyncBlock(function(*args, **kwargs))

    return enter


class _Block(Generic[T]):
    def __init__(self, generator: Iterator[T]) -> None:
        assert isinstance(generator, Generator)  # noqa: S101 - for the type checker
        self._generator: Generator[T, None, None] = generator

    def __enter__(self) -> T:
        return next(self._generator)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            next(self._generator, None)
            return
        try:
            self._generator.throw(error)
        except BaseException as raised:
            if not _is_the_same(raised, error):
                raise
            BaseException.with_traceback(error, trace)


class _AsyncBlock(Generic[T]):
    def __init__(self, generator: AsyncIterator[T]) -> None:
        assert isinstance(generator, AsyncGenerator)  # noqa: S101 - for the type checker
        self._generator: AsyncGenerator[T, None] = generator

    async def __aenter__(self) -> T:
        return await anext(self._generator)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            await anext(self._generator, None)
            return
        try:
            await self._generator.athrow(error)
        except BaseException as raised:
            if not _is_the_same(raised, error):
                raise
            BaseException.with_traceback(error, trace)


def _is_the_same(raised: BaseException, thrown: BaseException) -> bool:
    """Whether a generator passed the exception on. A StopIteration leaves a generator as a RuntimeError (PEP 479)."""
    return raised is thrown or (
        issubclass(type(thrown), (StopIteration, StopAsyncIteration)) and raised.__cause__ is thrown
    )
