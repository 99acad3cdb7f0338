"""Cache backends."""

from functools import partial
from typing import TYPE_CHECKING

from cascade._imports import load

if TYPE_CHECKING:
    from cascade.adapters.cache import in_memory

__all__ = ["in_memory"]

if not TYPE_CHECKING:
    __getattr__ = partial(load, __name__)
