"""What users import in their own tests; it needs no extra until spans are looked at."""

from typing import TYPE_CHECKING, Any

from cascade._lazy import load
from cascade.connectors.memory import MemoryConnector
from cascade.runtime.overrides import override_resource
from cascade.testing.clock import FixedClock
from cascade.testing.conformance import ConnectorConformance
from cascade.testing.faults import Fault
from cascade.testing.jaeger import Jaeger
from cascade.testing.mosquitto import MosquittoProcess
from cascade.testing.received import ReceivedSpan, Spans
from cascade.testing.record import RunRecord, record_run
from cascade.testing.tree import render_trace

if TYPE_CHECKING:
    from cascade.testing.receiver import OtlpReceiver
    from cascade.testing.receiver_process import ReceiverProcess

__all__ = [
    "ConnectorConformance",
    "Fault",
    "FixedClock",
    "Jaeger",
    "MemoryConnector",
    "MosquittoProcess",
    "OtlpReceiver",
    "ReceivedSpan",
    "ReceiverProcess",
    "RunRecord",
    "Spans",
    "override_resource",
    "record_run",
    "render_trace",
]


if not TYPE_CHECKING:  # a checker would accept every name of a module that has __getattr__

    def __getattr__(name: str) -> Any:
        """Import the receivers, which need the extra `[otel]`, on first use."""
        return load(__name__, name, {"receiver": ("OtlpReceiver",), "receiver_process": ("ReceiverProcess",)})
