"""Tools for tests of workflows and connectors. The spans need the extra `[otel]`, the trace tree `[cli]`.

A name is imported on its first use, so that the pytest plugin does not slow down the start of pytest.
"""

from typing import TYPE_CHECKING, Any

from cascade._imports import load

if TYPE_CHECKING:
    from cascade.connectors.memory import MemoryConnector
    from cascade.runtime.engine import override_resource
    from cascade.testing.conformance import ConnectorConformance
    from cascade.testing.receiver import OtlpReceiver
    from cascade.testing.record import FixedClock, RunRecord, record_run, record_run_async
    from cascade.testing.spans import ReceivedSpan, Spans
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
    "record_run_async",
    "render_trace",
]

_EXPORTS = {
    "connectors.memory": ("MemoryConnector",),
    "runtime.engine": ("override_resource",),
    "testing.conformance": ("ConnectorConformance",),
    "testing.receiver": ("OtlpReceiver",),
    "testing.record": ("FixedClock", "RunRecord", "record_run", "record_run_async"),
    "testing.spans": ("ReceivedSpan", "Spans"),
    "tools.trace_tree": ("render_trace",),
}

if not TYPE_CHECKING:  # type checkers would accept any name of a module with __getattr__

    def __getattr__(name: str) -> Any:
        return load("cascade", name, _EXPORTS) if name in __all__ else load(__name__, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
