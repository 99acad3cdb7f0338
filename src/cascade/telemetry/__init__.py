"""Telemetry messages: identity, topics, encoding, limits, redaction, and the parts of large traces."""

from functools import partial
from typing import TYPE_CHECKING

from cascade._imports import load

if TYPE_CHECKING:
    from cascade.telemetry import attributes, identity, limits, redact, sanitize, schema, topics, wire

__all__ = ["attributes", "identity", "limits", "redact", "sanitize", "schema", "topics", "wire"]

if not TYPE_CHECKING:
    __getattr__ = partial(load, __name__)
