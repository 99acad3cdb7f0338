"""A connector chooses its providers at its first run. Until then, the application may set its own."""

import asyncio
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import cascade as cs
from cascade.connectors.otel import OtelConnector
from cascade.runtime.exceptions import TelemetryLostError
from tests.connectors.otel.test_provider import one, program
from tests.lab.receiver import FaultyReceiver
from tests.lab.waiting import HANG

APPLICATION = """
exporter = InMemorySpanExporter()
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))
"""


def test_a_provider_that_the_application_sets_after_the_creation_of_the_connector_is_used() -> None:
    stderr = program(f"""
        {APPLICATION.replace(chr(10), chr(10) + " " * 8)}
        connector = OtelConnector()
        assert isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider)
        trace.set_tracer_provider(provider)
        with trace.get_tracer("application").start_as_current_span("own span"):
            pass
        assert cs.run(one(), connector=connector) == 1
        names = [span.name for span in exporter.get_finished_spans()]
        assert sorted(names) == ["inner", "one", "own span", "run one", "run one started"], names
    """)
    assert "overrid" not in stderr.lower()


def test_a_connector_with_an_endpoint_does_not_export_the_spans_of_the_applications_provider() -> None:
    with FaultyReceiver() as receiver:
        program(f"""
            {APPLICATION.replace(chr(10), chr(10) + " " * 12)}
            connector = OtelConnector({receiver.http_endpoint!r})
            trace.set_tracer_provider(provider)
            assert cs.run(one(), connector=connector) == 1
            assert [span.name for span in exporter.get_finished_spans()] == ["inner"]
            assert trace.get_tracer_provider() is provider
        """)
        assert sorted(span.name for span in receiver.spans) == ["one", "run one", "run one started"]


def test_after_the_first_run_the_sdk_refuses_another_global_provider() -> None:
    with FaultyReceiver() as receiver:
        stderr = program(f"""
            {APPLICATION.replace(chr(10), chr(10) + " " * 12)}
            connector = OtelConnector({receiver.http_endpoint!r})
            cs.run(one(), connector=connector)
            trace.set_tracer_provider(provider)
            cs.run(one(), connector=connector)
            with trace.get_tracer("application").start_as_current_span("own span"):
                pass
            assert exporter.get_finished_spans() == ()
        """)
        assert "Overriding of current TracerProvider is not allowed" in stderr
        assert len(receiver.spans.named("run one")) == 2
        assert len(receiver.spans.named("own span")) == 1


def test_a_proxy_represents_the_provider_that_the_application_sets_later() -> None:
    program(f"""
        {APPLICATION.replace(chr(10), chr(10) + " " * 8)}
        connector = OtelConnector(tracer_provider=trace.get_tracer_provider())
        trace.set_tracer_provider(provider)
        cs.run(one(), connector=connector)
        assert sorted(span.name for span in exporter.get_finished_spans()) == ["inner", "one", "run one", "run one started"]
    """)


