"""Executors."""

from cascade.adapters.executors import local

__all__ = ["local"]
