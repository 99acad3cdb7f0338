"""Metrics and logs of complete runs, in addition to their traces."""

import asyncio
import logging
import os
import threading
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider

import cascade as cs
from cascade.connectors.otel import OtelConnector
from tests.connectors.otel import servers
from tests.connectors.otel.logs.conftest import lines
from tests.connectors.otel.metrics import messages
from tests.connectors.otel.metrics.exports import attributes, latest, points, values
from tests.connectors.otel.tracing import warnings
from tests.lab.receiver import FaultyReceiver

app = logging.getLogger("tests.signals")


@pytest.fixture(autouse=True)
def all_levels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "level", logging.DEBUG)
    app.manager._clear_cache()  # type: ignore[attr-defined] # loggers cache their enabled levels  # pyright: ignore[reportAttributeAccessIssue]


@cs.task
def flaky() -> str:
    task = cs.current_task()
    assert task is not None
    app.info("attempt")
    if task.attempt < 2:
        raise ValueError("again")
    with trace.get_tracer("mine").start_as_current_span("own"):
        app.info("own")
    return "done"


@cs.task
async def shout(word: str) -> str:
    app.info("shout")
    return word.upper()


def flow() -> Any:
    return shout(flaky().with_retry(2, delay=0.0))


def endpoint_of(receiver: FaultyReceiver, protocol: str) -> dict[str, Any]:
    return {"endpoint": receiver.endpoint(protocol), "protocol": protocol}


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_log_records_have_the_ids_of_the_current_span(protocol: str) -> None:
    with FaultyReceiver() as receiver:
        cs.run(flow(), connector=OtelConnector(**endpoint_of(receiver, protocol), logs=True), log_level="ERROR")
        names = {span.span_id: span.name for span in receiver.spans}
        logged = [(line.body, names[line.ids[1]]) for line in lines(receiver.logs) if line.scope == app.name]
    assert logged == [
        ("attempt", "flaky attempt"),
        ("attempt", "flaky attempt"),
        ("own", "own"),
        ("shout", "shout"),
    ]


def test_logs_are_not_exported_by_default() -> None:
    with FaultyReceiver() as receiver:
        cs.run(flow(), connector=OtelConnector(receiver.http_endpoint), log_level="ERROR")
        assert not receiver.logs


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_a_runs_metrics_arrive_with_its_trace(protocol: str) -> None:
    with FaultyReceiver() as receiver:
        cs.run(flow(), connector=OtelConnector(**endpoint_of(receiver, protocol)), log_level="ERROR")
        metrics = latest(receiver)
        spans = {span.span_id: span.name for span in receiver.spans}
    durations = points(metrics["cascade.task.duration"])
    assert sorted(attributes(point)["cascade.task.name"] for point in durations) == ["flaky", "shout"]
    assert {spans[example.span_id.hex()] for point in durations for example in point.exemplars} == {"flaky", "shout"}
    assert values(metrics["cascade.task.retries"]) == {("flaky",): 1}
    assert values(metrics["cascade.telemetry.sent"]) == {("traces",): len(spans)}
    assert values(metrics["cascade.task.active"]) == {(): 0}


def test_metrics_may_be_disabled() -> None:
    with FaultyReceiver() as receiver:
        cs.run(flow(), connector=OtelConnector(receiver.http_endpoint, metrics=False), log_level="ERROR")
        assert not receiver.metrics
        assert receiver.spans


def test_the_url_of_the_traces_determines_the_urls_of_the_other_signals() -> None:
    with FaultyReceiver() as receiver:
        connector = OtelConnector(f"{receiver.http_endpoint}/v1/traces", logs=True)
        cs.run(flow(), connector=connector, log_level="ERROR")
        assert receiver.metrics
        assert receiver.logs
        assert receiver.spans


