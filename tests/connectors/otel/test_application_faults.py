"""Objects of the application that raise errors: processors, samplers, id generators, meter providers, standard output."""

import subprocess
import sys
import textwrap
from typing import Any

import pytest
from opentelemetry import metrics, trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.sdk.trace.sampling import Sampler, SamplingResult

import cascade as cs
from cascade.connectors.otel import OtelConnector
from cascade.runtime.task_context import current_task
from cascade.testing import OtlpReceiver
from tests.connectors.otel.tracing import warnings
from tests.lab.waiting import HANG
from tests.lab.workflows import TOTAL, all_task_kinds


class HostileError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("it has no text")


class Processor(SpanProcessor):
    """Raises in one of its methods, optionally only for spans of one name."""

    def __init__(self, where: str, name: str = "") -> None:
        self.where, self.name = where, name

    def _maybe(self, where: str, name: str) -> None:
        if where == self.where and name.startswith(self.name):
            raise HostileError

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        self._maybe("on_start", span.name)

    def _on_ending(self, span: Span) -> None:
        self._maybe("_on_ending", span.name)

    def on_end(self, span: ReadableSpan) -> None:
        self._maybe("on_end", span.name)

    def force_flush(self, timeout_millis: int = 0) -> bool:
        self._maybe("force_flush", "")
        return True


class RaisingSampler(Sampler):
    def should_sample(self, *_: Any, **__: Any) -> SamplingResult:
        raise HostileError

    def get_description(self) -> str:
        return "raises"


class RaisingIds(IdGenerator):
    def generate_span_id(self) -> int:
        raise HostileError

    def generate_trace_id(self) -> int:
        raise HostileError

    def is_trace_id_random(self) -> bool:
        raise HostileError


def provider_that_raises(where: str) -> TracerProvider:
    if where == "sampler":
        return TracerProvider(sampler=RaisingSampler(), shutdown_on_exit=False)
    if where == "ids":
        return TracerProvider(id_generator=RaisingIds(), shutdown_on_exit=False)
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(Processor(where))
    return provider


@pytest.mark.parametrize("where", ["on_start", "_on_ending", "on_end", "force_flush", "sampler", "ids"])
def test_a_tracer_provider_that_raises_does_not_affect_the_run(where: str) -> None:
    connector = OtelConnector(tracer_provider=provider_that_raises(where))
    assert cs.run(all_task_kinds(), connector=connector, log_level="OFF") == TOTAL


@pytest.mark.parametrize("retries", [0, 1])
def test_a_task_whose_span_cannot_be_started_has_the_ids_of_its_span(
    retries: int, caplog: pytest.LogCaptureFixture
) -> None:
    found: list[tuple[Any, ...]] = []

    @cs.task
    def work(x: int) -> int:
        span, task = trace.get_current_span(), current_task()
        span.set_attribute("x", x)
        assert task is not None
        context = span.get_span_context()
        found.append((f"{context.trace_id:032x}", f"{context.span_id:016x}", task.trace_id, task.span_id))
        return x

    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(Processor("on_start", "work"))
    target = work.map(x=[1, 2]).with_retry(max_attempts=retries) if retries else work.map(x=[1, 2])
    cs.run(target, connector=OtelConnector(tracer_provider=provider), log_level="OFF")
    assert len(found) == 2
    assert all(ids[:2] == ids[2:] for ids in found)
    assert next(text.partition(";")[0] for text in warnings(caplog)) == "OtelConnector: a span could not be started"


def test_an_error_at_the_end_of_a_span_does_not_affect_other_spans() -> None:
    exporter, provider = InMemorySpanExporter(), TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    provider.add_span_processor(Processor("on_end", "work attempt"))

    @cs.task
    def work() -> int:
        if not attempts:
            attempts.append(1)
            raise ConnectionError
        return 1

    attempts: list[int] = []
    target = work().with_retry(max_attempts=1, delay=0)
    assert cs.run(target, connector=OtelConnector(tracer_provider=provider), log_level="OFF") == 1
    names = [span.name for span in exporter.get_finished_spans()]
    names = [name for name in names if name != "work wait"]  # on a loaded machine the retry takes a millisecond
    assert sorted(names) == ["run work", "run work started", "work", "work attempt", "work attempt"]


@pytest.fixture
def meters_that_raise(monkeypatch: pytest.MonkeyPatch) -> None:
    class Meters(metrics.MeterProvider):
        def get_meter(self, *_: Any, **__: Any) -> metrics.Meter:
            raise HostileError

    monkeypatch.setattr("opentelemetry.metrics.get_meter_provider", Meters)


@pytest.mark.usefixtures("meters_that_raise")
def test_a_meter_provider_that_raises_does_not_affect_the_run(caplog: pytest.LogCaptureFixture) -> None:
    connector = OtelConnector(tracer_provider=TracerProvider(shutdown_on_exit=False))
    assert cs.run(all_task_kinds(), connector=connector, log_level="OFF") == TOTAL
    assert warnings(caplog) == [
        "OtelConnector: no metrics, the application's meter provider raised HostileError: <its text raised RuntimeError>"
    ]


@pytest.mark.parametrize(
    "stream", ["sys.stdout.close()", "os.dup2(os.open('/dev/full', os.O_WRONLY), 1)", "sys.stdout = None"]
)
def test_an_error_of_standard_output_does_not_affect_other_exporters(stream: str) -> None:
    script = textwrap.dedent(f"""
        import os, sys
        import cascade as cs
        from cascade.connectors.otel import OtelConnector
        from tests.lab.time_limits import raise_time_limits
        from tests.lab.workflows import TOTAL, all_task_kinds
        raise_time_limits()
        {stream}
        assert cs.run(all_task_kinds(), connector=OtelConnector(), log_level="OFF") == TOTAL
        os._exit(0)  # the interpreter itself reports a standard output that it cannot close
    """)
    with OtlpReceiver() as receiver:
        environ = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.http_endpoint,
            "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
            "OTEL_TRACES_EXPORTER": "console,otlp",
            "OTEL_METRICS_EXPORTER": "console,otlp",
        }
        done = subprocess.run(
            [sys.executable, "-c", script], env=environ, capture_output=True, timeout=HANG, check=False
        )
        assert (done.returncode, done.stderr) == (0, b"")
        assert len(receiver.spans.named("in_thread")) == 4
        assert receiver.metrics
