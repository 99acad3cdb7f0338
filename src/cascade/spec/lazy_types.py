"""Lazy results: calls of tasks that a run executes later. Chain methods change a lazy result in place and return it.

A lazy result has no value before the run. An operation that needs the value raises TypeError.
"""

from collections.abc import Callable, ItemsView, Iterator, KeysView, ValuesView
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, NoReturn, Self, SupportsFloat, TypeVar

from cascade._unique_ids import unique_id
from cascade.spec.caching import NO_CACHE, Cache, checked_cache
from cascade.spec.constraint import ResourceConstraint
from cascade.spec.failure import Failure
from cascade.spec.input import InputSpec
from cascade.spec.options import NO_TIMEOUT, CallOptions, Label, checked_label
from cascade.spec.protocols import LazyFactory
from cascade.spec.retry import MAX_DELAY, RetryOn, RetryPolicy, checked_timeout
from cascade.spec.tags import checked_tags
from cascade.spec.unmapped import without_marks

__all__ = ["LazyResult", "MappedLazyResult", "RetryPolicy"]

T = TypeVar("T")
Value_co = TypeVar("Value_co", covariant=True)

ADVICE = (
    "a lazy result is a call that has not run, so it has no value yet. Pass it to a task, which receives the value, or "
    "run it with cs.run(...); use .run_if(...) or cs.Router for a decision that depends on it"
)

if TYPE_CHECKING:

    class Argument(Any):  # type: ignore[misc]  # the purpose of this class
        """Base class of lazy results and Routers, for type checkers.

        A `ParamSpec` cannot express that each parameter also accepts a lazy result of its type (python/typing#1506). The
        base class `Any` makes instances assignable to a parameter of any type. A call of a task is still checked against
        the function's signature: the names, the number and the types of literal arguments.

        `self: None` matches no instance, so that a checker reports each use of the methods below. mypy also reads
        `__getattr__` and reports unknown attributes; pyright gives unknown attributes of such a class the type Any.
        """

        def __getattr__(self: None, name: str, /) -> Any: ...  # type: ignore[misc]  # pyright: ignore[reportGeneralTypeIssues]
        def __iter__(self: None) -> Any: ...  # type: ignore[misc]  # pyright: ignore[reportGeneralTypeIssues]
        def __getitem__(self: None, key: Any, /) -> Any: ...  # type: ignore[misc]  # pyright: ignore[reportGeneralTypeIssues]
        def __contains__(self: None, item: Any, /) -> Any: ...  # type: ignore[misc]  # pyright: ignore[reportGeneralTypeIssues]
        def __await__(self: None) -> Any: ...  # type: ignore[misc]  # pyright: ignore[reportGeneralTypeIssues]
        def __enter__(self: None) -> Any: ...  # type: ignore[misc]  # pyright: ignore[reportGeneralTypeIssues]

else:

    class Argument:
        """Base class of lazy results and Routers. Operations that need the value raise TypeError."""

        __slots__ = ()
        __hash__ = object.__hash__

        def __eq__(self, other: object) -> bool:
            if other is None or isinstance(other, Argument):
                return self is other
            kind = type(other)
            compare = kind.__eq__
            if compare is not object.__eq__ and (answer := compare(other, self)) is not NotImplemented:
                return answer
            if compare is not object.__eq__ or issubclass(kind, Enum):
                self._refuse("==")
            return NotImplemented

        def _refuse(self, operation: str) -> NoReturn:
            raise TypeError(f"{operation} is not possible on {self!r}: {ADVICE}")

    def _refusal(operation: str) -> Callable[..., NoReturn]:
        def refuse(self: Argument, *_: object, **__: object) -> NoReturn:
            self._refuse(operation)

        return refuse

    _COMPARISONS = {"lt": "<", "le": "<=", "gt": ">", "ge": ">="}
    _ARITHMETIC = {"add": "+", "sub": "-", "mul": "*", "truediv": "/", "floordiv": "//", "mod": "%"}
    _REFUSED = {
        "__bool__": "bool()",
        "__iter__": "Iteration",
        "__len__": "len()",
        "__getitem__": "[...]",
        "__format__": "Formatting",
        "__array__": "Conversion to an array",  # otherwise numpy creates an array of objects
        **{f"__{name}__": sign for name, sign in (_COMPARISONS | _ARITHMETIC).items()},
        **{f"__r{name}__": sign for name, sign in _ARITHMETIC.items()},
    }
    for _method, _operation in _REFUSED.items():
        setattr(Argument, _method, _refusal(_operation))


