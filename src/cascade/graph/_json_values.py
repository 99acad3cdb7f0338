"""Values, types and functions of a graph in JSON form.

A value without a JSON form is an object with one tag. A lazy result is its id. A class or function is its module and
qualified name.
"""

import base64
import builtins
import json
import types
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import fields, is_dataclass
from datetime import date, datetime, time, timezone
from decimal import Decimal
from enum import Enum
from functools import reduce
from importlib import import_module
from operator import or_
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Annotated, Any, Literal, NewType, Union, cast, get_args, get_origin
from uuid import UUID

from cascade.spec.lazy_types import LazyResult
from cascade.spec.nested import LAZY
from cascade.spec.resource import Inject
from cascade.spec.routing import Router
from cascade.spec.task import Task

LAZY_REF = "__lazy_ref"
_TUPLE, _SET, _FROZENSET, _BYTES, _DICT = "__tuple", "__set", "__frozenset", "__bytes", "__dict"
_DATA, _ENUM, _SUBCLASS, _ROUTER, _INJECT = "__dataclass", "__enum", "__subclass", "__router", "__inject"
_TEXT = "__text"
_TAGS = {LAZY_REF, _TUPLE, _SET, _FROZENSET, _BYTES, _DICT, _DATA, _ENUM, _SUBCLASS, _ROUTER, _INJECT, _TEXT}
_TEXTS: dict[str, tuple[type[Any], Callable[[Any], str], Callable[[str], Any]]] = {
    "Path": (type(Path()), str, Path),
    "PurePosixPath": (PurePosixPath, str, PurePosixPath),
    "PureWindowsPath": (PureWindowsPath, str, PureWindowsPath),
    "datetime": (datetime, datetime.isoformat, datetime.fromisoformat),
    "date": (date, date.isoformat, date.fromisoformat),
    "time": (time, time.isoformat, time.fromisoformat),
    "Decimal": (Decimal, str, Decimal),
    "UUID": (UUID, str, UUID),
}
"""Types whose values are stored as text, by their names: the type, the function that writes the text, and its inverse."""
_TEXT_NAMES = {kind: name for name, (kind, _, _) in _TEXTS.items()}
_FIXED_ZONES = (timezone, types.NoneType)
"""Time zones that a text in ISO 8601 contains completely."""
_BASES = (list, tuple, dict, set, frozenset, deque)
_ANY, _NONE, _ELLIPSIS = "Any", "None", "..."
_FIX = "a stored graph needs objects that are at the top of a module that can be imported"


def import_name(thing: Any, owner: str) -> dict[str, str]:
    """Return the module and the qualified name of a function or a class. A task has the name of its function.

    Raises:
        ValueError: The name does not import the same object, as for a lambda, a partial, a bound method or a local
            function, or the object is in `__main__`. The text begins with `owner`.
    """
    function = _function_of(thing)
    kind = type(function)
    name = {
        "module": str(getattr(function, "__module__", None) or kind.__module__),
        "qualname": str(getattr(function, "__qualname__", kind.__qualname__)),
    }
    if name["module"] == "__main__":
        raise ValueError(
            f"{owner}: {name['qualname']} is in __main__, the program that was started. Another program has another "
            "__main__; move the object to a module, and import it from there"
        )
    try:
        found = _function_of(import_object(name))
    except ValueError as error:
        raise ValueError(f"{owner}: {error}") from error
    # Each access to a class method makes a new object, which is equal.
    if found is function or (isinstance(function, types.MethodType) and found == function):
        return name
    raise ValueError(
        f"{owner}: {name['module']}.{name['qualname']} is another object than the given {kind.__name__}; {_FIX}"
    )


def import_object(name: dict[str, str]) -> Any:
    """Return the object with a module and a qualified name. Raises ValueError if the import fails."""
    found: Any
    try:
        found = import_module(name["module"])
        for part in name["qualname"].split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"Cannot import {name['module']}.{name['qualname']}: {error}; {_FIX}") from error
    return found


def _function_of(thing: Any) -> Any:
    return thing.func if isinstance(thing, Task) else thing


def lazy_reference(uuid: str) -> LazyResult[Any]:
    """Return a lazy result that has only an id."""
    return LazyResult(None, (), {}, uuid)


