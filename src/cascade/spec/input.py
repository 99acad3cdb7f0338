"""Inputs of a workflow: parameters and environment variables."""

from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin


@dataclass(frozen=True)
class InputSpec:
    """A named input. The default None means that the input has no default."""

    name: str
    default: Any = None
    description: str = ""

    @property
    def has_default(self) -> bool:
        """True if a run can start without a value for the input."""
        return self.default is not None


@dataclass(frozen=True)
class ParamSpec(InputSpec):
    """A parameter of `cs.run(…, params={name: value})`. On the command line it is an option of this type.

    If the type includes None, as `int | None` does, the default None is a default like any other.
    """

    type: Any = str

    @property
    def has_default(self) -> bool:
        return self.default is not None or _includes_none(self.type)


@dataclass(frozen=True)
class EnvSpec(InputSpec):
    """An environment variable that the run reads."""


def _includes_none(kind: Any) -> bool:
    if get_origin(kind) in {Union, UnionType}:
        return NoneType in get_args(kind)
    return get_origin(kind) is Literal and None in get_args(kind)
