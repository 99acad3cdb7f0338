"""What a workflow takes from outside: parameters and environment variables."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class InputSpec:
    """One input by name. A default of None means that there is none."""

    name: str
    default: Any = None
    description: str = ""


@dataclass(frozen=True)
class ParamSpec(InputSpec):
    """A parameter of `cs.run(…, params={name: value})`; the command line offers it as an option of this type."""

    type: Any = str


@dataclass(frozen=True)
class EnvSpec(InputSpec):
    """An environment variable, read when the run gets there."""