def encode(value: Any, node: str, argument: str) -> Any:
    """Return the JSON form of a value.

    Raises:
        TypeError: The value has no JSON form. The text names the node and the argument.
        ValueError: The class of the value cannot be imported. The text names the node and the argument.
    """
    return encode_at(f"Node '{node}': argument '{argument}'", value)


def encode_at(place: str, value: Any) -> Any:
    """Return the JSON form of a value. Raises the errors of `encode`, whose texts begin with `place`."""
    try:
        return _Encoder(place).encode(value)
    except RecursionError:
        raise TypeError(f"{place} contains itself, or is nested too deeply for JSON; pass plain data") from None


class _Encoder:
    def __init__(self, place: str) -> None:
        self._place = place

    def encode(self, value: Any) -> Any:
        match value:
            case Enum():
                return {_ENUM: {**self._class_name(value), "value": self.encode(value.value)}}
            case None | bool() | int() | float() | str():
                return value
            case bytes():
                return {_BYTES: base64.b64encode(value).decode()}
            case _ if type(value) in _TEXT_NAMES and isinstance(getattr(value, "tzinfo", None), _FIXED_ZONES):
                name = _TEXT_NAMES[type(value)]
                return {_TEXT: {"type": name, "text": _TEXTS[name][1](value)}}
            case Inject():
                return {_INJECT: value.resource_name}
            case Router():
                routes = [[self.encode(key), self.encode(route)] for key, route in value.routes.items()]
                return {_ROUTER: {"selector": self.encode(value.selector), "routes": routes}}
            case _ if isinstance(value, LAZY):
                return {LAZY_REF: value._uuid}
            case _ if is_dataclass(value) and not isinstance(value, type):
                data = {f.name: self.encode(getattr(value, f.name)) for f in fields(value) if hasattr(value, f.name)}
                return {_DATA: {**self._class_name(value), "fields": data}}
            case list() | tuple() | dict() | set() | frozenset() | deque():
                return self._encode_container(value)
        raise TypeError(
            f"{self._place} is a {type(value).__name__}, which has no JSON form; pass plain data, or let a task make it"
        )

    def _encode_container(self, value: Any) -> Any:
        kind = type(value)
        base = next(base for base in _BASES if isinstance(value, base))
        if kind is base and kind is not deque:
            return self._encode_builtin(value)
        if getattr(value, "__dict__", None) or getattr(value, "maxlen", None) or hasattr(value, "default_factory"):
            raise TypeError(
                f"{self._place} is a {kind.__name__} with attributes, which has no JSON form; pass plain data"
            )
        content = self._encode_builtin(list(value) if base is deque else base(value))
        return {_SUBCLASS: {**self._class_name(value), "content": content}}

    def _encode_builtin(self, value: Any) -> Any:
        match value:
            case list():
                return self._encode_items(value)
            case tuple():
                return {_TUPLE: self._encode_items(value)}
            case dict():
                return self._encode_dict(value)
            case _:
                return {
                    _SET if isinstance(value, set) else _FROZENSET: sorted(self._encode_items(value), key=json.dumps)
                }

    def _encode_items(self, items: Iterable[Any]) -> list[Any]:
        return [self.encode(item) for item in items]

    def _encode_dict(self, value: dict[Any, Any]) -> dict[str, Any]:
        if all(type(key) is str for key in value) and not (len(value) == 1 and set(value) <= _TAGS):
            return {key: self.encode(item) for key, item in value.items()}
        return {_DICT: [[self.encode(key), self.encode(item)] for key, item in value.items()]}

    def _class_name(self, value: Any) -> dict[str, str]:
        return import_name(type(value), self._place)


def decode(value: Any) -> Any:
    """Return the value that `encode` encoded. Raises ValueError for a class that fails to import or rejects its content."""
    if isinstance(value, list):
        return [decode(item) for item in value]
    if not isinstance(value, dict):
        return value
    tag = next(iter(value)) if len(value) == 1 else ""
    if tag not in _TAGS:
        return {key: decode(item) for key, item in value.items()}
    return _DECODERS[tag](value[tag])


def _decode_pairs(content: Any) -> dict[Any, Any]:
    return {decode(key): decode(item) for key, item in content}


def _decode_router(content: Any) -> Router:
    return Router(decode(content["selector"]), _decode_pairs(content["routes"]))


