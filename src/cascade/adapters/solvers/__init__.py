"""Solvers."""

from functools import partial
from typing import TYPE_CHECKING

from cascade._imports import load

if TYPE_CHECKING:
    from cascade.adapters.solvers import native

__all__ = ["native"]

if not TYPE_CHECKING:
    __getattr__ = partial(load, __name__)
