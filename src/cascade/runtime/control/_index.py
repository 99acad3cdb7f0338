"""Index of the rules in force by run and task name."""

from collections.abc import Callable, Iterable, Iterator
from itertools import chain

from cascade.runtime.control.constraint import Constraint, Scope
from cascade.runtime.control.rules import Key, PauseRule, PlaceRule, Rule
from cascade.runtime.protocols import Places


class RuleIndex:
    """Finds the rules that apply to a key. The number of rules for other task names does not matter.

    A rule for one task name is found by that name, and made when a task of that name first starts. Rules for all tasks,
    for runs and for patterns are evaluated once for each key: the result is kept until one of them changes.

    Args:
        make: Returns the rule for a constraint.
    """

    def __init__(self, make: Callable[[Constraint], Rule]) -> None:
        self._make = make
        self._broad: dict[tuple[Scope, str], Rule] = {}
        self._named: dict[str, tuple[Rule | Constraint, ...]] = {}
        self._found: dict[Key, tuple[Rule, ...]] = {}
        self._found_keys: dict[str, list[Key]] = {}
        self._place_rules: dict[Places, PlaceRule] = {}
        self.is_empty = True
        """True without a constraint: read at each start of a task."""

    def get(self, constraint: Constraint) -> Rule | None:
        """Return the rule of the same scope and type; None if there is none, or if it is not made yet."""
        scope = constraint.scope
        if not scope.is_name:
            return self._broad.get((scope, constraint.type))
        for entry in self._named.get(scope.name, ()):
            if isinstance(entry, Rule) and type(entry.constraint) is type(constraint):
                return entry
        return None

    def put(self, constraint: Constraint, rule: Rule | None = None) -> None:
        """Add a constraint, in place of the one of the same scope and type. Without a rule, it is made when needed."""
        scope = constraint.scope
        if scope.is_name:
            self._named[scope.name] = (*self._without(constraint), rule or constraint)
        else:
            self._broad[scope, constraint.type] = rule or self._make(constraint)
        self._changed(scope)

    def pop(self, constraint: Constraint) -> Rule | None:
        """Remove the constraint of the same scope and type, and return its rule, if that was made."""
        rule, scope = self.get(constraint), constraint.scope
        if not scope.is_name:
            self._broad.pop((scope, constraint.type), None)
        elif others := tuple(self._without(constraint)):
            self._named[scope.name] = others
        else:
            self._named.pop(scope.name, None)
        self._changed(scope)
        return rule

    def clear(self) -> list[Rule]:
        """Remove all constraints, and return the rules that were made. Rules for places stay."""
        named = (entry for entries in self._named.values() for entry in entries if isinstance(entry, Rule))
        rules = [*self._broad.values(), *named]
        self._broad.clear()
        self._named.clear()
        self._changed(None)
        return rules

    def of(self, key: Key) -> tuple[Rule, ...]:
        """Return the rules for a key. The last one is the rule for its place.

        A place is reserved only if no other rule holds the task back.
        """
        rules = self._found.get(key)
        if rules is None:
            rules = self._found[key] = self._covering(key)
            self._found_keys.setdefault(key.name, []).append(key)
        return rules

    def place_rule(self, places: Places) -> PlaceRule:
        """Return the rule for the places of an executor."""
        return self._place_rules[places]

    def forget(self, run_id: str, keys_at_work: Iterable[Key]) -> None:
        """Drop the results for a run that has ended, and the rules for places that no key uses."""
        self._found = {key: rules for key, rules in self._found.items() if key.run_ids[0] != run_id}
        self._found_keys.clear()
        for key in self._found:
            self._found_keys.setdefault(key.name, []).append(key)
        used = {key.places for key in (*self._found, *keys_at_work)}
        self._place_rules = {places: rule for places, rule in self._place_rules.items() if places in used or rule.lines}

    def _changed(self, scope: Scope | None) -> None:
        """Drop the results for the keys of a scope; None drops all."""
        self.is_empty = not self._broad and not self._named
        if scope is not None and scope.is_name:
            for key in self._found_keys.pop(scope.name, ()):
                del self._found[key]
        else:
            self._found.clear()
            self._found_keys.clear()

    def _covering(self, key: Key) -> tuple[Rule, ...]:
        broad = (rule for rule in self._broad.values() if rule.covers(key.run_ids, key.name))
        covering = chain(broad, self._made(key.name))
        rules = [rule for rule in covering if not key.is_map or isinstance(rule, PauseRule)]
        if key.places is not None:
            rules.append(self._place_rules.setdefault(key.places, PlaceRule(key.places)))
        return tuple(rules)

    def _made(self, name: str) -> tuple[Rule, ...]:
        entries = self._named.get(name)
        if not entries:
            return ()
        made = tuple(entry if isinstance(entry, Rule) else self._make(entry) for entry in entries)
        self._named[name] = made
        return made

    def _without(self, constraint: Constraint) -> Iterator[Rule | Constraint]:
        """Return the entries for a task name, without the constraint's type."""
        for entry in self._named.get(constraint.scope.name, ()):
            if type(entry.constraint if isinstance(entry, Rule) else entry) is not type(constraint):
                yield entry
