"""Command line, preview and diagram of a workflow, and the trace tree."""

from functools import partial
from typing import TYPE_CHECKING

from cascade._imports import load

if TYPE_CHECKING:
    from cascade.tools import cli, events, preview, trace_tree, visualize

__all__ = ["cli", "events", "preview", "trace_tree", "visualize"]

if not TYPE_CHECKING:
    __getattr__ = partial(load, __name__)