def _decode_enum(content: dict[str, Any]) -> Any:
    return _construct(content, lambda kind: kind(decode(content["value"])))


def _decode_subclass(content: dict[str, Any]) -> Any:
    items = decode(content["content"])
    return _construct(content, lambda kind: kind._make(items) if hasattr(kind, "_make") else kind(items))


def _decode_dataclass(content: dict[str, Any]) -> Any:
    kind = import_object(content)
    if not (isinstance(kind, type) and is_dataclass(kind)):
        raise ValueError(f"{content['module']}.{content['qualname']} is not a dataclass")
    value = object.__new__(cast("type[Any]", kind))
    for name, item in content["fields"].items():
        object.__setattr__(value, name, decode(item))  # a frozen dataclass refuses setattr
    return value


def _decode_text(content: dict[str, Any]) -> Any:
    try:
        _, _, read = _TEXTS[content["type"]]
        return read(content["text"])
    except (ArithmeticError, LookupError, ValueError) as error:
        raise ValueError(f"{content!r} is not a stored text: {type(error).__name__}") from error


def _construct(content: dict[str, Any], make: Callable[[Any], Any]) -> Any:
    kind = import_object(content)
    try:
        return make(kind)
    except Exception as error:
        raise ValueError(
            f"{content['module']}.{content['qualname']} does not accept its stored content: {error}"
        ) from error


_DECODERS: dict[str, Callable[[Any], Any]] = {
    LAZY_REF: lazy_reference,
    _TUPLE: lambda content: tuple(decode(item) for item in content),
    _SET: lambda content: {decode(item) for item in content},
    _FROZENSET: lambda content: frozenset(decode(item) for item in content),
    _BYTES: base64.b64decode,
    _DICT: _decode_pairs,
    _DATA: _decode_dataclass,
    _ENUM: _decode_enum,
    _SUBCLASS: _decode_subclass,
    _ROUTER: _decode_router,
    _INJECT: Inject,
    _TEXT: _decode_text,
}


def encode_type(kind: Any, param: str) -> Any:
    """Return the JSON form of the type of a Param. A built-in type is its name.

    Raises:
        TypeError: The type has no JSON form.
    """
    arguments = get_args(kind)
    match get_origin(kind):
        case None:
            return _encode_type_name(kind, param)
        case origin if origin is Annotated:
            return encode_type(arguments[0], param)
        case origin if origin is Literal:
            return {"literal": [encode(value, param, "type") for value in arguments]}
        case origin if origin in {Union, types.UnionType}:
            return {"union": [encode_type(member, param) for member in arguments]}
        case origin if not arguments:  # typing.Dict
            return _encode_type_name(origin, param)
        case origin:
            parts = [_ELLIPSIS if part is ... else encode_type(part, param) for part in arguments]
            return {"origin": encode_type(origin, param), "arguments": parts}


def decode_type(data: Any) -> Any:
    """Return the type that `encode_type` encoded.

    Raises:
        ValueError: The type cannot be imported.
    """
    match data:
        case str():
            return _decode_type_name(data)
        case {"literal": values}:
            return Literal[tuple(decode(value) for value in values)]
        case {"union": members}:
            return reduce(or_, [decode_type(member) for member in members])
        case {"origin": origin, "arguments": parts}:
            return types.GenericAlias(
                decode_type(origin), tuple(... if part == _ELLIPSIS else decode_type(part) for part in parts)
            )
        case {"module": _, "qualname": _}:
            return import_object(data)
    raise ValueError(f"{data!r} is not a stored type")


def _encode_type_name(kind: Any, param: str) -> Any:
    if kind is Any:
        return _ANY
    if kind is None or kind is types.NoneType:
        return _NONE
    if isinstance(kind, type) and kind.__module__ == "builtins":
        return kind.__name__
    if not isinstance(kind, (type, NewType)):
        raise TypeError(f"Param '{param}': the type {kind!r} has no JSON form; use a class of a module")
    return import_name(kind, f"Param '{param}'")


def _decode_type_name(name: str) -> Any:
    if name == _ANY:
        return Any
    if name == _NONE:
        return types.NoneType
    kind = getattr(builtins, name, None)
    if not isinstance(kind, type):
        raise ValueError(f"{name!r} is not a built-in type")  # noqa: TRY004 - the stored text is wrong
    return kind
