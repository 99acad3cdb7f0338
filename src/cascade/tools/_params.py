"""The Params of a workflow, as the command line offers them."""

from types import GenericAlias
from typing import Any

from cascade.graph.build import build_graph
from cascade.spec.input import ParamSpec
from cascade.telemetry.redact import MASK, hides
from cascade.tools._options import OptionType, option_type

TAKEN = frozenset({"log-level", "log-format", "help"})
SHOWN = (str, int, float)
"""Types of the defaults that are compared and shown. The `==` and `str` of other values are not called."""


def params_of(target: Any) -> list[ParamSpec]:
    """The Params of the target's graph, in the order of their names' first declaration in the target's arguments.

    Raises:
        TypeError: The type of a Param has no conversion from text.
        ValueError: Two Params of one name have different types or defaults, or a name is that of another option.
    """
    found: dict[str, ParamSpec] = {}
    for spec in (node.param_spec for node in build_graph(target).nodes):
        if not isinstance(spec, ParamSpec):
            continue
        if spec.name in TAKEN:
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
        type(one.default) is type(other.default) and isinstance(one.default, SHOWN) and one.default == other.default
    )
    return same and one.type == other.type


def _described(spec: ParamSpec) -> str:
    default = repr(shown_default(spec)) if isinstance(spec.default, SHOWN) else f"of type {type(spec.default).__name__}"
    ending = f"with the default {default}" if spec.has_default else "without a default"
    return f"type {getattr(spec.type, '__name__', spec.type)} {ending}"


def shown_default(spec: ParamSpec) -> Any:
    """The default of a Param, masked if the Param has the name of a secret."""
    return MASK if hides(spec.name, spec.default) else spec.default


def type_of(spec: ParamSpec) -> OptionType:
    """The conversion for a Param. A default of another type than the declared one of str gives the type."""
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
