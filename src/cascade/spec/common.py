"""The plain description of a parameter, for code that builds workflows without running them."""

from dataclasses import dataclass
from typing import Any


@dataclass
class Param:
    """A workflow's parameter as data; `cascade.Param` is the one to use in a workflow."""

    name: str
    default: Any = None
    type: Any = None
    description: str = ""
