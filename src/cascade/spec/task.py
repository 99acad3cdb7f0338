"""Tasks: plain functions whose calls are lazy."""

import inspect
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, Generic, ParamSpec, TypeVar, overload

from cascade.spec.lazy_types import LazyResult, MappedLazyResult, RetryPolicy

__all__ = ["LazyResult", "MappedLazyResult", "RetryPolicy", "Task", "task"]

P = ParamSpec("P")
R = TypeVar("R")


class Task(Generic[P, R]):
    """A function whose call returns a `LazyResult` and runs nothing.

    `func` is read when the graph is built, so it may be replaced until then. `threaded` says where a plain function
    runs: True in a worker thread, False in the event loop, None as the executor sees fit.
    """

    def __init__(self, func: Callable[..., Any], *, name: str | None = None, threaded: bool | None = None) -> None:
        if not callable(func):
            raise TypeError(f"task() needs a function, got {func!r}")
        self.func = func
        self.name = name or str(getattr(func, "__name__", type(func).__name__))
        self.threaded = threaded

    @property
    def is_async(self) -> bool:
        return inspect.iscoroutinefunction(self.func)

    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> LazyResult[R]:
        """Return the call as a lazy result. Each argument may also be a lazy result, a Router or an Inject."""
        return LazyResult(self, args, kwargs)

    def map(self, /, **kwargs: Iterable[Any]) -> MappedLazyResult[R]:
        """Call the task once for each index of the given lists, zipped; they must be equally long."""
        return MappedLazyResult(self, kwargs)

    def __repr__(self) -> str:
        return f"<Task {self.name}>"


@overload
def task(func: type[R], *, name: str | None = None, threaded: bool | None = None) -> Task[..., R]: ...
@overload
def task(func: Callable[P, Coroutine[Any, Any, R]], *, name: str | None = None) -> Task[P, R]: ...
@overload
def task(func: Callable[P, R], *, name: str | None = None, threaded: bool | None = None) -> Task[P, R]: ...
@overload
def task(func: None = None, *, name: str | None = None, threaded: bool | None = None) -> "_Decorator": ...
def task(func: Any = None, *, name: str | None = None, threaded: bool | None = None) -> Any:
    """Make a task of a function: as a decorator, with or without arguments, or as a call.

    Args:
        func: A plain function or a coroutine function.
        name: The task's name, the function's own if not given. Keep it low in cardinality: it names spans.
        threaded: False keeps a cheap plain function in the event loop; by default it runs in a worker thread.

    Raises:
        TypeError: `func` cannot be called.
    """
    decorator = _Decorator(name, threaded)
    return decorator if func is None else decorator(func)


class _Decorator:
    def __init__(self, name: str | None, threaded: bool | None) -> None:
        self._name = name
        self._threaded = threaded

    @overload
    def __call__(self, func: type[R]) -> Task[..., R]: ...
    @overload
    def __call__(self, func: Callable[P, Coroutine[Any, Any, R]]) -> Task[P, R]: ...
    @overload
    def __call__(self, func: Callable[P, R]) -> Task[P, R]: ...
    def __call__(self, func: Any) -> Any:
        return Task(func, name=self._name, threaded=self._threaded)