def test_a_proxy_without_a_provider_of_the_application_represents_cascades_provider(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with FaultyReceiver() as receiver:
        code = "cs.run(one(), connector=OtelConnector(tracer_provider=trace.ProxyTracerProvider()))"
        program(code, monkeypatch, OTEL_EXPORTER_OTLP_ENDPOINT=receiver.http_endpoint)
        assert len(receiver.spans.named("run one")) == 1


def test_cascades_provider_may_be_the_argument_of_a_connector() -> None:
    program("""
        from cascade.runtime.exceptions import TelemetryLostError
        from tests.lab.receiver import Fault, FaultyReceiver

        with FaultyReceiver() as receiver:
            cs.run(one(), connector=OtelConnector(receiver.http_endpoint))
            connector = OtelConnector(tracer_provider=trace.get_tracer_provider(), metrics=False, strict=True)
            cs.run(one(), connector=connector)
            assert len(receiver.spans.named("run one")) == 2
            receiver.fault = Fault.bad_request()
            try:
                cs.run(one(), connector=connector)
            except TelemetryLostError as error:
                assert error.lost == 4, error
            else:
                raise AssertionError("lost spans are not reported")
    """)


@pytest.mark.injects_errors("connect raises TypeError")
@pytest.mark.parametrize("strict", [False, True])
def test_a_provider_of_another_library_is_reported(strict: bool, caplog: pytest.LogCaptureFixture) -> None:
    class Other(trace.TracerProvider):
        def get_tracer(self, *_: Any, **__: Any) -> trace.Tracer:
            return trace.NoOpTracer()

    reason = "Other cannot export runs; use an opentelemetry.sdk.trace.TracerProvider"
    connector = OtelConnector(tracer_provider=Other(), strict=strict)
    if strict:
        with pytest.raises(TelemetryLostError, match=reason):
            cs.run(one(), connector=connector)
    else:
        assert cs.run(one(), connector=connector) == 1
        assert reason in caplog.text


def test_a_provider_that_records_nothing_exports_no_signal_and_is_not_reported(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with FaultyReceiver() as receiver:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.http_endpoint)
        connector = OtelConnector(tracer_provider=trace.NoOpTracerProvider(), strict=True, logs=True)
        assert cs.run(one(), connector=connector) == 1
        assert receiver.requests == []
    assert caplog.text == ""


def test_a_connector_without_runs_sets_no_provider_and_starts_no_thread() -> None:
    program("""
        import threading
        before = threading.active_count()
        for endpoint in (None, "http://127.0.0.1:4318", "http://127.0.0.1:4317"):
            OtelConnector(endpoint, logs=True)
        assert isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider)
        assert threading.active_count() == before
    """)


@pytest.mark.parametrize("endpoint", ["given", "from the environment"])
def test_messages_that_are_published_without_a_run_are_exported(endpoint: str) -> None:
    with FaultyReceiver() as receiver:
        argument = repr(receiver.http_endpoint) if endpoint == "given" else ""
        program(f"""
            import asyncio, os
            from cascade.connectors.memory import MemoryConnector
            os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = {receiver.http_endpoint!r}
            recorded = MemoryConnector()
            cs.run(one(), connector=recorded)

            async def replay():
                connector = OtelConnector({argument})
                for payload in recorded.payloads:
                    await connector.publish("topic", payload)
                await connector.disconnect()

            asyncio.run(replay())
        """)
        assert sorted(span.name for span in receiver.spans) == ["one", "run one", "run one started"]


def test_a_provider_that_raises_does_not_affect_the_run_unless_the_connector_is_strict() -> None:
    class Broken(TracerProvider):
        def add_span_processor(self, span_processor: Any) -> None:
            raise OSError("no processors here")

    connector = OtelConnector(tracer_provider=Broken(shutdown_on_exit=False))
    assert [cs.run(one(), connector=connector) for _ in range(2)] == [1, 1]
    with pytest.raises(TelemetryLostError, match="no processors here"):
        cs.run(one(), connector=OtelConnector(tracer_provider=Broken(shutdown_on_exit=False), strict=True))


def test_a_simple_processor_exports_in_the_event_loop() -> None:
    threads = []

    class Exporter(InMemorySpanExporter):
        def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
            threads.append(threading.get_ident())
            return super().export(spans)

    async def main() -> int:
        await cs.run_async(one(), connector=OtelConnector(tracer_provider=provider), log_level="OFF")
        return threading.get_ident()

    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(Exporter()))
    assert {asyncio.run(main())} == set(threads)


class Barrier(TracerProvider):
    """Counts its span processors, and creates tracers when `count` threads have requested one."""

    def __init__(self, count: int) -> None:
        super().__init__(shutdown_on_exit=False)
        self.barrier = threading.Barrier(count)
        self.processors = 0

    def add_span_processor(self, span_processor: SpanProcessor) -> None:
        self.processors += 1
        super().add_span_processor(span_processor)

    def get_tracer(self, *args: Any, **settings: Any) -> Any:
        self.barrier.wait(HANG)
        return super().get_tracer(*args, **settings)


def test_threads_that_start_the_first_runs_of_a_connector_use_the_same_provider() -> None:
    count = 4
    provider, exporter = Barrier(count), InMemorySpanExporter()
    connector = OtelConnector(tracer_provider=provider)
    with ThreadPoolExecutor(count) as pool:
        list(pool.map(lambda _: cs.run(one(), connector=connector, log_level="OFF"), range(count)))
    assert provider.processors == 1
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    cs.run(one(), connector=connector, log_level="OFF")
    assert sorted(span.name for span in exporter.get_finished_spans()) == ["one", "run one", "run one started"]
