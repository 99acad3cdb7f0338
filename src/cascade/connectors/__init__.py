"""Connectors. Each optional library is imported only in its own connector."""

from functools import partial
from typing import TYPE_CHECKING

from cascade._imports import load

if TYPE_CHECKING:
    from cascade.connectors import by_name, console, fanout, memory, mqtt, otel, report

__all__ = ["by_name", "console", "fanout", "memory", "mqtt", "otel", "report"]

if not TYPE_CHECKING:
    __getattr__ = partial(load, __name__)
