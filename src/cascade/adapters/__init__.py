"""Built-in executors, solvers, caches and state backends."""

from functools import partial
from typing import TYPE_CHECKING

from cascade._imports import load

if TYPE_CHECKING:
    from cascade.adapters import cache, caching, executors, solvers, state

__all__ = ["cache", "caching", "executors", "solvers", "state"]

if not TYPE_CHECKING:
    __getattr__ = partial(load, __name__)
