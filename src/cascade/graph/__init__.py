"""The workflow as a graph."""

from cascade.graph import build, model, serialize

__all__ = ["build", "model", "serialize"]
