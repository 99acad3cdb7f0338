"""Literal arguments as JSON and back. What JSON has no form for is tagged; lazy results are references by id."""

import base64
from dataclasses import fields, is_dataclass
from importlib import import_module
from typing import Any, cast

from cascade.spec.lazy_types import LazyResult
from cascade.spec.nested import LAZY
from cascade.spec.resource import Inject

LAZY_REF = "__lazy_ref"
_TUPLE, _SET, _BYTES, _DICT, _DATA, _INJECT = "__tuple", "__set", "__bytes", "__dict", "__dataclass", "__inject"
_TAGS = {LAZY_REF, _TUPLE, _SET, _BYTES, _DICT, _DATA, _INJECT}


def reference(uuid: str) -> LazyResult[Any]:
    """What stands for a lazy result that was stored by its id."""
    return LazyResult(None, (), {}, uuid)


def stored(value: Any, node: str, argument: str) -> Any:
    """The value as JSON has it.

    Raises:
        TypeError: It has no form in JSON, naming the node and the argument.
    """
    match value:
        case None | bool() | int() | float() | str():
            return value
        case list():
            return [stored(item, node, argument) for item in value]
        case tuple():
            return {_TUPLE: [stored(item, node, argument) for item in value]}
        case set() | frozenset():
            return {_SET: [stored(item, node, argument) for item in sorted(value, key=repr)]}
        case bytes():
            return {_BYTES: base64.b64encode(value).decode()}
        case dict():
            return _stored_dict(value, node, argument)
        case Inject():
            return {_INJECT: value.resource_name}
        case _ if isinstance(value, LAZY):
            return {LAZY_REF: value._uuid}
        case _ if is_dataclass(value) and not isinstance(value, type):
            kind = type(value)
            data = {f.name: stored(getattr(value, f.name), node, argument) for f in fields(value) if f.init}
            return {_DATA: {"module": kind.__module__, "qualname": kind.__qualname__, "fields": data}}
    raise TypeError(
        f"Node '{node}': argument '{argument}' is a {type(value).__name__}, which JSON has no form for; pass plain data, "
        "or let a task make it"
    )


def _stored_dict(value: dict[Any, Any], node: str, argument: str) -> dict[str, Any]:
    if all(isinstance(key, str) for key in value) and not (len(value) == 1 and set(value) <= _TAGS):
        return {key: stored(item, node, argument) for key, item in value.items()}
    return {_DICT: [[stored(k, node, argument), stored(v, node, argument)] for k, v in value.items()]}


def restored(value: Any) -> Any:
    """The value that `stored` has written. Raises ValueError if a dataclass cannot be imported."""
    if isinstance(value, list):
        return [restored(item) for item in value]
    if not isinstance(value, dict):
        return value
    tag = next(iter(value)) if len(value) == 1 else ""
    if tag not in _TAGS:
        return {key: restored(item) for key, item in value.items()}
    return _untagged(tag, value[tag])


def _untagged(tag: str, content: Any) -> Any:
    match tag:
        case "__lazy_ref":
            return reference(content)
        case "__tuple":
            return tuple(restored(item) for item in content)
        case "__set":
            return {restored(item) for item in content}
        case "__bytes":
            return base64.b64decode(content)
        case "__dict":
            return {restored(key): restored(item) for key, item in content}
        case "__inject":
            return Inject(content)
        case _:
            return _dataclass(content)


def _dataclass(content: dict[str, Any]) -> Any:
    try:
        kind: Any = import_module(content["module"])
        for part in content["qualname"].split("."):
            kind = getattr(kind, part)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"Cannot import {content['module']}.{content['qualname']}: {error}") from error
    if not is_dataclass(cast("object", kind)):  # a narrowed `kind` could not be called
        raise ValueError(f"{content['module']}.{content['qualname']} is no dataclass")
    return kind(**{name: restored(item) for name, item in content["fields"].items()})
