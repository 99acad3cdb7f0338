"""Caches of task values: what a cache receives and returns, and the check of the `cache` option."""

from collections.abc import Awaitable
from dataclasses import dataclass
from os import PathLike
from typing import Any, Final, Protocol, runtime_checkable

from cascade.spec.protocols import CachePolicy


class CacheError(Exception):
    """Raised by a cache with a text for users. The engine logs the text without a stack trace and runs the task."""


@dataclass(slots=True)
class TaskCall:
    """One call of a task, as a `ResultCache` receives it.

    Attributes:
        task_id: The id of the node, or of the item of a map. It differs between runs.
        task_name: The name of the task.
        function: The function of the task.
        inputs: All arguments by name, as `CachePolicy` describes them. Injected resources are not included.
        positional: The number of positional arguments. With None, each name made of digits is a position.
        key: Free for the cache. The function may change its arguments, so a cache that computes a key in `look_up` keeps
            the key here for `store`.
    """

    task_id: str
    task_name: str
    function: Any
    inputs: dict[str, Any]
    positional: int | None = None
    key: Any = None


@dataclass(frozen=True, slots=True)
class CacheHit:
    """A stored value, which may be None."""

    value: Any


@runtime_checkable
class ResultCache(Protocol):
    """Stores the values of tasks by function and arguments. None is a value like any other.

    The engine calls both methods in the event loop of the run. A method that has to wait, as for a disk, returns an awaitable.
    An exception of either method is logged once for each task name of a run. The task runs as without a cache.
    """

    def look_up(self, call: TaskCall) -> CacheHit | Awaitable[CacheHit | None] | None:
        """Return the stored value of the call, or None to run the task."""
        ...

    def store(self, call: TaskCall, value: Any) -> Awaitable[None] | None:
        """Store the value of a task that has succeeded. `call` is the object that `look_up` received."""
        ...


class NamedCachePolicy(Protocol):
    """A `CachePolicy` whose methods receive the name of the task."""

    def check(self, task_id: str, inputs: dict[str, Any], *, task_name: str) -> Any:
        """Return the stored value of the task, or None to run it."""
        ...

    def save(self, task_id: str, inputs: dict[str, Any], output: Any, *, task_name: str) -> None:
        """Store the output of a task that succeeded."""
        ...


Cache = CachePolicy | NamedCachePolicy | ResultCache
"""Any cache that `with_cache`, `@cs.task(cache=…)` and `cs.run(cache=…)` accept."""


class _NoCache:
    def __repr__(self) -> str:
        return "NO_CACHE"

    def __reduce__(self) -> str:
        return "NO_CACHE"  # a copy is the same object

    def check(self, task_id: str, inputs: dict[str, Any]) -> Any: ...

    def save(self, task_id: str, inputs: dict[str, Any], output: Any) -> None: ...


NO_CACHE: Final[CachePolicy] = _NoCache()
"""The cache of a task without a cache, in a run that has one."""


def checked_cache(cache: Any, owner: str) -> Cache | None:
    """Return a cache or None.

    Raises:
        TypeError: The object is not a cache. The text begins with `owner`.
    """
    if cache is None or (not isinstance(cache, type) and (_has(cache, "check", "save") or _has(cache, *_RESULT_CACHE))):
        accepted: Cache | None = cache
        return accepted
    name, hint = type(cache).__name__, ""
    if isinstance(cache, type):
        name, hint = f"the class {cache.__name__}", f"; make one: {cache.__name__}(…)"
    elif isinstance(cache, (str, PathLike)):
        hint = "; for a directory, give cs.DiskCache(directory)"
    raise TypeError(
        f"{owner}: cache must be a cs.DiskCache, another object with the methods check and save, or None, got {name}{hint}"
    )


_RESULT_CACHE = ("look_up", "store")


def _has(cache: Any, *methods: str) -> bool:
    return all(callable(getattr(cache, name, None)) for name in methods)
