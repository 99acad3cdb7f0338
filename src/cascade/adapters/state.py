"""The state backend that an engine uses by default."""

from cascade.runtime.state import InMemoryStateBackend

__all__ = ["InMemoryStateBackend"]
