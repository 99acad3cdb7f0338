"""Cache policies."""

from cascade.adapters.caching import file_existence
from cascade.adapters.caching.file_existence import FileExistenceCache

__all__ = ["FileExistenceCache", "file_existence"]
