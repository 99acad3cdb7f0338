"""What is run in a process of its own: a Cascade run with or without a connector, the bare SDK with the same spans."""

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

MEBI = 1 << 10  # in KiB, which Linux counts in
DEFAULT_QUEUE = 2048
"""Of the SDK's BatchSpanProcessor."""

FLUSH_WAIT = 60_000
"""Milliseconds; far more than it takes."""


@cs.task
async def noop(*_values: Any) -> None:
    pass


@cs.task
async def last(values: list[Any]) -> tuple[int, float]:
    """What proves that all have run, and when."""
    return len(values), time.perf_counter()


def workflow(size: int) -> Any:
    return _graphs.workflow(_graphs.fan_out(size), noop, last)


def run(size: int, protocol: str = "", endpoint: str = "", flush_timeout: float = 5.0) -> dict[str, Any]:
    """One run: its value, seconds until its last task and until its end, and the process's peak of memory in MiB."""
    target, connector = workflow(size), None
    if endpoint:
        from cascade.connectors.otel import OtelConnector

        connector = OtelConnector(endpoint, protocol=protocol, flush_timeout=flush_timeout)
    start = time.perf_counter()
    value, ended = cs.run(target, connector=connector, log_level="ERROR")
    return {"value": value, "tasks": ended - start, "total": time.perf_counter() - start, "rss": peak_rss()}


def peak_rss() -> float:
    """The most memory that this process has had, in MiB.

    Linux lets `ru_maxrss` begin at the size of the process that started this one, so its own record is better.
    """
    status = Path("/proc/self/status")
    if status.exists():
        peak = next(line for line in status.read_text(encoding="ascii").splitlines() if line.startswith("VmHWM:"))
        return int(peak.split()[1]) / MEBI
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (MEBI if sys.platform != "darwin" else MEBI**2)


def idle(*, imports: str = "") -> float:
    """MiB of a process that has imported a module and has done nothing with it."""
    if imports:
        importlib.import_module(imports)
    return peak_rss()


def emit(size: int, protocol: str, endpoint: str, sample: dict[str, Any], queue: int) -> dict[str, Any]:
    """The bare SDK: `size` spans like the sample below a root. Seconds for the spans alone, and until all are flushed."""
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


def ample(size: int) -> int:
    """A queue that loses none of so many spans."""
    return 2 * size + DEFAULT_QUEUE


def sdk(protocol: str, endpoint: str, queue: int) -> tuple[Any, Any]:
    """A provider with the SDK's own processor and exporter, and all their defaults but the queue's size."""
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
