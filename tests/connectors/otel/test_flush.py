"""Flushes of a tracer provider of the application that hang, are slow or fail. Only the first run waits for them."""

import gc
import subprocess
import sys
import textwrap
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpExporter
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import Decision, Sampler, StaticSampler

import cascade as cs
from cascade.connectors.otel import OtelConnector
from cascade.connectors.otel.flush import flush_of
from cascade.runtime.exceptions import TelemetryLostError
from cascade.testing import OtlpReceiver
from tests.connectors.otel import servers
from tests.connectors.otel.tracing import warnings
from tests.lab.time_limits import subprocess_environment
from tests.lab.waiting import HANG, NEVER, until_blocking

TIMEOUT = 0.05
"""Seconds, `flush_timeout` of a first run."""
RUNS = 5


@cs.task
def one() -> int:
    return 1


class Gated(SpanProcessor):
    """A processor whose flush waits for a gate, and then calls `then`."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.begun = self.ended = self.at_once = self.most_at_once = 0
        self.then: Callable[[], bool] = lambda: True

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        self.begun += 1
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        self.gate.wait(HANG)
        self.at_once -= 1
        self.ended += 1
        return self.then()


@pytest.fixture(autouse=True)
def _no_flush_is_left() -> Iterator[None]:
    """Wait for the flush, which would otherwise log during the next test."""
    yield
    until_blocking(lambda: all(thread.name != "cascade-provider-flush" for thread in threading.enumerate()))


@pytest.fixture
def processor() -> Iterator[Gated]:
    made = Gated()
    yield made
    made.gate.set()


def provider_with(processor: SpanProcessor, sampler: Sampler | None = None) -> TracerProvider:
    provider = TracerProvider(sampler, shutdown_on_exit=False)
    provider.add_span_processor(processor)
    return provider


def run(provider: TracerProvider, flush_timeout: float = NEVER, *, strict: bool = False) -> None:
    """Run with a new connector. A run that waits `NEVER` seconds exceeds the time limit of the test."""
    connector = OtelConnector(tracer_provider=provider, flush_timeout=flush_timeout, strict=strict)
    assert cs.run(one(), connector=connector, log_level="OFF") == 1


def test_only_the_first_run_waits_for_a_flush_that_hangs(processor: Gated, caplog: pytest.LogCaptureFixture) -> None:
    provider = provider_with(processor)
    run(provider, TIMEOUT)
    for _ in range(RUNS):
        run(provider)
    (warning,) = warnings(caplog)
    assert f"the flush has not ended within {TIMEOUT} s" in warning
    assert (processor.begun, processor.ended) == (1, 0)


def test_the_end_of_an_outage_is_logged_once_and_runs_wait_again(
    processor: Gated, caplog: pytest.LogCaptureFixture, limits: pytest.MonkeyPatch
) -> None:
    provider = provider_with(processor)
    run(provider, TIMEOUT)
    run(provider)
    processor.gate.set()
    until_blocking(lambda: processor.at_once == 0)

    def has_recovered() -> bool:
        run(provider)
        return len(warnings(caplog)) > 1

    until_blocking(has_recovered)
    warned, recovered = warnings(caplog)
    assert "may not be delivered" in warned
    assert "is flushed again" in recovered
    limits.setattr("cascade.connectors.otel.flush.SHORT_WAIT", 0.0)
    for _ in range(RUNS):
        before = processor.ended
        run(provider)
        assert processor.ended == before + 1
    assert len(warnings(caplog)) == 2


def test_an_outage_ends_even_if_a_run_ends_during_each_flush(
    processor: Gated, caplog: pytest.LogCaptureFixture
) -> None:
    provider = provider_with(processor)

    def while_another_run_ends() -> bool:
        if len(warnings(caplog)) < 2:  # a run after the outage would wait for the flush that waits for this run
            pool.submit(run, provider).result(HANG)
        return True

    with ThreadPoolExecutor(1) as pool:
        run(provider, TIMEOUT)
        processor.then = while_another_run_ends
        processor.gate.set()
        until_blocking(lambda: len(warnings(caplog)) > 1)
    assert "is flushed again" in warnings(caplog)[1]


def test_concurrent_runs_share_a_flush(processor: Gated) -> None:
    provider = provider_with(processor)
    with ThreadPoolExecutor(RUNS) as pool:
        results = pool.map(lambda _: run(provider), range(RUNS))
        until_blocking(lambda: processor.begun)
        processor.gate.set()
        list(results)
    assert processor.most_at_once == 1
    assert processor.begun <= RUNS


def test_the_flush_of_one_provider_does_not_affect_another(
    processor: Gated, caplog: pytest.LogCaptureFixture, limits: pytest.MonkeyPatch
) -> None:
    run(provider_with(processor), TIMEOUT)
    limits.setattr("cascade.connectors.otel.flush.SHORT_WAIT", 0.0)
    other = Gated()
    other.gate.set()
    run(provider_with(other))
    assert other.ended == 1
    assert len(warnings(caplog)) == 1


def test_only_one_run_waits_for_a_slow_flush_without_a_warning(
    processor: Gated, caplog: pytest.LogCaptureFixture, limits: pytest.MonkeyPatch
) -> None:
    limits.setattr("cascade.connectors.otel.flush.SLOW", -1.0)
    provider = provider_with(processor)
    processor.gate.set()
    run(provider)
    assert processor.ended == 1
    processor.gate.clear()
    for _ in range(RUNS):
        run(provider)
    assert processor.ended == 1
    assert warnings(caplog) == []


def test_a_strict_connector_waits_for_a_slow_flush(processor: Gated, limits: pytest.MonkeyPatch) -> None:
    limits.setattr("cascade.connectors.otel.flush.SLOW", -1.0)
    limits.setattr("cascade.connectors.otel.flush.SHORT_WAIT", 0.0)
    provider = provider_with(processor)
    processor.gate.set()
    for number in range(RUNS):
        run(provider, strict=True)
        assert processor.ended == number + 1


def test_a_strict_connector_raises_at_once_while_a_flush_hangs(
    processor: Gated, caplog: pytest.LogCaptureFixture
) -> None:
    provider = provider_with(processor)
    for timeout in (TIMEOUT, NEVER, NEVER):
        with pytest.raises(
            TelemetryLostError, match=r"^OtelConnector: spans may not be delivered: the flush has not ended"
        ):
            run(provider, timeout, strict=True)
    assert warnings(caplog) == []


def fails() -> bool:
    raise OSError("no connection")


@pytest.mark.parametrize(
    ("then", "reason"), [(fails, "no connection"), (lambda: False, "has failed")], ids=["raises", "returns False"]
)
def test_a_failed_flush_causes_one_warning(
    then: Callable[[], bool], reason: str, processor: Gated, caplog: pytest.LogCaptureFixture
) -> None:
    processor.gate.set()
    processor.then = then
    provider = provider_with(processor)
    for _ in range(RUNS):
        run(provider)
    (warning,) = warnings(caplog)
    assert reason in warning
    with pytest.raises(TelemetryLostError, match=reason):
        run(provider, strict=True)


def test_a_run_without_sampled_spans_does_not_end_the_outage(
    processor: Gated, caplog: pytest.LogCaptureFixture
) -> None:
    sampler = StaticSampler(Decision.RECORD_AND_SAMPLE)
    provider = provider_with(processor, sampler)
    run(provider, TIMEOUT)
    until_blocking(lambda: processor.begun)
    time.sleep(TIMEOUT)  # a flush within the time limit of the run would end the outage
    processor.gate.set()
    until_blocking(lambda: processor.ended)
    sampler._decision = Decision.DROP
    before = processor.ended
    run(provider)
    until_blocking(lambda: processor.ended > before)
    run(provider)
    assert len(warnings(caplog)) == 1


@pytest.mark.parametrize("exporter", [HttpExporter, GrpcExporter], ids=["http", "grpc"])
def test_a_batch_processor_with_a_silent_collector(
    exporter: type[HttpExporter | GrpcExporter], caplog: pytest.LogCaptureFixture
) -> None:
    with servers.silent_server() as endpoint:
        if exporter is HttpExporter:
            made: HttpExporter | GrpcExporter = HttpExporter(f"{endpoint}/v1/traces", timeout=1)
        else:
            made = GrpcExporter(endpoint, insecure=True, timeout=1)
        provider = provider_with(BatchSpanProcessor(made))
        run(provider, TIMEOUT)
        for _ in range(RUNS):
            run(provider)
        assert len(warnings(caplog)) == 1


def test_a_garbage_collected_provider_leaves_no_objects(processor: Gated) -> None:
    processor.gate.set()
    provider = provider_with(processor)
    run(provider)
    gone = weakref.ref(flush_of(provider))
    del provider
    gc.collect()
    assert gone() is None


PROGRAM = """
import atexit, os, sys, threading
import cascade as cs
from cascade.connectors.otel import OtelConnector, flush
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from tests.lab.time_limits import raise_time_limits

