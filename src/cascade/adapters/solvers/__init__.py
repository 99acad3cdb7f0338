"""Solvers."""

from cascade.adapters.solvers import native

__all__ = ["native"]
