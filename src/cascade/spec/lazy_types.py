"""A call that has not happened yet. Chain methods change it in place and return it."""

from dataclasses import dataclass, field
from typing import Any, Generic, Self, TypeVar
from uuid import uuid4

from cascade.spec.constraint import ResourceConstraint
from cascade.spec.protocols import CachePolicy, LazyFactory

T = TypeVar("T")


def new_id() -> str:
    return str(uuid4())


@dataclass(frozen=True)
class RetryPolicy:
    """Up to `max_attempts` retries after the first call; the k-th waits `delay * backoff ** (k - 1)` seconds."""

    max_attempts: int
    delay: float = 0.0
    backoff: float = 1.0

    def __post_init__(self) -> None:
        for name, value in (("max_attempts", self.max_attempts), ("delay", self.delay), ("backoff", self.backoff)):
            if value < 0:
                raise ValueError(f"RetryPolicy: {name}={value!r} is negative; give zero or more")

    def delay_before(self, retry: int) -> float:
        """Seconds to wait before the given retry, counted from 1."""
        return self.delay * self.backoff ** (retry - 1)


class _Lazy:
    """What both kinds of lazy result share: the chain methods, and an identity of their own."""

    _uuid: str
    _retry_policy: RetryPolicy | None
    _cache_policy: CachePolicy | None
    _condition: Any
    _constraints: ResourceConstraint | None

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, type(self)) and self._uuid == other._uuid)

    def __hash__(self) -> int:
        return hash(self._uuid)

    def run_if(self, condition: Any) -> Self:
        """Run only if the given lazy result turns out truthy; else the task is skipped."""
        self._condition = condition
        return self

    def with_retry(self, max_attempts: int = 3, delay: float = 0.0, backoff: float = 1.0) -> Self:
        """Retry up to `max_attempts` times after a failure; `delay` is in seconds."""
        self._retry_policy = RetryPolicy(max_attempts, delay, backoff)
        return self

    def with_cache(self, policy: CachePolicy) -> Self:
        """Ask `policy` for the value before running, and give it the value afterwards."""
        self._cache_policy = policy
        return self

    def with_constraints(self, **requirements: Any) -> Self:
        """Hold the given amounts of system resources while running; an amount may be a lazy result."""
        self._constraints = ResourceConstraint(requirements)
        return self


@dataclass(eq=False)
class LazyResult(_Lazy, Generic[T]):
    """What calling a task returns: the call, to be made when a run gets there. Its value will be a T."""

    task: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    _uuid: str = field(default_factory=new_id)
    _retry_policy: RetryPolicy | None = None
    _cache_policy: CachePolicy | None = None
    _condition: Any = None
    _constraints: ResourceConstraint | None = None


@dataclass(eq=False)
class MappedLazyResult(_Lazy, Generic[T]):
    """One call for each index of its lists; its value will be the list of values, a `list[T]`, in that order."""

    factory: LazyFactory
    mapping_kwargs: dict[str, Any]
    _uuid: str = field(default_factory=new_id)
    _retry_policy: RetryPolicy | None = None
    _cache_policy: CachePolicy | None = None
    _condition: Any = None
    _constraints: ResourceConstraint | None = None
