"""Tasks: plain functions whose calls are lazy."""

import inspect
from collections.abc import Callable, Coroutine, Iterable, Mapping
from copy import copy
from functools import partial, update_wrapper
from itertools import takewhile
from types import MethodType
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar, Unpack, overload

from cascade.spec.lazy_types import LazyResult, MappedLazyResult, RetryPolicy
from cascade.spec.nested import require_visible
from cascade.spec.options import CallOptions, CoroutineTaskOptions, Label, TaskOptions, call_options
from cascade.spec.signature import (
    Check,
    check_of,
    makes_generators,
    positional_only,
    require_function,
    require_literal_items,
)
from cascade.spec.unmapped import Unmapped

__all__ = ["LazyResult", "MappedLazyResult", "RetryPolicy", "Task", "task"]

P = ParamSpec("P")
Q = ParamSpec("Q")
R = TypeVar("R")


class Task(Generic[P, R]):
    """A function whose calls are lazy: a call returns a `LazyResult` and runs nothing.

    `func` is read when the graph is built, so it may be replaced until then. A plain function runs in a worker thread
    if `threaded` is True, and in the event loop if it is False; the executor decides if it is None. `task` describes the
    options. A task of a task, or of a partial of a task, has the options of that task, except the ones that are given here.
    A task that is defined in a class is a method: `instance.method(x)` passes the instance.

    Attributes:
        options: The defaults of the calls; None without any.

    Raises:
        TypeError: `func` is not callable, a default or an argument of a partial is a lazy result, or an option is unknown or
            has the wrong type.
        ValueError: The value of an option is out of its range.
    """

    options: CallOptions | None = None

    def __init__(self, func: Callable[..., Any], **options: Unpack[TaskOptions]) -> None:
        own, name, threaded = call_options(options), options.get("name"), options.get("threaded")
        given = func.func if isinstance(func, partial) else func
        if isinstance(given, Task):
            name, threaded = name or given.name, given.threaded if threaded is None else threaded
            own = given.options if own is None else own.over(given.options)
            func = partial(given.func, *func.args, **func.keywords) if isinstance(func, partial) else given.func
        require_function(func)
        self.func: Callable[..., Any] = func
        update_wrapper(self, func, updated=())  # for help() and inspect.signature()
        self._declared = self._checked = func
        self._check: Check | None = None
        self.name: str = name or str(getattr(func, "__name__", type(func).__name__))
        self.threaded: bool | None = threaded
        if own is not None:
            self.options = own

    @property
    def label(self) -> Label | None:
        """The label of the calls."""
        return None if self.options is None else self.options.label

    @property
    def is_async(self) -> bool:
        return inspect.iscoroutinefunction(self.func)

    @property
    def is_generator(self) -> bool:
        """True if the value is a generator, which can be read once."""
        return makes_generators(self.func)

    @property
    def is_replaced(self) -> bool:
        """True if `func` was replaced: earlier calls must be checked again."""
        return self.func is not self._declared

    @property
    def positional_only(self) -> tuple[str, ...]:
        """Names of the parameters that `.map` passes by position."""
        return positional_only(self.func)

    @overload
    def __get__(self, instance: None, owner: type | None = None) -> "Task[P, R]": ...
    @overload
    def __get__(self: "Task[Concatenate[Any, Q], R]", instance: object, owner: type | None = None) -> "Task[Q, R]": ...
    def __get__(self, instance: object, owner: type | None = None) -> Any:
        """Return a task of the function that is bound to the instance."""
        bind = getattr(type(self.func), "__get__", None)
        function = self.func if bind is None else bind(self.func, instance, owner)
        if function is self.func:
            return self
        bound: Task[..., R] = copy(self)
        bound.func = bound._declared = function
        if isinstance(function, MethodType) and function.__func__ is self.func:
            bound._check, bound._checked = partial(self._current_check(), instance), function
        return bound

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_check": None}  # not picklable; it is created again

    def _current_check(self) -> Check:
        if self._check is None or self._checked is not self.func:
            require_function(self.func)
            self._check, self._checked = check_of(self.func, self.name), self.func
        return self._check

    def check_call(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Raise TypeError if the function does not accept the arguments of a call."""
        self._current_check()(*args, **kwargs)

    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> LazyResult[R]:
        """Return a lazy result. Each argument may also be a lazy result, a Router or an Inject.

        Raises:
            TypeError: The function does not accept the arguments, or an argument may hide lazy results, as an iterator
                does.
        """
        self._current_check()(*args, **kwargs)
        require_visible(args, kwargs, self.name)
        return LazyResult(self, args, kwargs)

    def map(self, /, **kwargs: Iterable[Any] | Unmapped[Any]) -> MappedLazyResult[R]:
        """Call the task once for each index of the given lists, which must have the same length.

        A list is any ordered iterable. An iterator is read at once. Without a list the map is empty. `cs.unmapped(value)` is
        the same value in each call.

        Raises:
            TypeError: The function does not accept these arguments, an argument is neither an ordered iterable nor unmapped,
                or all arguments are unmapped.
        """
        self.check_map(kwargs)
        require_literal_items(kwargs, f"{self.name}.map()")
        return MappedLazyResult(self, kwargs)

    def check_map(self, lists: Mapping[str, Any]) -> None:
        """Raise TypeError if the function does not accept one item of each list."""
        args = list(takewhile(lists.__contains__, self.positional_only))
        self._current_check()(*args, **{name: None for name in lists if name not in args})

    def __repr__(self) -> str:
        return f"<Task {self.name}>"


@overload
def task(func: type[R], **options: Unpack[TaskOptions]) -> Task[..., R]: ...
@overload
def task(func: Callable[P, Coroutine[Any, Any, R]], **options: Unpack[CoroutineTaskOptions]) -> Task[P, R]: ...
@overload
def task(func: Callable[P, R], **options: Unpack[TaskOptions]) -> Task[P, R]: ...
@overload
def task(func: None = None, **options: Unpack[TaskOptions]) -> "_Decorator": ...
def task(func: Any = None, **options: Unpack[TaskOptions]) -> Any:
    """Create a task from a function. Used as a decorator, with or without arguments, or as a call.

    The options are the defaults of the calls. A chain method of a call or a map overrides them: `with_retry`, `with_timeout`,
    `with_cache`, `with_constraints`, `with_label`, `with_tags`. None is the default of each option.

    Args:
        func: A plain function or a coroutine function.
        name: The name of the task; by default the name of the function. Use few different names: they are names of
            spans.
        retries: Number of retries after a failed attempt, an integer from 0: `retries=3` is up to four attempts.
        retry_delay: Seconds before the first retry, from 0. It needs `retries`, as the next four options do.
        backoff: Factor between successive delays: 2.0 doubles each delay.
        max_delay: Upper limit of a delay in seconds; one day by default.
        jitter: Maximum share by which a delay is shortened at random, from 0 to 1.
        retry_on: The errors that are retried: an exception class, a function `error -> bool`, or a sequence of both; by
            default each `Exception`.
        timeout: Limit of each attempt in seconds, above 0.
        cache: A cache, such as `cs.DiskCache`, or False for no cache in a run that has one.
        constraints: Amounts of system resources that each call holds, such as `{"cpu": 2}`.
        label: Label of each call on the terminal, in messages and in `cascade.task.label`: a text, or a function of the
            call's arguments that returns one, such as `lambda path: path.name`. See `with_label`.
        tags: Texts that group tasks, in messages and in `cascade.task.tags`. See `with_tags`.
        threaded: False runs a fast plain function in the event loop. By default, plain functions run in worker threads.

    Raises:
        TypeError: `func` is not callable, an option is unknown or has the wrong type, or an option of retries is given
            without `retries`.
        ValueError: The value of an option is out of its range.
    """
    decorator = _Decorator(options)
    return decorator if func is None else decorator(func)


class _Decorator:
    def __init__(self, options: TaskOptions) -> None:
        call_options(options)  # an error is raised in the line of the option
        self._options = options

    @overload
    def __call__(self, func: type[R]) -> Task[..., R]: ...
    @overload
    def __call__(self, func: Callable[P, Coroutine[Any, Any, R]]) -> Task[P, R]: ...
    @overload
    def __call__(self, func: Callable[P, R]) -> Task[P, R]: ...
    def __call__(self, func: Any) -> Any:
        return Task(func, **self._options)