raise_time_limits()
gate = threading.Event()

class Exporter(OTLPSpanExporter):
    def export(self, spans):
        gate.wait()
        return super().export(spans)

provider = TracerProvider(shutdown_on_exit=False)
provider.add_span_processor(BatchSpanProcessor(Exporter(sys.argv[1] + "/v1/traces")))
connector = OtelConnector(tracer_provider=provider, flush_timeout=0.05)

@cs.task
def one():
    return 1
"""


def program(code: str, receiver: OtlpReceiver) -> None:
    command = [sys.executable, "-c", PROGRAM + textwrap.dedent(code), receiver.http_endpoint]
    subprocess.run(command, check=True, timeout=HANG, env=subprocess_environment())


def test_the_process_waits_for_the_flush_at_exit() -> None:
    with OtlpReceiver() as receiver:
        program("for _ in range(3): cs.run(one(), connector=connector); atexit.register(gate.set)", receiver)
        assert len(receiver.spans.named("run one")) == 3


def test_the_process_exits_even_if_the_flush_hangs() -> None:
    with OtlpReceiver() as receiver:
        program("flush.EXIT_TIMEOUT = 0.1; cs.run(one(), connector=connector)", receiver)
        assert receiver.span_count == 0


def test_a_forked_child_flushes_by_itself() -> None:
    with OtlpReceiver() as receiver:
        program(
            """
            cs.run(one(), connector=connector)
            if os.fork() == 0:
                gate.set()
                connector = OtelConnector(tracer_provider=provider)
                cs.run(one(), connector=connector)
                os._exit(0)
            assert os.wait()[1] == 0
            flush.EXIT_TIMEOUT = 0.1
            """,
            receiver,
        )
        assert len(receiver.spans.named("run one")) == 1
