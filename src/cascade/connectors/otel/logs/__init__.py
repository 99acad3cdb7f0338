"""Export of the `logging` records of tasks as OTLP log records."""

from cascade.connectors.otel.logs.run_logs import RunLogs, chosen_level

__all__ = ["RunLogs", "chosen_level"]
