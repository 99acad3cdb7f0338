"""Declarations of tasks, inputs, constraints and resources, and the dataclasses of the messages."""

from functools import partial
from typing import TYPE_CHECKING

from cascade._imports import load

if TYPE_CHECKING:
    from cascade.spec import common, constraint, lazy_types, protocols, resource, routing, task, telemetry
    from cascade.spec import input as input  # noqa: A004 - the contract's name of the module

__all__ = ["common", "constraint", "input", "lazy_types", "protocols", "resource", "routing", "task", "telemetry"]

if not TYPE_CHECKING:
    __getattr__ = partial(load, __name__)
