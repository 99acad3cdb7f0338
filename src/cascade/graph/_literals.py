"""Literal arguments as JSON and back. Values without a form in JSON are tagged; a lazy result is its id."""

import base64
import json
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import fields, is_dataclass
from enum import Enum
from typing import Any, cast

from cascade.graph._importable import imported, name_of
from cascade.spec.lazy_types import LazyResult
from cascade.spec.nested import LAZY
from cascade.spec.resource import Inject
from cascade.spec.routing import Router

LAZY_REF = "__lazy_ref"
_TUPLE, _SET, _FROZENSET, _BYTES, _DICT = "__tuple", "__set", "__frozenset", "__bytes", "__dict"
_DATA, _ENUM, _SUBCLASS, _ROUTER, _INJECT = "__dataclass", "__enum", "__subclass", "__router", "__inject"
_TAGS = {LAZY_REF, _TUPLE, _SET, _FROZENSET, _BYTES, _DICT, _DATA, _ENUM, _SUBCLASS, _ROUTER, _INJECT}
_BASES = (list, tuple, dict, set, frozenset, deque)


def reference(uuid: str) -> LazyResult[Any]:
    """A stand-in for a lazy result that was stored by its id."""
    return LazyResult(None, (), {}, uuid)


def stored(value: Any, node: str, argument: str) -> Any:
    """The value as JSON has it.

    Raises:
        TypeError: It has no form in JSON, naming the node and the argument.
        ValueError: It is an object of a class that cannot be imported, naming both.
    """
    place = f"Node '{node}': argument '{argument}'"
    try:
        return _Stored(place).of(value)
    except RecursionError:
        raise TypeError(f"{place} contains itself, or is nested too deeply for JSON; pass plain data") from None


class _Stored:
    def __init__(self, place: str) -> None:
        self._place = place

    def of(self, value: Any) -> Any:
        match value:
            case Enum():
                return {_ENUM: {**self._name_of(value), "value": self.of(value.value)}}
            case None | bool() | int() | float() | str():
                return value
            case bytes():
                return {_BYTES: base64.b64encode(value).decode()}
            case Inject():
                return {_INJECT: value.resource_name}
            case Router():
                routes = [[self.of(key), self.of(route)] for key, route in value.routes.items()]
                return {_ROUTER: {"selector": self.of(value.selector), "routes": routes}}
            case _ if isinstance(value, LAZY):
                return {LAZY_REF: value._uuid}
            case _ if is_dataclass(value) and not isinstance(value, type):
                data = {f.name: self.of(getattr(value, f.name)) for f in fields(value) if hasattr(value, f.name)}
                return {_DATA: {**self._name_of(value), "fields": data}}
            case list() | tuple() | dict() | set() | frozenset() | deque():
                return self._container(value)
        raise TypeError(
            f"{self._place} is a {type(value).__name__}, which JSON has no form for; pass plain data, or let a task make it"
        )

    def _container(self, value: Any) -> Any:
        kind = type(value)
        base = next(base for base in _BASES if isinstance(value, base))
        if kind is base and kind is not deque:
            return self._built_in(value)
        if getattr(value, "__dict__", None) or getattr(value, "maxlen", None) or hasattr(value, "default_factory"):
            raise TypeError(
                f"{self._place} is a {kind.__name__} with attributes, which JSON has no form for; pass plain data"
            )
        content = self._built_in(list(value) if base is deque else base(value))
        return {_SUBCLASS: {**self._name_of(value), "content": content}}

    def _built_in(self, value: Any) -> Any:
        match value:
            case list():
                return self._all(value)
            case tuple():
                return {_TUPLE: self._all(value)}
            case dict():
                return self._dict(value)
            case _:
                return {_SET if isinstance(value, set) else _FROZENSET: sorted(self._all(value), key=json.dumps)}

    def _all(self, items: Iterable[Any]) -> list[Any]:
        return [self.of(item) for item in items]

    def _dict(self, value: dict[Any, Any]) -> dict[str, Any]:
        if all(type(key) is str for key in value) and not (len(value) == 1 and set(value) <= _TAGS):
            return {key: self.of(item) for key, item in value.items()}
        return {_DICT: [[self.of(key), self.of(item)] for key, item in value.items()]}

    def _name_of(self, value: Any) -> dict[str, str]:
        return name_of(type(value), self._place)


def restored(value: Any) -> Any:
    """The value that `stored` made. Raises ValueError if a class cannot be imported or refuses the content."""
    if isinstance(value, list):
        return [restored(item) for item in value]
    if not isinstance(value, dict):
        return value
    tag = next(iter(value)) if len(value) == 1 else ""
    if tag not in _TAGS:
        return {key: restored(item) for key, item in value.items()}
    return _UNTAGGED[tag](value[tag])


def _pairs(content: Any) -> dict[Any, Any]:
    return {restored(key): restored(item) for key, item in content}


def _router(content: Any) -> Router:
    return Router(restored(content["selector"]), _pairs(content["routes"]))


def _enum(content: dict[str, Any]) -> Any:
    return _made(content, lambda kind: kind(restored(content["value"])))


def _subclass(content: dict[str, Any]) -> Any:
    items = restored(content["content"])
    return _made(content, lambda kind: kind._make(items) if hasattr(kind, "_make") else kind(items))


def _dataclass(content: dict[str, Any]) -> Any:
    kind = imported(content)
    if not (isinstance(kind, type) and is_dataclass(kind)):
        raise ValueError(f"{content['module']}.{content['qualname']} is no dataclass")
    value = object.__new__(cast("type[Any]", kind))
    for name, item in content["fields"].items():
        object.__setattr__(value, name, restored(item))  # a frozen dataclass refuses setattr
    return value


def _made(content: dict[str, Any], make: Callable[[Any], Any]) -> Any:
    kind = imported(content)
    try:
        return make(kind)
    except Exception as error:
        raise ValueError(
            f"{content['module']}.{content['qualname']} does not accept its stored content: {error}"
        ) from error


_UNTAGGED: dict[str, Callable[[Any], Any]] = {
    LAZY_REF: reference,
    _TUPLE: lambda content: tuple(restored(item) for item in content),
    _SET: lambda content: {restored(item) for item in content},
    _FROZENSET: lambda content: frozenset(restored(item) for item in content),
    _BYTES: base64.b64decode,
    _DICT: _pairs,
    _DATA: _dataclass,
    _ENUM: _enum,
    _SUBCLASS: _subclass,
    _ROUTER: _router,
    _INJECT: Inject,
}
