"""Metrics of runs: durations, what goes on, waits, retries, skips, and what became of the telemetry itself."""

from cascade.connectors.otel.metrics.instruments import application
from cascade.connectors.otel.metrics.run_metrics import RunMetrics

__all__ = ["RunMetrics", "application"]
