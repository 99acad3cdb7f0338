"""Metrics of runs: durations, what goes on, waits, retries, skips, and what became of the telemetry itself."""

from cascade.connectors.otel.metrics._instruments import application
from cascade.connectors.otel.metrics._runs import RunMetrics

__all__ = ["RunMetrics", "application"]
