"""Options of a command line: the Params of a workflow and the conversion of text to their types."""

import json
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date, datetime, time
from decimal import Decimal
from enum import Enum, EnumType
from pathlib import PurePath
from types import GenericAlias
from typing import Annotated, Any, Literal, NewType, Union, get_args, get_origin
from uuid import UUID

from cascade.graph.build import build_graph
from cascade.spec.input import ParamSpec
from cascade.telemetry.redact import MASK, is_masked, redact_text

Convert = Callable[[str], Any]

_FLAGS = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}

SUPPORTED = (
    "str, int, float, bool, Decimal, UUID, Path, date, datetime, time, an Enum, a Literal, dict (JSON), a union of these, "
    "and list, set, frozenset or tuple[X, ...] of these"
)

RESERVED_NAMES = frozenset({"log-level", "log-format", "help"})
"""Names of options that cannot be the name of a Param. The other options of a run give way to a Param."""
SHOWN_TYPES = (str, int, float)
"""Types of the defaults that are compared and shown. `==` and `str` are not called for other types."""

_MAX_QUOTED = 200
"""Maximum number of characters of an invalid text in its error."""

_BY_CLASS: tuple[tuple[type, Callable[[Any], Convert]], ...] = (
    (Enum, lambda kind: _choice({**{m.name: m for m in kind}, **{str(m.value): m for m in kind}}, _choices(kind))),
    (bool, lambda _: _flag),
    (datetime, lambda kind: kind.fromisoformat),
    (date, lambda kind: kind.fromisoformat),
    (time, lambda kind: kind.fromisoformat),
    (dict, lambda _: _json_object),
    *((kind, lambda kind: kind) for kind in (str, int, float, Decimal, UUID, PurePath)),
)
_CONTAINERS = (list, set, frozenset, tuple)


@dataclass(frozen=True)
class OptionType:
    """Conversion of the text of an option to a value.

    `convert` raises ValueError for invalid text. An option with a `container` can be repeated; its value is a container
    of the converted texts. A `flag` has no text.
    """

    label: str
    convert: Convert
    container: Callable[[Sequence[Any]], Any] | None = None
    flag: bool = False

    def value(self, given: Any) -> Any:
        """Return the value of an option from the result of `convert`, or from the list of the results."""
        return given if self.container is None else self.container(given)


def option_type(kind: Any) -> OptionType:
    """Return the conversion for the type of a Param.

    Raises:
        TypeError: The type has no conversion from text.
    """
    kind = _plain(kind)
    members = [member for member in _members(kind) if member is not types.NoneType]
    if len(members) == 1:
        kind = _plain(members[0])
    origin = get_origin(kind) or kind
    if origin in _CONTAINERS:
        item = _plain(_item_of(kind))
        return OptionType(_label(item), _conversion(item), container=origin)
    return OptionType(_label(kind), _conversion(kind), flag=kind is bool)


def params_of(target: Any) -> list[ParamSpec]:
    """Return the Params of the target's graph in the order of their first use.

    Raises:
        TypeError: The type of a Param has no conversion from text.
        ValueError: Two Params with one name have different types or defaults, or a Param has the name of another option.
    """
    found: dict[str, ParamSpec] = {}
    for spec in (node.param_spec for node in build_graph(target).nodes):
        if not isinstance(spec, ParamSpec):
            continue
        if spec.name in RESERVED_NAMES:
            raise ValueError(f"Param '{spec.name}' has the name of the option --{spec.name}; give it another name")
        known = found.setdefault(spec.name, spec)
        if not _agree(known, spec):
            raise ValueError(
                f"The workflow has two Params '{spec.name}' with different types or defaults: "
                f"{_described(known)}, and {_described(spec)}. Declare the Param once, and pass it to both tasks"
            )
    for name, spec in found.items():
        if f"no-{name}" in found and type_of(spec).flag:
            raise ValueError(f"Param 'no-{name}' has the name of the option that unsets '{name}'; give it another name")
    return list(found.values())


def _agree(one: ParamSpec, other: ParamSpec) -> bool:
    same = one.default is other.default or (
        type(one.default) is type(other.default)
        and isinstance(one.default, SHOWN_TYPES)
        and one.default == other.default
    )
    return same and one.type == other.type


def _described(spec: ParamSpec) -> str:
    default = (
        repr(shown_default(spec)) if isinstance(spec.default, SHOWN_TYPES) else f"of type {type(spec.default).__name__}"
    )
    ending = f"with the default {default}" if spec.has_default else "without a default"
    return f"type {getattr(spec.type, '__name__', spec.type)} {ending}"


def shown_default(spec: ParamSpec) -> Any:
    """Return the default of a Param, masked if the name is that of a secret."""
    return MASK if is_masked(spec.name, spec.default) else spec.default