class Target(Generic[Value_co]):
    """Base class of the targets of a run: lazy results and graphs. `Value_co` is the type of the value of the run."""

    __slots__ = ()


class Lazy(Target[Value_co], Argument):
    """Base class of both kinds of lazy results, with the chain methods. `Value_co` is the type of the value."""

    _uuid: str
    _retry_policy: RetryPolicy | None
    _cache_policy: Cache | None
    _condition: Any
    _constraints: ResourceConstraint | None
    # Options that few calls have: `_set` sets them on the instance.
    _has_options: bool = False
    _label: Label | None = None
    _tags: tuple[str, ...] | None = None
    _timeout: float | None = None
    _allow_failure: bool = False
    _unmapped: frozenset[str] = frozenset()

    def __eq__(self, other: object) -> bool:
        if isinstance(other, type(self)):
            return self._uuid == other._uuid
        answer: bool = super().__eq__(other)
        return answer

    def __hash__(self) -> int:
        return hash(self._uuid)

    def run_if(self, condition: "Lazy[Any]") -> Self:
        """Skip the task unless the value of the given lazy result is true.

        Raises:
            TypeError: The condition is not a lazy result.
        """
        require_lazy(condition, f"Task '{self.task_name}'", "_condition")
        self._condition = condition
        return self

    def with_retry(
        self,
        max_attempts: int = 3,
        delay: float = 0.0,
        backoff: float = 1.0,
        *,
        max_delay: float = MAX_DELAY,
        jitter: float = 0.0,
        retry_on: RetryOn | None = None,
    ) -> Self:
        """Retry up to `max_attempts` times after a failure. With 0, the call has no retries.

        `delay` and `max_delay` are in seconds. `retry_on` limits the retries to errors of some classes, or errors for which
        a function returns True. `RetryPolicy` has the formula, the ranges and the errors.
        """
        self._retry_policy = RetryPolicy(max_attempts, delay, backoff, max_delay, jitter, retry_on)
        return self

    def with_cache(self, policy: Cache | None) -> Self:
        """Use the value of the cache, if it has one, instead of running the task. After the task, the cache stores the value.

        Args:
            policy: A `cs.DiskCache`, or another object with the methods `check` and `save`. None switches the caches
                of the task and of the run off for this call.

        Raises:
            TypeError: The object is not a cache.
        """
        cache = checked_cache(policy, f"Task '{self.task_name}'")
        self._cache_policy = NO_CACHE if cache is None else cache
        return self

    def with_constraints(self, **requirements: SupportsFloat) -> Self:
        """Hold these amounts of system resources while the task runs. An amount may be a lazy result.

        They replace the constraints of the task. Without an argument, the call has no constraints.
        """
        self._constraints = ResourceConstraint(requirements)
        return self

    def with_timeout(self, seconds: float | None) -> Self:
        """Limit each attempt of the task, or of each item of a map, to a number of seconds above 0. None is no limit.

        A timed-out attempt raises `TimeoutError` and is retried like a failure. The time does not include waits before the
        start of the attempt. A coroutine is cancelled. A plain function in a thread cannot be stopped: the run continues
        without it and ignores its late result. Its place among the `max_workers` functions stays taken until it ends. A
        function with `threaded=False` blocks the event loop and is not limited.

        Raises:
            TypeError: `seconds` is neither a number nor None.
            ValueError: `seconds` is not above 0, infinite or not a number.
        """
        owner = f"Task '{self.task_name}'"
        return self._set("_timeout", NO_TIMEOUT if seconds is None else checked_timeout(owner, seconds))

    def with_label(self, label: Label | None) -> Self:
        """Set the label of the call, or of each item of a map: on the terminal, in messages and in `cascade.task.label`.

        With None, the call has no label.

        A function returns the label. It receives the arguments that have the names of its parameters. If no name matches,
        it receives the first arguments. It runs in the event loop and must not block. Arguments with the name of a secret are
        masked. If it raises an error or returns another type, the call has no label, and one warning is logged. A label
        has up to 256 bytes.

        Raises:
            TypeError: `label` is not None, a text or a function.
        """
        return self._set("_label", "" if label is None else checked_label(label))

    def with_tags(self, *tags: str) -> Self:
        """Set the tags of the call, or of a map and its items, in messages and in `cascade.task.tags`.

        They replace the tags of the task. Without an argument, the call has no tags. A tag has up to 256 bytes; secrets in
        it are masked.

        Raises:
            TypeError: A tag is not a text.
            ValueError: A tag is empty, or there are more than 32 tags.
        """
        return self._set("_tags", checked_tags(tags))

    def _set(self, name: str, value: object) -> Self:
        """Set an option that few calls have."""
        setattr(self, name, value)
        self._has_options = True
        return self

    def __repr__(self) -> str:
        spec = getattr(vars(self).get("task"), "input_spec", None)
        if isinstance(spec, InputSpec):
            return f"<{type(spec).__name__.removesuffix('Spec')} {spec.name}>"
        return f"<{type(self).__name__} {self.task_name}>"

    @property
    def task_name(self) -> str:
        """Name of the task; "?" if the object is not initialized, as during a copy or in a mock."""
        task = vars(self).get("task", vars(self).get("factory"))
        return str(getattr(task, "name", "?"))

    # Hidden from type checkers: they report unknown attributes only if the class does not define `__getattr__`.
    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> NoReturn:
            if name.startswith("_"):
                raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}", name=name, obj=self)
            raise AttributeError(f"{self!r} has no attribute {name!r}: {ADVICE}", name=name, obj=self)


