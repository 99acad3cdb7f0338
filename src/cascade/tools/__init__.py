"""Command line, preview and picture of a workflow."""

from functools import partial
from typing import TYPE_CHECKING

from cascade._lazy import load

if TYPE_CHECKING:
    from cascade.tools import cli, events, preview, visualize

__all__ = ["cli", "events", "preview", "visualize"]

if not TYPE_CHECKING:
    __getattr__ = partial(load, __name__)
