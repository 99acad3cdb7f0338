"""The description of a parameter as plain data, for code that builds workflows without running them."""

from dataclasses import dataclass
from typing import Any


@dataclass
class Param:
    """A parameter of a workflow as data. Workflows use `cascade.Param` instead."""

    name: str
    default: Any = None
    type: Any = None
    description: str = ""