def options_of(lazy: Any) -> CallOptions:
    """Return the options of a lazy result: those of its chain methods, then those of its task.

    The object may be a mock without attributes.
    """
    # `vars` would create a dict, which is larger than the object.
    read = partial(getattr, lazy) if type(lazy) in {LazyResult, MappedLazyResult} else vars(lazy).get
    own = CallOptions(*map(read, _OPTIONS))
    task = lazy.factory if isinstance(lazy, MappedLazyResult) else lazy.task
    defaults = getattr(task, "options", None)
    return own.over(defaults) if isinstance(defaults, CallOptions) else own


_OPTIONS = ("_retry_policy", "_cache_policy", "_constraints", "_timeout", "_label", "_tags")


def require_lazy(value: object, owner: str, name: str) -> None:
    """Raise TypeError unless `value` is a lazy result. The text names `owner` and `name`."""
    if not isinstance(value, (LazyResult, MappedLazyResult)):
        shown = repr(value) if value is None or isinstance(value, (bool, int)) else f"a {type(value).__name__}"
        raise TypeError(f"{owner}: {name} must be a lazy result, got {shown}; call a task to get one")


@dataclass(eq=False, repr=False)
class LazyResult(Lazy[Value_co], Generic[Value_co]):
    """A call of a task that a run executes later. `Value_co` is the type of its value."""

    task: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    _uuid: str = field(default_factory=unique_id)
    _retry_policy: RetryPolicy | None = None
    _cache_policy: Cache | None = None
    _condition: Any = None
    _constraints: ResourceConstraint | None = None

    def allow_failure(self) -> "LazyResult[Value_co | Failure]":
        """Use a `Failure` as the value if the task fails. The run continues, and consumers receive the `Failure`.

        Only an `Exception` becomes a `Failure`. A cancellation, `SystemExit` and `KeyboardInterrupt` still end the run.
        """
        return self._set("_allow_failure", True)


@dataclass(eq=False, repr=False)
class MappedLazyResult(Lazy[list[T]], Generic[T]):
    """One call of a task for each index of the lists. Its value is the list of their values, in order."""

    factory: LazyFactory
    mapping_kwargs: dict[str, Any]
    _uuid: str = field(default_factory=unique_id)
    _retry_policy: RetryPolicy | None = None
    _cache_policy: Cache | None = None
    _condition: Any = None
    _constraints: ResourceConstraint | None = None

    def allow_failure(self) -> "MappedLazyResult[T | Failure]":
        """Use a `Failure` as the value of each item that fails. The other items run.

        A failure of the map itself, such as lists of different lengths, makes a `Failure` the value of the map. Only an
        `Exception` becomes a `Failure`.
        """
        allowed: Any = self._set("_allow_failure", True)  # pyright requires the same type argument
        return allowed  # type: ignore[no-any-return]

    def __post_init__(self) -> None:
        """Take the values of unmapped arguments out of their marks. Copy iterators, sets and views to lists.

        An iterator can be read once, and a graph finds no lazy results in a set or view.
        """
        given, names = without_marks(self.mapping_kwargs)
        if names:
            self._unmapped = names
        copied = [n for n, value in given.items() if n not in names and issubclass(type(value), _COPIED)]
        if names or copied:
            self.mapping_kwargs = {**given, **{name: list(given[name]) for name in copied}}


_COPIED = (Iterator, KeysView, ValuesView, ItemsView, AbstractSet)
