"""Messages for the terminal and for the log in JSON."""

from functools import partial
from typing import TYPE_CHECKING

from cascade._imports import load

if TYPE_CHECKING:
    from cascade.messaging import bus, renderer

__all__ = ["bus", "renderer"]

if not TYPE_CHECKING:
    __getattr__ = partial(load, __name__)
