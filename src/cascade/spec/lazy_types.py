"""Lazy results: calls that a run makes later. Chain methods change a lazy result in place and return it.

A lazy result has no value before the run. An operation that needs the value raises TypeError instead of a wrong answer.
"""

from collections.abc import Callable, ItemsView, Iterator, KeysView, ValuesView
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, NoReturn, Self, SupportsFloat, TypeVar
from uuid import uuid4

from cascade.spec._argument import ADVICE, Argument
from cascade.spec.constraint import ResourceConstraint
from cascade.spec.protocols import CachePolicy, LazyFactory
from cascade.spec.retry import MAX_DELAY, RetryPolicy

__all__ = ["LazyResult", "MappedLazyResult", "RetryPolicy", "new_id"]

Label = str | Callable[..., str]
"""A text, or a function that makes one of the arguments of a call."""

T = TypeVar("T")
Value_co = TypeVar("Value_co", covariant=True)


def new_id() -> str:
    return str(uuid4())


class Lazy(Argument, Generic[Value_co]):
    """Common part of both kinds of lazy result: the chain methods, the identity, and the refusal of operations on values.

    `Value_co` is the type of the value that a run returns for it.
    """

    _uuid: str
    _retry_policy: RetryPolicy | None
    _cache_policy: CachePolicy | None
    _condition: Any
    _constraints: ResourceConstraint | None
    _label: Label | None

    def __eq__(self, other: object) -> bool:
        if isinstance(other, type(self)):
            return self._uuid == other._uuid
        answer: bool = super().__eq__(other)
        return answer

    def __hash__(self) -> int:
        return hash(self._uuid)

    def run_if(self, condition: "Lazy[Any]") -> Self:
        """Run only if the value of the given lazy result is true; else skip the task.

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
    ) -> Self:
        """Retry up to `max_attempts` times after a failure.

        `delay` and `max_delay` are in seconds; `RetryPolicy` has the formula, the ranges and the errors.
        """
        self._retry_policy = RetryPolicy(max_attempts, delay, backoff, max_delay, jitter)
        return self

    def with_cache(self, policy: CachePolicy) -> Self:
        """Use the value that `policy.check` returns instead of a run of the task; `policy.save` gets the value of a run."""
        self._cache_policy = policy
        return self

    def with_constraints(self, **requirements: SupportsFloat) -> Self:
        """Hold the given amounts of system resources while running; an amount may be a lazy result."""
        self._constraints = ResourceConstraint(requirements)
        return self

    def with_label(self, label: Label) -> Self:
        """Name the call, or each item of a map, on the terminal, in messages and in `cascade.task.label`.

        A function gets the arguments that have the names of its parameters, or the first ones if no name is that of an
        argument, and returns a text. It runs in the event loop, so it must be quick. Arguments with the name of a secret
        are masked. If it raises an error or returns something else, the call has no label, and one warning is logged. A
        label has up to 256 bytes.

        Raises:
            TypeError: `label` is neither a text nor a function.
        """
        self._label = checked_label(label)
        return self

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.task_name}>"

    @property
    def task_name(self) -> str:
        """Name of the task. The object may be half built: a copy, an unpickled object, a mock."""
        task = vars(self).get("task", vars(self).get("factory"))
        return str(getattr(task, "name", "?"))

    # Hidden from type checkers, which report such an operation only as long as the class does not define it.
    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> NoReturn:
            if name.startswith("_"):
                raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}", name=name, obj=self)
            raise AttributeError(f"{self!r} has no attribute {name!r}: {ADVICE}", name=name, obj=self)


def checked_label(label: Label) -> Label:
    """Return a label. Raises TypeError if it is neither a text nor a function."""
    if isinstance(label, str):
        return str.__str__(label)  # a subclass may have no hash
    if callable(label):
        return label
    raise TypeError(f"label must be a text or a function that returns one, got a {type(label).__name__}")


def label_of(lazy: Any) -> Label | None:
    """The label of a lazy result: its own, else that of its task. The object may be half built, as a mock."""
    fields = vars(lazy)
    own: Label | None = fields.get("_label")
    return getattr(fields.get("task", fields.get("factory")), "label", None) if own is None else own


def require_lazy(value: object, owner: str, place: str) -> None:
    """Raise TypeError unless `value` is a lazy result. The text contains the value's type, and small constants only."""
    if not isinstance(value, (LazyResult, MappedLazyResult)):
        shown = repr(value) if value is None or isinstance(value, (bool, int)) else f"a {type(value).__name__}"
        raise TypeError(f"{owner}: {place} must be a lazy result, got {shown}; call a task to get one")


@dataclass(eq=False, repr=False)
class LazyResult(Lazy[Value_co], Generic[Value_co]):
    """The call of a task, which a run makes. `Value_co` is the type of its value."""

    task: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    _uuid: str = field(default_factory=new_id)
    _retry_policy: RetryPolicy | None = None
    _cache_policy: CachePolicy | None = None
    _condition: Any = None
    _constraints: ResourceConstraint | None = None
    _label: Label | None = None


@dataclass(eq=False, repr=False)
class MappedLazyResult(Lazy[list[T]], Generic[T]):
    """One call for each index of its lists. Its value is the list of their values, a `list[T]`, in that order."""

    factory: LazyFactory
    mapping_kwargs: dict[str, Any]
    _uuid: str = field(default_factory=new_id)
    _retry_policy: RetryPolicy | None = None
    _cache_policy: CachePolicy | None = None
    _condition: Any = None
    _constraints: ResourceConstraint | None = None
    _label: Label | None = None

    def __post_init__(self) -> None:
        """Copy iterators, sets and views to lists: an iterator has its items once, and a graph finds no source in the others."""
        if any(issubclass(type(value), _COPIED) for value in self.mapping_kwargs.values()):
            copies = {name: list(v) if issubclass(type(v), _COPIED) else v for name, v in self.mapping_kwargs.items()}
            self.mapping_kwargs = copies


_COPIED = (Iterator, KeysView, ValuesView, ItemsView, AbstractSet)
