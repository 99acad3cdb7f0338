"""Index of the limiters in force by run and task name."""

from collections.abc import Callable, Iterable, Iterator
from itertools import chain

from cascade.runtime.control.constraint import Constraint, Scope
from cascade.runtime.control.limiters import Key, Limiter, PauseLimiter, PlaceLimiter
from cascade.runtime.protocols import Places


class LimiterIndex:
    """Finds the limiters that apply to a key. The number of limiters for other task names does not matter.

    A limiter for one task name is found by that name, and made when a task of that name first starts. Limiters for all tasks,
    for runs and for patterns are evaluated once for each key: the result is kept until one of them changes.

    Args:
        make: Returns the limiter for a constraint.
    """

    def __init__(self, make: Callable[[Constraint], Limiter]) -> None:
        self._make = make
        self._broad: dict[tuple[Scope, str], Limiter] = {}
        self._named: dict[str, tuple[Limiter | Constraint, ...]] = {}
        self._found: dict[Key, tuple[Limiter, ...]] = {}
        self._found_keys: dict[str, list[Key]] = {}
        self._place_limiters: dict[Places, PlaceLimiter] = {}
        self.is_empty = True
        """True without a constraint: read at each start of a task."""

    def get(self, constraint: Constraint) -> Limiter | None:
        """Return the limiter of the same scope and type; None if there is none, or if it is not made yet."""
        scope = constraint.scope
        if not scope.is_name:
            return self._broad.get((scope, constraint.type))
        for entry in self._named.get(scope.name, ()):
            if isinstance(entry, Limiter) and type(entry.constraint) is type(constraint):
                return entry
        return None

    def put(self, constraint: Constraint, limiter: Limiter | None = None) -> None:
        """Add a constraint, in place of the one of the same scope and type. Without a limiter, it is made when needed."""
        scope = constraint.scope
        if scope.is_name:
            self._named[scope.name] = (*self._without(constraint), limiter or constraint)
        else:
            self._broad[scope, constraint.type] = limiter or self._make(constraint)
        self._changed(scope)

    def pop(self, constraint: Constraint) -> Limiter | None:
        """Remove the constraint of the same scope and type, and return its limiter, if that was made."""
        limiter, scope = self.get(constraint), constraint.scope
        if not scope.is_name:
            self._broad.pop((scope, constraint.type), None)
        elif others := tuple(self._without(constraint)):
            self._named[scope.name] = others
        else:
            self._named.pop(scope.name, None)
        self._changed(scope)
        return limiter

    def clear(self) -> list[Limiter]:
        """Remove all constraints, and return the limiters that were made. Limiters for places stay."""
        named = (entry for entries in self._named.values() for entry in entries if isinstance(entry, Limiter))
        limiters = [*self._broad.values(), *named]
        self._broad.clear()
        self._named.clear()
        self._changed(None)
        return limiters

    def of(self, key: Key) -> tuple[Limiter, ...]:
        """Return the limiters for a key. The last one is the limiter for its place.

        A place is reserved only if no other limiter holds the task back.
        """
        limiters = self._found.get(key)
        if limiters is None:
            limiters = self._found[key] = self._covering(key)
            self._found_keys.setdefault(key.name, []).append(key)
        return limiters

    def place_limiter(self, places: Places) -> PlaceLimiter:
        """Return the limiter for the places of an executor."""
        return self._place_limiters[places]

    def forget(self, run_id: str, keys_at_work: Iterable[Key]) -> None:
        """Drop the results for a run that has ended, and the limiters for places that no key uses."""
        self._found = {key: limiters for key, limiters in self._found.items() if key.run_ids[0] != run_id}
        self._found_keys.clear()
        for key in self._found:
            self._found_keys.setdefault(key.name, []).append(key)
        used = {key.places for key in (*self._found, *keys_at_work)}
        self._place_limiters = {
            places: limiter for places, limiter in self._place_limiters.items() if places in used or limiter.queues
        }

    def _changed(self, scope: Scope | None) -> None:
        """Drop the results for the keys of a scope; None drops all."""
        self.is_empty = not self._broad and not self._named
        if scope is not None and scope.is_name:
            for key in self._found_keys.pop(scope.name, ()):
                del self._found[key]
        else:
            self._found.clear()
            self._found_keys.clear()

    def _covering(self, key: Key) -> tuple[Limiter, ...]:
        broad = (limiter for limiter in self._broad.values() if limiter.covers(key.run_ids, key.name))
        covering = chain(broad, self._made(key.name))
        limiters = [limiter for limiter in covering if not key.is_map or isinstance(limiter, PauseLimiter)]
        if key.places is not None:
            limiters.append(self._place_limiters.setdefault(key.places, PlaceLimiter(key.places)))
        return tuple(limiters)

    def _made(self, name: str) -> tuple[Limiter, ...]:
        entries = self._named.get(name)
        if not entries:
            return ()
        made = tuple(entry if isinstance(entry, Limiter) else self._make(entry) for entry in entries)
        self._named[name] = made
        return made

    def _without(self, constraint: Constraint) -> Iterator[Limiter | Constraint]:
        """Return the entries for a task name, without the constraint's type."""
        for entry in self._named.get(constraint.scope.name, ()):
            if type(entry.constraint if isinstance(entry, Limiter) else entry) is not type(constraint):
                yield entry
