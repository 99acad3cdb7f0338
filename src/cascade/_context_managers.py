"""Context managers that pass on exceptions of any class unchanged.

`contextlib` assigns `__traceback__` to an exception. An exception that is a frozen dataclass refuses the assignment, and the
error replaces it. These decorators call no code of the exception's class. Their generators cannot suppress an exception.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator
from functools import wraps
from types import TracebackType
from typing import Generic, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


def context_manager(function: Callable[P, Iterator[T]]) -> Callable[P, "_ContextManager[T]"]:
    """Decorator: makes a context manager of a generator function that yields once, in a `try` with a `finally`."""

    @wraps(function)
    def enter(*args: P.args, **kwargs: P.kwargs) -> "_ContextManager[T]":
        return _ContextManager(function(*args, **kwargs))

    return enter


def async_context_manager(function: Callable[P, AsyncIterator[T]]) -> Callable[P, "_AsyncContextManager[T]"]:
    """Decorator: makes an asynchronous context manager of an async generator function that yields once."""

    @wraps(function)
    def enter(*args: P.args, **kwargs: P.kwargs) -> "_AsyncContextManager[T]":
        return _AsyncContextManager(function(*args, **kwargs))

    return enter


class _ContextManager(Generic[T]):
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
            if not _is_same(raised, error):
                raise
            BaseException.with_traceback(error, trace)


class _AsyncContextManager(Generic[T]):
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
            if not _is_same(raised, error):
                raise
            BaseException.with_traceback(error, trace)


def _is_same(raised: BaseException, thrown: BaseException) -> bool:
    """Return whether a generator passed the exception on. It raises a StopIteration as a RuntimeError (PEP 479)."""
    return raised is thrown or (
        issubclass(type(thrown), (StopIteration, StopAsyncIteration)) and raised.__cause__ is thrown
    )
