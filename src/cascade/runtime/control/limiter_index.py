"""Index of the limiters by run and task name."""

from collections.abc import Callable, Iterable, Iterator
from itertools import chain

from cascade.runtime.control.constraint import CONSTRAINT_TYPES, Constraint, ConstraintKey, Scope
from cascade.runtime.control.limiters import AdmissionKey, ConstraintLimiter, Limiter, PauseLimiter, SlotLimiter
from cascade.runtime.protocols import ExecutorSlots

_Entries = dict[ConstraintKey, ConstraintLimiter | Constraint]
"""By scope and type: a limiter, or a constraint for one task name whose limiter is not created yet."""


class LimiterIndex:
    """Finds the limiters of a key. The number of limiters of other task names does not affect the time.

    The limiter of one task name is found by that name, and created when a task of that name first starts. Limiters of all
    tasks, runs and patterns are evaluated once per key. The result is cached until one of them changes.

    Args:
        create: Returns the limiter of a constraint.
    """

    def __init__(self, create: Callable[[Constraint], ConstraintLimiter]) -> None:
        self._create = create
        self._by_scope: _Entries = {}
        self._by_name: _Entries = {}
        self._cache: dict[AdmissionKey, tuple[Limiter, ...]] = {}
        self._cached_keys: dict[str, list[AdmissionKey]] = {}
        self._slot_limiters: dict[ExecutorSlots, SlotLimiter] = {}
        self.is_empty = True
        """True without a constraint. Read at each start of a task."""

    def get(self, constraint: Constraint) -> ConstraintLimiter | None:
        """Return the limiter of the same scope and type; None if there is none, or if it is not created yet."""
        found = self._entries(constraint.scope).get(constraint.key)
        return found if isinstance(found, ConstraintLimiter) else None

    def put(self, constraint: Constraint, limiter: ConstraintLimiter | None = None) -> None:
        """Add a constraint, which replaces the one of the same scope and type. `limiter` is its limiter, if it exists already."""
        entry = limiter or (constraint if constraint.scope.is_name else self._create(constraint))
        self._entries(constraint.scope)[constraint.key] = entry
        self._invalidate(constraint.scope)

    def pop(self, constraint: Constraint) -> ConstraintLimiter | None:
        """Remove the constraint of the same scope and type. Returns its limiter if it is created."""
        limiter = self.get(constraint)
        self._entries(constraint.scope).pop(constraint.key, None)
        self._invalidate(constraint.scope)
        return limiter

    def clear(self) -> list[ConstraintLimiter]:
        """Remove all constraints, and return their created limiters. Limiters of slots stay."""
        entries = chain(self._by_scope.values(), self._by_name.values())
        limiters = [entry for entry in entries if isinstance(entry, ConstraintLimiter)]
        self._by_scope.clear()
        self._by_name.clear()
        self._invalidate(None)
        return limiters

    def find(self, key: AdmissionKey) -> tuple[Limiter, ...]:
        """Return the limiters of a key. The slot limiter is last, so that a slot is reserved only if no other limiter blocks."""
        limiters = self._cache.get(key)
        if limiters is None:
            limiters = self._cache[key] = self._matching(key)
            self._cached_keys.setdefault(key.name, []).append(key)
        return limiters

    def forget(self, run_id: str, running: Iterable[AdmissionKey]) -> None:
        """Drop the results of a run that has ended, and the limiters of slots that no key uses."""
        self._cache = {key: limiters for key, limiters in self._cache.items() if key.run_ids[0] != run_id}
        self._cached_keys.clear()
        for key in self._cache:
            self._cached_keys.setdefault(key.name, []).append(key)
        used = {key.slots for key in chain(self._cache, running)}
        self._slot_limiters = {
            slots: limiter for slots, limiter in self._slot_limiters.items() if slots in used or limiter.queues
        }

    def _entries(self, scope: Scope) -> _Entries:
        return self._by_name if scope.is_name else self._by_scope

    def _invalidate(self, scope: Scope | None) -> None:
        """Drop the cached results of a scope; None drops all."""
        self.is_empty = not self._by_scope and not self._by_name
        if scope is not None and scope.is_name:
            for key in self._cached_keys.pop(scope.name, ()):
                del self._cache[key]
        else:
            self._cache.clear()
            self._cached_keys.clear()

    def _matching(self, key: AdmissionKey) -> tuple[Limiter, ...]:
        limiters: list[Limiter] = [
            entry
            for entry in chain(self._by_scope.values(), self._of_name(key.name))
            if isinstance(entry, ConstraintLimiter)
            if entry.matches(key.run_ids, key.name) and (not key.is_map or isinstance(entry, PauseLimiter))
        ]
        if key.slots is not None:
            limiters.append(self._slot_limiters.setdefault(key.slots, SlotLimiter(key.slots)))
        return tuple(limiters)

    def _of_name(self, name: str) -> Iterator[ConstraintLimiter]:
        for key in [(f"task/{name}", kind) for kind in CONSTRAINT_TYPES if self._by_name]:
            entry = self._by_name.get(key)
            if isinstance(entry, Constraint):
                entry = self._by_name[key] = self._create(entry)
            if entry is not None:
                yield entry