def default_text(spec: ParamSpec) -> str | None:
    """Return the default of a Param in the form of its option, masked; None if it has no such form."""
    shown = text_of(spec.default)
    return MASK if shown is not None and is_masked(spec.name, spec.default) else shown


def text_of(value: Any) -> str | None:
    """Return the text that the command line converts to the value; None if there is none."""
    match value:
        case Enum():
            return str(value.value)
        case str() | int() | float() | Decimal() | UUID() | PurePath():
            return str(value)
        case date() | time():
            return value.isoformat()
        case list() | tuple() | set() | frozenset():
            texts = [text_of(item) for item in value]
            return None if None in texts else ", ".join(map(str, texts))
        case _:
            return None


def type_of(spec: ParamSpec) -> OptionType:
    """Return the conversion for a Param. With `type=str`, which is the default, the type of the default value applies."""
    kind: Any = spec.type
    default: Any = spec.default
    if kind is str and default is not None and not isinstance(default, str):
        kind = type(default)
        if kind in {list, tuple, set, frozenset} and len({type(item) for item in default}) == 1:
            items: Any = (type(next(iter(default))),)
            kind = GenericAlias(kind, (*items, ...) if kind is tuple else items)
    try:
        return option_type(kind)
    except TypeError as error:
        raise TypeError(
            f"Param '{spec.name}': {error}. Declare the Param with type=str, and convert the text in a task"
        ) from None


def _conversion(kind: Any) -> Convert:
    kind = _plain(kind)
    if kind is Any or kind is None:
        return str
    if members := _members(kind):
        return _first_of([_conversion(member) for member in members if member is not types.NoneType])
    if get_origin(kind) is Literal:
        return _choice({str(value): value for value in get_args(kind)}, _choices(kind))
    base = get_origin(kind) or kind
    for known, convert in _BY_CLASS:
        if isinstance(base, type) and issubclass(base, known):
            return _checked(convert(base), _label(kind))
    raise TypeError(f"no conversion from text to {_label(kind)}; supported: {SUPPORTED}")


def _plain(kind: Any) -> Any:
    """Return the type that Annotated, NewType or `type X = ...` wraps."""
    while True:
        if get_origin(kind) is Annotated:
            kind = get_args(kind)[0]
        elif isinstance(kind, NewType):
            kind = kind.__supertype__
        elif type(kind).__name__ == "TypeAliasType":
            kind = kind.__value__
        else:
            return kind


def _members(kind: Any) -> tuple[Any, ...]:
    return get_args(kind) if get_origin(kind) in {Union, types.UnionType} else ()


def _item_of(kind: Any) -> Any:
    match get_args(kind):
        case ():
            return str
        case (item,) | (item, types.EllipsisType()):
            return item
        case _:
            raise TypeError(f"no conversion from text to {_label(kind)}; supported: {SUPPORTED}")


class _OptionError(ValueError):
    """Raised when a text has no conversion. The message is complete."""


def _checked(convert: Convert, label: str) -> Convert:
    def checked(text: str) -> Any:
        try:
            return convert(text)
        except _OptionError:
            raise
        except (ValueError, ArithmeticError, RecursionError):
            raise _OptionError(f"{_quoted(text)} is not a valid {label}") from None

    return checked


def _quoted(text: str) -> str:
    text = redact_text(text)
    return repr(text) if len(text) <= _MAX_QUOTED else f"{text[:_MAX_QUOTED]!r}…"


def _choice(values: dict[str, Any], choices: list[str]) -> Convert:
    def convert(text: str) -> Any:
        if text not in values:
            raise _OptionError(f"{_quoted(text)} is not one of {', '.join(choices)}")
        return values[text]

    return convert


def _choices(kind: Any) -> list[str]:
    """Return the texts of the values of an Enum or a Literal."""
    if get_origin(kind) is Literal:
        return [str(value) for value in get_args(kind)]
    if not isinstance(kind, EnumType):
        return []
    members: dict[str, Any] = dict(kind.__members__)
    return [str(member.value) for member in members.values()]


def _flag(text: str) -> bool:
    return bool(_choice(_FLAGS, list(_FLAGS))(text.lower()))


def _first_of(conversions: list[Convert]) -> Convert:
    def convert(text: str) -> Any:
        for each in conversions[:-1]:
            try:
                return each(text)
            except ValueError:
                continue
        return conversions[-1](text)

    return convert


def _json_object(text: str) -> dict[str, Any]:
    value = json.loads(text)
    if not isinstance(value, dict):
        raise _OptionError(f"{_quoted(text)} is not a JSON object")
    return value


def _label(kind: Any) -> str:
    if choices := _choices(kind):
        return "|".join(choices)
    return kind.__name__ if isinstance(kind, type) and not get_args(kind) else str(kind).replace("typing.", "")
