"""Tools for tests of workflows and connectors. The spans need the extra `[otel]`, the trace tree `[cli]`."""

from typing import TYPE_CHECKING, Any

from cascade._imports import load
from cascade.connectors.memory import MemoryConnector
from cascade.runtime.engine import override_resource
from cascade.testing.conformance import ConnectorConformance
from cascade.testing.record import FixedClock, RunRecord, record_run
from cascade.testing.spans import ReceivedSpan, Spans

if TYPE_CHECKING:
    from cascade.testing.receiver import OtlpReceiver
    from cascade.tools.trace_tree import render_trace

__all__ = [
    "ConnectorConformance",
    "FixedClock",
    "MemoryConnector",
    "OtlpReceiver",
    "ReceivedSpan",
    "RunRecord",
    "Spans",
    "override_resource",
    "record_run",
    "render_trace",
]

if not TYPE_CHECKING:  # type checkers would accept any name of a module with __getattr__

    def __getattr__(name: str) -> Any:
        """Import modules that need an extra at the first access to their names."""
        if name == "render_trace":
            return load("cascade.tools", name, {"trace_tree": (name,)})
        return load(__name__, name, {"receiver": ("OtlpReceiver",)})
