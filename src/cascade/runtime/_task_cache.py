"""Caches of one run: the lookup and the storage of the values of tasks. An error of a cache never fails a task."""

import inspect
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from inspect import isawaitable
from types import CoroutineType
from typing import Any

from cascade._loggers import get_logger
from cascade.graph.model import Node
from cascade.runtime.resolvers import Arguments
from cascade.runtime.task_context import CURRENT_TASK
from cascade.spec.caching import (
    NO_CACHE,
    Cache,
    CacheError,
    CacheHit,
    NamedCachePolicy,
    ResultCache,
    TaskCall,
    checked_cache,
)
from cascade.spec.failure import Failure
from cascade.spec.protocols import CachePolicy

logger = get_logger(__name__)

MISS = object()
"""Marks a call without a stored value. None is a value."""


class RunCaches:
    """The caches of the tasks of one run.

    Attributes:
        default: The cache of the tasks that have none of their own.
    """

    def __init__(self, default: Cache | None = None) -> None:
        self.default = default
        self._caches: dict[
            int, tuple[Cache, ResultCache]
        ] = {}  # by `id`; the reference to the cache keeps the id valid
        self._logged: set[tuple[str, str]] = set()

    @classmethod
    def of_run(cls, cache: Cache | None) -> "RunCaches":
        """Return the caches of a run that is called with this cache. None is the cache of the run of the calling task.

        Raises:
            TypeError: The object is not a cache.
        """
        if cache is None:
            run = getattr(CURRENT_TASK.get(), "run", None)  # a task of another process has none
            cache = None if run is None else run.caches.default
        return cls(checked_cache(cache, "run"))

    def call_of(self, node: Node, arguments: Arguments, describe: Callable[[], str]) -> "CachedCall | None":
        """Return the call of a task for its cache; None if the task has no cache, or an argument is or contains a `Failure`."""
        cache = self.default if node.cache_policy is None else node.cache_policy
        if cache is None or cache is NO_CACHE or any(map(_has_failure, arguments.inputs.values())):
            return None
        call = TaskCall(node.id, node.name, node.callable_obj, arguments.inputs, node.positional)
        return CachedCall(self, self._result_cache(cache), call, describe)

    def _result_cache(self, cache: Cache) -> ResultCache:
        known = self._caches.get(id(cache))
        if known is None:
            result_cache = cache if isinstance(cache, ResultCache) else _PolicyCache(cache)
            known = self._caches[id(cache)] = cache, result_cache
        return known[1]

    def log(self, name: str, action: str, text: str, error: BaseException) -> None:
        """Log an error of a cache, once for each task name and action."""
        if (name, action) in self._logged:
            return
        self._logged.add((name, action))
        if isinstance(error, CacheError):
            logger.warning("%s: %s", text, error)
        else:
            logger.warning("%s", text, exc_info=error)


class CachedCall:
    """One call of a task that has a cache. `describe` returns the name of the task for warnings."""

    __slots__ = ("_cache", "_caches", "_call", "_describe")

    def __init__(self, caches: RunCaches, cache: ResultCache, call: TaskCall, describe: Callable[[], str]) -> None:
        self._caches = caches
        self._cache = cache
        self._call = call
        self._describe = describe

    async def look_up(self) -> Any:
        """Return the stored value, or `MISS`."""
        try:
            found = self._cache.look_up(self._call)
            hit = await found if isawaitable(found) else found
        except (Exception, SystemExit) as error:  # noqa: BLE001 - the task runs instead
            text = f"The cache of {self._describe()} could not look up the value, so the task runs"
            self._caches.log(self._call.task_name, "look up", text, error)
            return MISS
        return MISS if hit is None else hit.value

    async def store(self, value: Any) -> None:
        """Store the value of the task, unless it is or contains the failure of a task.

        The task has succeeded: after an error, only a later run misses the value.
        """
        if _has_failure(value):
            return
        try:
            stored = self._cache.store(self._call, value)
            if stored is not None:
                await stored
        except (Exception, SystemExit) as error:  # noqa: BLE001
            text = f"The cache of {self._describe()} could not save its value"
            self._caches.log(self._call.task_name, "store", text, error)


class _PolicyCache:
    """Adapts a policy to a `ResultCache`. Whether its methods receive the name of the task is decided once."""

    def __init__(self, policy: CachePolicy | NamedCachePolicy) -> None:
        self._check: Callable[..., Any] = _with_name(policy.check)
        self._save: Callable[..., object] = _with_name(policy.save)

    def look_up(self, call: TaskCall) -> CacheHit | None:
        value = _of_plain(self._check(call.task_name, call.task_id, call.inputs), "check")
        return None if value is None else CacheHit(value)

    def store(self, call: TaskCall, value: Any) -> Awaitable[None] | None:
        _of_plain(self._save(call.task_name, call.task_id, call.inputs, value), "save")
        return None


def _of_plain(result: Any, method: str) -> Any:
    """Return the result of a method of a policy, which is a plain function.

    Raises:
        CacheError: It is a coroutine function.
    """
    if type(result) is CoroutineType:
        result.close()
        raise CacheError(f"{method} is a coroutine function; a cache that waits has the methods look_up and store")
    return result


def _has_failure(value: Any) -> bool:
    """Whether a value is a `Failure`, or contains one in lists, tuples and dicts. No method of another class is called."""
    if type(value) is Failure:
        return True
    pending: list[Any] = [value] if issubclass(type(value), (list, tuple, dict)) else []
    seen = set[int]()
    while pending:
        container = pending.pop()
        if id(container) in seen:
            continue
        seen.add(id(container))
        items = _items_of(container)
        kinds = set(map(type, items))
        if Failure in kinds:
            return True
        if nested := {kind for kind in kinds if issubclass(kind, (list, tuple, dict))}:
            pending += [item for item in _items_of(container) if type(item) in nested]
    return False


def _items_of(container: Any) -> Iterable[Any]:
    kind = type(container)
    base = dict if issubclass(kind, dict) else list if issubclass(kind, list) else tuple
    return dict.values(container) if base is dict else base.__iter__(container)


def _with_name(method: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that calls a method of a policy. The name of the task is the first argument."""
    return partial(_call_with_name if _takes_name(method) else _call_without_name, method)


def _call_with_name(method: Callable[..., Any], name: str, *args: Any) -> Any:
    return method(*args, task_name=name)


def _call_without_name(method: Callable[..., Any], name: str, *args: Any) -> Any:  # noqa: ARG001
    return method(*args)


def _takes_name(method: Callable[..., Any]) -> bool:
    try:
        parameters = inspect.signature(method).parameters
    except (TypeError, ValueError):
        return False
    return "task_name" in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())
