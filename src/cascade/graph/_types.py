"""Types of Params as JSON and back: a built-in type is its name, other types are objects with a tag."""

import builtins
import types
from functools import reduce
from operator import or_
from typing import Annotated, Any, Literal, NewType, Union, get_args, get_origin

from cascade.graph._importable import imported, name_of
from cascade.graph._literals import restored, stored

_ANY, _NONE, _ELLIPSIS = "Any", "None", "..."


def stored_type(kind: Any, param: str) -> Any:
    """The type in the form that JSON has for it.

    Raises:
        TypeError: The type has no form in JSON.
    """
    arguments = get_args(kind)
    match get_origin(kind):
        case None:
            return _stored_name(kind, param)
        case origin if origin is Annotated:
            return stored_type(arguments[0], param)
        case origin if origin is Literal:
            return {"literal": [stored(value, param, "type") for value in arguments]}
        case origin if origin in {Union, types.UnionType}:
            return {"union": [stored_type(member, param) for member in arguments]}
        case origin if not arguments:  # typing.Dict
            return _stored_name(origin, param)
        case origin:
            parts = [_ELLIPSIS if part is ... else stored_type(part, param) for part in arguments]
            return {"origin": stored_type(origin, param), "arguments": parts}


def restored_type(data: Any) -> Any:
    """The type that `stored_type` has stored.

    Raises:
        ValueError: The type cannot be imported.
    """
    match data:
        case str():
            return _builtin(data)
        case {"literal": values}:
            return Literal[tuple(restored(value) for value in values)]
        case {"union": members}:
            return reduce(or_, [restored_type(member) for member in members])
        case {"origin": origin, "arguments": parts}:
            return types.GenericAlias(
                restored_type(origin), tuple(... if part == _ELLIPSIS else restored_type(part) for part in parts)
            )
        case {"module": _, "qualname": _}:
            return imported(data)
    raise ValueError(f"{data!r} is not a stored type")


def _stored_name(kind: Any, param: str) -> Any:
    if kind is Any:
        return _ANY
    if kind is None or kind is types.NoneType:
        return _NONE
    if isinstance(kind, type) and kind.__module__ == "builtins":
        return kind.__name__
    if not isinstance(kind, (type, NewType)):
        raise TypeError(f"Param '{param}': JSON has no form for the type {kind!r}; use a class of a module")
    return name_of(kind, f"Param '{param}'")


def _builtin(name: str) -> Any:
    if name == _ANY:
        return Any
    if name == _NONE:
        return types.NoneType
    kind = getattr(builtins, name, None)
    if not isinstance(kind, type):
        raise ValueError(f"{name!r} is not a built-in type")  # noqa: TRY004 - the stored text is wrong
    return kind
