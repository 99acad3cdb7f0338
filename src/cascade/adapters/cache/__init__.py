"""Cache backends."""

from cascade.adapters.cache import in_memory

__all__ = ["in_memory"]