def test_with_another_path_in_the_endpoint_metrics_are_not_exported_and_logs_raise_an_error(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with FaultyReceiver() as receiver:
        endpoint = f"{receiver.http_endpoint}/elsewhere"
        with pytest.raises(ValueError, match="is the complete URL of the traces"):
            OtelConnector(endpoint, logs=True)
        cs.run(flow(), connector=OtelConnector(endpoint), log_level="ERROR")
    warned = [record.getMessage() for record in caplog.records if record.name.startswith("cascade.")]
    assert len(warned) == 1, "for the traces only"
    assert f"spans were lost at {endpoint}: 404" in warned[0]


def test_metrics_count_runs_that_are_not_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_off")
    with FaultyReceiver() as receiver:
        cs.run(flow(), connector=OtelConnector(receiver.http_endpoint), log_level="ERROR")
        assert values(latest(receiver)["cascade.task.duration"]) == {("flaky", "success"): 1, ("shout", "success"): 1}
        assert not receiver.spans


def test_variables_of_a_disabled_signal_are_not_validated(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for signal in ("METRICS", "LOGS"):
        for name in ("ENDPOINT", "PROTOCOL", "HEADERS", "TIMEOUT", "COMPRESSION"):
            monkeypatch.setenv(f"OTEL_EXPORTER_OTLP_{signal}_{name}", "nonsense")
    monkeypatch.setenv("OTEL_METRIC_EXPORT_INTERVAL", "1m")
    monkeypatch.setenv("OTEL_METRICS_EXPORTER", "statsd")
    with FaultyReceiver() as receiver:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.http_endpoint)
        cs.run(flow(), connector=OtelConnector(receiver.http_endpoint, metrics=False), log_level="ERROR")
        assert receiver.spans
    assert [record.getMessage() for record in caplog.records if record.name.startswith("cascade.")] == []


def test_logs_that_only_the_environment_enables_raise_no_error(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OTEL_LOGS_EXPORTER", "otlp")
    with FaultyReceiver() as receiver:
        endpoint = f"{receiver.http_endpoint}/elsewhere"
        for _ in range(2):
            cs.run(flow(), connector=OtelConnector(endpoint), log_level="ERROR")
    warned = [record.getMessage() for record in caplog.records if "no logs are exported" in record.getMessage()]
    assert len(warned) == 1
    assert endpoint in warned[0]


@pytest.mark.parametrize("exporter", ["none", "console", "zipkin"])
def test_each_signal_has_its_own_exporter_setting(exporter: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", exporter)
    monkeypatch.setenv("OTEL_LOGS_EXPORTER", "otlp")
    with FaultyReceiver() as receiver:
        cs.run(flow(), connector=OtelConnector(receiver.http_endpoint), log_level="ERROR")
        assert not receiver.spans
        assert receiver.metrics
        assert receiver.logs


def tracer_provider() -> TracerProvider:
    return TracerProvider(shutdown_on_exit=False)


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_with_a_tracer_provider_of_the_application_logs_and_metrics_are_delivered_at_the_end_of_a_run(
    protocol: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with FaultyReceiver() as receiver:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.endpoint(protocol))
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)
        for runs in (1, 2):
            cs.run(flow(), connector=OtelConnector(logs=True, tracer_provider=tracer_provider()), log_level="ERROR")
            assert len([line for line in lines(receiver.logs) if line.scope == app.name]) == 4 * runs
            assert values(latest(receiver)["cascade.task.retries"])["flaky",] >= 1


class Hanging(SpanProcessor):
    """Its flush ends at the end of the test."""

    def __init__(self) -> None:
        self.over = threading.Event()

    def force_flush(self, timeout_millis: int = 0) -> bool:
        return self.over.wait()


def test_a_tracer_provider_that_hangs_does_not_delay_the_logs(monkeypatch: pytest.MonkeyPatch) -> None:
    provider, hanging = tracer_provider(), Hanging()
    provider.add_span_processor(hanging)
    with FaultyReceiver() as receiver:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.http_endpoint)
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
        connector = OtelConnector(logs=True, tracer_provider=provider, flush_timeout=0.5)
        cs.run(flow(), connector=connector, log_level="ERROR")
        arrived = len([line for line in lines(receiver.logs) if line.scope == app.name])
        hanging.over.set()
    assert arrived == 4


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_with_a_tracer_provider_of_the_application_lost_log_records_are_counted(
    protocol: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint = servers.unused_endpoint()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_LOGS_ENDPOINT", endpoint)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)
    cs.run(flow(), connector=OtelConnector(logs=True, tracer_provider=tracer_provider()), log_level="ERROR")
    (warning,) = warnings(caplog)
    assert "4 log records" in warning
    assert endpoint in warning


def test_with_a_tracer_provider_of_the_application_metrics_need_a_collector_in_the_environment(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)
    connector, before = OtelConnector(tracer_provider=tracer_provider()), set(threading.enumerate())
    with caplog.at_level(logging.DEBUG, "cascade.connectors.otel"):
        cs.run(flow(), connector=connector, log_level="ERROR")
    assert [record.getMessage() for record in caplog.records if record.name.startswith("cascade")] == []
    assert [thread for thread in set(threading.enumerate()) - before if thread.name == "cascade-metrics"] == []


def test_a_run_whose_last_message_was_lost_is_not_counted_as_active() -> None:
    run_id = "0f8fad5b-d9cb-469f-a165-70867728950e"

    async def without_the_last_message(connector: OtelConnector) -> None:
        await connector.connect()
        connector.place_run(run_id, "it", messages.START, None)
        await connector.publish("topic", messages.started(run_id))
        await connector.disconnect()

    with FaultyReceiver() as receiver:
        connector = OtelConnector(receiver.http_endpoint)
        asyncio.run(without_the_last_message(connector))
        assert values(latest(receiver)["cascade.run.active"]) == {(): 0}


def test_a_run_with_two_connectors_of_one_destination_counts_twice() -> None:
    with FaultyReceiver() as receiver:
        connectors = [OtelConnector(receiver.http_endpoint) for _ in range(2)]
        cs.run(flow(), connector=connectors, log_level="ERROR")
        assert values(latest(receiver)["cascade.task.duration"]) == {("flaky", "success"): 2, ("shout", "success"): 2}
        assert len(receiver.spans.named("shout")) == 2


def test_an_error_of_the_flush_is_logged_unchanged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(*_: object) -> None:
        raise ValueError("ours")

    monkeypatch.setattr("cascade.connectors.otel.signals.Signals.start_flush", fails)
    with FaultyReceiver() as receiver:
        cs.run(flow(), connector=OtelConnector(receiver.http_endpoint), log_level="OFF")
    assert caplog.messages[-1] == "OtelConnector could not disconnect: ValueError: ours"
