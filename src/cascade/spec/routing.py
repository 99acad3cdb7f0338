"""Routing: one of several branches, chosen by a value that only the run knows."""

from dataclasses import dataclass
from typing import Any


@dataclass(eq=False)
class Router:
    """Passed to a task as an argument: the task gets the value of `routes[selector's value]`.

    Branches that nobody else needs do not run. `selector` and the values of `routes` are lazy results.
    """

    selector: Any
    routes: dict[Any, Any]
