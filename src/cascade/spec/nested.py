"""Lazy results and Routers (sources) in the containers of an argument, at any depth.

The containers are lists, tuples, dicts, deques and their subclasses, instances of dataclasses and attrs classes,
`MappingProxyType`, `SimpleNamespace`, `ChainMap`, `UserList` and `UserDict`. A container with a source is copied with its type
and its other content. A container without a source stays the same object. The search reads the stored items and attributes; it
calls no method or property of a class. It does not use `isinstance`, which reads `__class__`: a proxy may run code for that.
"""

from collections import ChainMap, UserDict, UserList, deque
from collections.abc import Callable, ItemsView, Iterable, Iterator, KeysView, ValuesView
from contextlib import suppress
from copy import copy
from dataclasses import fields, is_dataclass
from itertools import chain, islice
from types import AsyncGeneratorType, MappingProxyType, MemberDescriptorType, SimpleNamespace
from typing import Any

from cascade.spec.lazy_types import LazyResult, MappedLazyResult
from cascade.spec.resource import Inject
from cascade.spec.routing import Router
from cascade.spec.unmapped import Unmapped

LAZY = (LazyResult, MappedLazyResult)
SOURCES = (*LAZY, Router)
ATOMS = frozenset({str, int, float, bool, bytes, type(None)})
_SIMPLE = ATOMS | {LazyResult, MappedLazyResult, Router, Inject, list, tuple, dict}
_BY_ATTRIBUTE = frozenset({SimpleNamespace, ChainMap, UserDict, UserList})
_CONTAINERS = _BY_ATTRIBUTE | {list, tuple, dict, deque, MappingProxyType}
_SETS = (set, frozenset)
_UNORDERED = (*_SETS, KeysView, ValuesView, ItemsView)
_ATTRS = "__attrs_attrs__"
_MISSING = object()
_LIMIT = 100
_ADVICE = "pass it to a task, which receives its value, or call its function"


def require_visible(args: tuple[Any, ...], kwargs: dict[str, Any], task: str) -> None:
    """Raise TypeError if an argument of a call hides lazy results, as a set or an iterator does."""
    if _SIMPLE.issuperset(map(type, args)) and _SIMPLE.issuperset(map(type, kwargs.values())):
        return
    for name, value in (*enumerate(args), *kwargs.items()):
        _refuse_hidden(value, f"Task '{task}': argument '{name}'", is_nested=False)


def sources_in(value: Any, name: str) -> Iterator[Any]:
    """Yield each lazy result and Router nested in `value`, in order, with repetitions.

    Raises:
        TypeError: A source is in a set or a view, where it cannot be replaced by its value; or the value contains an
            iterator or an Inject. The text begins with `name`.
    """
    stack = [value]
    visited: set[int] = set()  # a container may contain itself
    plain = set(ATOMS)
    while stack:
        current = stack.pop()
        if type(current) in plain:
            continue
        if issubclass(type(current), SOURCES):
            yield current
        elif (parts := _parts(current)) is None:
            if not _refuse_hidden(current, name, is_nested=current is not value):
                plain.add(type(current))
        elif id(current) not in visited:
            visited.add(id(current))
            stack.extend(reversed(parts))


def substitute(value: Any, value_of: Callable[[Any], Any]) -> Any:
    """Return `value` with each nested lazy result and Router replaced by `value_of(source)`."""
    if type(value) is list and set(map(type, value)) == {LazyResult}:  # such as the values of 10,000 tasks
        return [value_of(source) for source in value]
    return _Substitution(value, value_of).of(value)


def require_values(value: Any, prefix: str, advice: str = _ADVICE) -> None:
    """Raise TypeError if a value of a run is or contains a lazy result, which no run would execute.

    At most `_LIMIT` objects are examined. The text begins with `prefix`, such as "Task 'load' returned", and ends with
    `advice`.
    """
    if type(value) in ATOMS:
        return
    stack, limit = [value], _LIMIT
    while stack and limit:
        limit -= 1
        current = stack.pop()
        if type(current) in ATOMS:
            continue
        if issubclass(type(current), SOURCES):
            kind = "Router" if issubclass(type(current), Router) else f"lazy result of task {current.task_name!r}"
            raise TypeError(f"{prefix} a {kind}, which nothing runs; {advice}")
        content = _set_items(current) if issubclass(type(current), _SETS) else _content(current)
        if content is not None:
            stack.extend(islice(content, limit))


class _Substitution:
    """Copies the containers of one value that contain a source. A container that occurs twice is copied once."""

    def __init__(self, value: Any, value_of: Callable[[Any], Any]) -> None:
        self._holders = _holders(value)
        self._value_of = value_of
        self._copies: dict[int, Any] = {}

    def of(self, value: Any) -> Any:
        if type(value) in ATOMS:
            return value
        if issubclass(type(value), SOURCES):
            return self._value_of(value)
        if id(value) not in self._holders:
            return value
        if id(value) not in self._copies:
            self._copies[id(value)] = self._copied(value)
        return self._copies[id(value)]

    def _copied(self, value: Any) -> Any:
        if issubclass(type(value), tuple):
            return self._tuple(value)
        if issubclass(type(value), MappingProxyType):
            return MappingProxyType({self.of(key): self.of(item) for key, item in value.items()})
        new = self._copies[id(value)] = copy(value)  # before it is filled: it may contain itself
        if issubclass(type(value), (list, deque)):
            new.clear()
            new.extend(self.of(item) for item in value)
        elif issubclass(type(value), dict):
            new.clear()
            for key, item in value.items():
                new[self.of(key)] = self.of(item)
        for name, old in (_attributes(value) or {}).items():
            object.__setattr__(new, name, self.of(old))  # a frozen dataclass refuses setattr
        return new

    def _tuple(self, value: tuple[Any, ...]) -> Any:
        items = [self.of(item) for item in tuple.__iter__(value)]
        kind: Any = type(value)
        if kind is tuple:
            return tuple(items)
        new = kind._make(items) if hasattr(kind, "_make") else tuple.__new__(kind, items)
        if hasattr(value, "__dict__"):
            vars(new).update(vars(value))
        return new


