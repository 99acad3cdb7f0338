"""Metrics of runs: durations, runs and tasks in progress, waits, retries, skips, and counts of exported telemetry."""

from cascade.connectors.otel.metrics.instruments import application_meter_provider
from cascade.connectors.otel.metrics.run_metrics import RunMetrics

__all__ = ["RunMetrics", "application_meter_provider"]
