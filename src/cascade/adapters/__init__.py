"""Built-in executors, solvers, caches and state backends."""

from cascade.adapters import cache, caching, executors, solvers, state

__all__ = ["cache", "caching", "executors", "solvers", "state"]