def _holders(value: Any) -> dict[int, Any]:
    """Return the containers in `value` that contain a source at any depth, by id. The references keep the ids valid."""
    containers = {id(value): value}
    parents: dict[int, list[int]] = {id(value): []}
    found: list[int] = []
    stack = [value]
    while stack:
        current = stack.pop()
        for part in _parts(current) or ():
            if type(part) in ATOMS:
                continue
            if issubclass(type(part), SOURCES):
                found.append(id(current))
            elif id(part) in containers:
                parents[id(part)].append(id(current))
            else:
                containers[id(part)] = part
                parents[id(part)] = [id(current)]
                stack.append(part)
    holders: dict[int, Any] = {}
    while found:
        if (holder := found.pop()) not in holders:
            holders[holder] = containers[holder]
            found.extend(parents[holder])
    return holders


def _parts(value: Any) -> list[Any] | None:
    """Return the content of a container; None for another object."""
    content = _content(value)
    return None if content is None else [*content]


def _content(value: Any) -> Iterator[Any] | None:
    """Return the items and attributes of a container; None for another object. Calls no method of a subclass."""
    if not is_container(type(value)):
        return None
    items, attributes = _items(value), _attributes(value)
    return items if attributes is None else chain(items or (), attributes.values())


def is_container(kind: Any) -> bool:
    """Return True if instances of the type are containers. Calls no hook of an abstract base class."""
    return not _CONTAINERS.isdisjoint(kind.__mro__) or hasattr(kind, "__dataclass_fields__") or hasattr(kind, _ATTRS)


def _items(value: Any) -> Iterator[Any] | None:
    kind = type(value)
    if issubclass(kind, list):
        return list.__iter__(value)
    if issubclass(kind, tuple):
        return tuple.__iter__(value)
    if issubclass(kind, dict):
        return chain(dict.keys(value), dict.values(value))
    if issubclass(kind, deque):
        return deque.__iter__(value)
    if kind is MappingProxyType:
        return chain(value.keys(), value.values())
    return None


def _set_items(value: Any) -> Iterator[Any]:
    """Return the items of a set or a view. Calls no method of a subclass of a built-in set."""
    base = next((base for base in _SETS if issubclass(type(value), base)), type(value))
    return iter(base.__iter__(value))


def _attributes(value: Any) -> dict[str, Any] | None:
    """Return the attributes that are content of a container; None if the type has none."""
    kind = type(value)
    if kind in {list, tuple, dict, Inject}:
        return None
    if is_dataclass(kind):
        names = [field.name for field in fields(kind)]
    elif isinstance(attributes := getattr(kind, _ATTRS, None), tuple):
        names = [attribute.name for attribute in attributes]
    elif not _BY_ATTRIBUTE.isdisjoint(kind.__mro__):
        names = []
    else:
        return None
    return _stored(value, names)


def _stored(value: Any, names: Iterable[str]) -> dict[str, Any]:
    """Return the stored attributes of an object. Properties and other descriptors are not read: they may run code."""
    try:
        stored = dict(object.__getattribute__(value, "__dict__"))
    except AttributeError:
        stored = {}
    for name in names:
        if name in stored:
            continue
        default = getattr(type(value), name, _MISSING)
        if type(default) is MemberDescriptorType:  # an attribute in a slot
            with suppress(AttributeError):
                stored[name] = default.__get__(value)
        elif default is not _MISSING and not hasattr(type(default), "__get__"):
            stored[name] = default
    return stored


def _refuse_hidden(value: Any, name: str, *, is_nested: bool) -> bool:
    """Raise TypeError for an object that hides sources. Returns True if another object of its type may hide some."""
    kind = type(value).__name__
    if issubclass(type(value), _UNORDERED):
        if any(
            type(item) not in ATOMS and next(sources_in(item, name), None) is not None for item in _set_items(value)
        ):
            raise TypeError(
                f"{name}: a lazy result is in a {kind}, where it cannot be replaced by its value; give a list"
            )
    elif issubclass(type(value), Inject):
        if is_nested:
            raise TypeError(
                f"{name}: cs.inject('{value.resource_name}') is in a container; make it an argument of its own"
            )
    elif issubclass(type(value), Unmapped):
        raise TypeError(f"{name}: cs.unmapped(...) is an argument of .map(...) only; give the value itself")
    elif _is_iterator(value):
        raise TypeError(
            f"{name}: an iterator ({kind}) can be read once only, and may contain lazy results; give a list"
        )
    else:
        return False
    return True


def _is_iterator(value: Any) -> bool:
    """Return True for a generator and for an iterator of `builtins` or `itertools`, but not for a file or a cursor."""
    if issubclass(type(value), AsyncGeneratorType):
        return True
    return type(value).__module__ in {"builtins", "itertools"} and issubclass(type(value), Iterator)
