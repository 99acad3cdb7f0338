"""Default state backend of an engine."""

from cascade.runtime.state import InMemoryStateBackend

__all__ = ["InMemoryStateBackend"]
