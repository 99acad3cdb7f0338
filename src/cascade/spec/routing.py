"""Routers: select one of several branches by a value of the run."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cascade.spec.lazy_types import Argument, Lazy, require_lazy


@dataclass(eq=False, repr=False)
class Router(Argument):
    """Argument of a task that selects one of several branches: the task receives the value of `routes[selector]`.

    `selector` and the values of `routes` are lazy results. A branch that is not selected runs only if another task uses
    it.

    Raises:
        TypeError: The selector or a route is not a lazy result, or `routes` is not a dict.
    """

    selector: Any
    routes: dict[Any, Any]

    if TYPE_CHECKING:  # a class with the base Any gets no checked __init__ from dataclass

        def __init__(self, selector: Lazy[Any], routes: Mapping[Any, Lazy[Any]]) -> None: ...

    def __post_init__(self) -> None:
        require_lazy(self.selector, "Router", "selector")
        if not isinstance(self.routes, dict):
            raise TypeError(f"Router: routes must be a dict of lazy results, got {type(self.routes).__name__}")
        for position, route in enumerate(self.routes.values()):
            require_lazy(route, "Router", f"route {position}")

    def __repr__(self) -> str:
        return f"<Router of {self.selector!r}, {len(self.routes)} routes>"
