"""Measurements that run in their own processes: a run with or without a connector, and the bare SDK with the same spans."""

import importlib
import resource
import sys
import time
from pathlib import Path
from typing import Any
from uuid import uuid4

import cascade as cs
from benchmarks import _graphs
from cascade.telemetry import attributes as a

MEBI = 1 << 10  # in KiB, the unit of Linux
DEFAULT_QUEUE = 2048
"""The default queue size of the SDK's BatchSpanProcessor."""

FLUSH_WAIT = 60_000
"""Milliseconds, far more than a flush takes."""


@cs.task
async def noop(*_values: Any) -> None:
    pass


@cs.task
async def last(values: list[Any]) -> tuple[int, float]:
    """Return the number of tasks that have run, and the time."""
    return len(values), time.perf_counter()


INFO = "INFO"
"""The default of `cs.run`, with which it prints a line for each start and end of a task."""


def workflow(size: int) -> Any:
    return _graphs.workflow(_graphs.fan_out(size), noop, last)


def run(
    size: int, protocol: str = "", endpoint: str = "", flush_timeout: float = 5.0, log_level: str = "ERROR"
) -> dict[str, Any]:
    """Run a fan-out; return its value, the seconds to its last task and to its end, and the memory in MiB.

    `rss` is the peak. `before` is the memory before the run, with the connector and the lazy results.
    """
    target, connector = workflow(size), None
    if endpoint:
        from cascade.connectors.otel import OtelConnector

        connector = OtelConnector(endpoint, protocol=protocol, flush_timeout=flush_timeout)
    before, start = current_rss(), time.perf_counter()
    value, ended = cs.run(target, connector=connector, log_level=log_level)
    total = time.perf_counter() - start
    return {"value": value, "tasks": ended - start, "total": total, "rss": peak_rss(), "before": before}


def peak_rss() -> float:
    """Return the peak memory of this process in MiB.

    On Linux, `ru_maxrss` starts at the size of the parent process, so `VmHWM` is used.
    """
    found = _status("VmHWM")
    if found is not None:
        return found
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (MEBI if sys.platform != "darwin" else MEBI**2)


def current_rss() -> float:
    """Return the present memory of this process in MiB; where the system does not report it, the peak."""
    found = _status("VmRSS")
    return peak_rss() if found is None else found


def _status(name: str) -> float | None:
    """Return a field of /proc/self/status in MiB, None on a system without this file."""
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    line = next(line for line in status.read_text(encoding="ascii").splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) / MEBI


def idle(*, imports: str = "") -> float:
    """Return the peak memory in MiB after an import."""
    if imports:
        importlib.import_module(imports)
    return peak_rss()


def emit(size: int, protocol: str, endpoint: str, sample: dict[str, Any], queue: int) -> dict[str, Any]:
    """Emit `size` spans like the sample below a root with the bare SDK; return the seconds without and with the flush."""
    provider, tracer = sdk(protocol, endpoint, queue)
    ids = [str(uuid4()) for _ in range(size)]
    start = time.perf_counter()
    with tracer.start_as_current_span("run last"):
        for task_id in ids:
            tracer.start_span("noop", attributes={**sample, a.TASK_ID: task_id}).end()
    emitted = time.perf_counter() - start
    provider.force_flush(FLUSH_WAIT)
    total = time.perf_counter() - start
    provider.shutdown()
    return {"tasks": emitted, "total": total, "rss": peak_rss()}


def sufficient_queue(size: int) -> int:
    """Return a queue size that is sufficient for `size` spans."""
    return 2 * size + DEFAULT_QUEUE


def sdk(protocol: str, endpoint: str, queue: int) -> tuple[Any, Any]:
    """Return a provider with the SDK's processor and exporter, with their defaults apart from the queue size."""
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(_exporter(protocol, endpoint), max_queue_size=queue))
    return provider, provider.get_tracer("bare")


def _exporter(protocol: str, endpoint: str) -> Any:
    if protocol == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcExporter

        return GrpcExporter(endpoint, insecure=True)
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpExporter

    return HttpExporter(f"{endpoint}/v1/traces")
