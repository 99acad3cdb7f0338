"""Runs as OpenTelemetry traces. Needs the extra `[otel]`."""

from cascade._imports import missing_extra
from cascade.connectors.otel.environment import hide_invalid_limits

try:
    with hide_invalid_limits():
        from cascade.connectors.otel.connector import OtelConnector
except ImportError as error:
    if (error.name or "").partition(".")[0] in {"opentelemetry", "google", "grpc", "urllib3"}:
        raise missing_extra("otel", error) from error
    raise

__all__ = ["OtelConnector"]
