"""Executors."""

from functools import partial
from typing import TYPE_CHECKING

from cascade._imports import load

if TYPE_CHECKING:
    from cascade.adapters.executors import local

__all__ = ["local"]

if not TYPE_CHECKING:
    __getattr__ = partial(load, __name__)
