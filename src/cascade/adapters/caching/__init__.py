"""Cache policies."""

from cascade.adapters.caching import disk, file_existence
from cascade.adapters.caching.disk import DiskCache
from cascade.adapters.caching.file_existence import FileExistenceCache

__all__ = ["DiskCache", "FileExistenceCache", "disk", "file_existence"]
