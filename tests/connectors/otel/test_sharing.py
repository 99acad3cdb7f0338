"""Connectors of one destination share their export state: threads, sockets, queue, health of the server."""

import gc
import itertools
import logging
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider

import cascade as cs
from cascade.connectors.otel import OtelConnector
from cascade.connectors.otel.buffer import Counters
from cascade.connectors.otel.export_queue import ExportQueue
from cascade.connectors.otel.flush import ProviderFlush
from cascade.connectors.otel.live_spans import LiveRun
from cascade.connectors.otel.logs import RunLogs
from cascade.connectors.otel.logs.handler import TaskLogHandler
from cascade.connectors.otel.metrics import RunMetrics
from cascade.connectors.otel.metrics.aggregation import Aggregator, Gauges
from cascade.connectors.otel.metrics.export import MetricExporter
from cascade.connectors.otel.provider import CascadeTracerProvider, RunTracer
from cascade.connectors.otel.routing import ExportTarget
from cascade.connectors.otel.sdk_settings import ProcessResource
from cascade.connectors.otel.signals import ExportSetup
from tests.connectors.otel import servers
from tests.connectors.otel.logs.conftest import lines
from tests.connectors.otel.metrics.exports import latest, metrics_of, values
from tests.lab.receiver import Fault, FaultyReceiver
from tests.lab.time_limits import subprocess_environment
from tests.lab.waiting import HANG, until_blocking

RUNS = 10
PROTOCOLS = ["http/protobuf", "grpc"]
TEMPORALITY = "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE"


@cs.task
def one() -> int:
    return 1


def threads(name: str, before: frozenset[threading.Thread] = frozenset()) -> int:
    return sum(thread.name == name and thread not in before for thread in threading.enumerate())


@cs.task
def logs() -> None:
    logging.getLogger("tests.sharing").error("one line")


@cs.task
def fails() -> int:
    raise ValueError("no")


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_runs_with_different_connectors_share_one_thread(protocol: str) -> None:
    before = frozenset(threading.enumerate())
    with FaultyReceiver() as receiver:
        for _ in range(RUNS):
            connector = OtelConnector(receiver.endpoint(protocol), protocol=protocol, logs=True)
            cs.run(logs(), connector=connector, log_level="ERROR")
        assert len(receiver.spans.named("run logs")) == RUNS
        assert len(lines(receiver.logs)) == RUNS
        assert threads("cascade-otlp", before) == 2, "one for spans and one for log records"
        assert threads("cascade-metrics", before) == 1


@pytest.mark.usefixtures("real_limits")
def test_runs_with_different_connectors_share_one_thread_during_an_outage() -> None:
    before, endpoint = frozenset(threading.enumerate()), servers.unused_endpoint()
    for _ in range(RUNS):
        cs.run(one(), connector=OtelConnector(endpoint), log_level="OFF")
    assert threads("cascade-otlp", before) == 1
    assert threads("cascade-metrics", before) == 1


@pytest.mark.parametrize(
    "other",
    [{"headers": {"x-team": "other"}}, {"protocol": "grpc"}],
    ids=["headers", "protocol"],
)
def test_each_destination_has_its_own_queue(other: dict[str, object]) -> None:
    before, endpoint = frozenset(threading.enumerate()), servers.unused_endpoint()
    cs.run(one(), connector=OtelConnector(endpoint, metrics=False, flush_timeout=0.01), log_level="OFF")
    assert threads("cascade-otlp", before) == 1
    options = {"metrics": False, "flush_timeout": 0.01, **other}
    cs.run(one(), connector=OtelConnector(endpoint, **options), log_level="OFF")  # type: ignore[arg-type]
    assert threads("cascade-otlp", before) == 2


def run_each(connector: Any) -> None:
    """Successful and failed runs, each with its own connector, which is freed before the next run."""
    for number in range(RUNS):
        if number % 5 == 4:
            with pytest.raises(ValueError, match="no"):
                cs.run(fails(), connector=connector(), log_level="OFF")
        else:
            cs.run(one(), connector=connector(), log_level="OFF")
        gc.collect()


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_metrics_of_different_connectors_add_up(protocol: str) -> None:
    with FaultyReceiver() as receiver:
        run_each(lambda: OtelConnector(receiver.endpoint(protocol), protocol=protocol))
        found, spans = latest(receiver), len(receiver.spans)
    assert values(found["cascade.run.duration"]) == {("one", "success"): 8, ("fails", "failure"): 2}
    assert values(found["cascade.task.duration"]) == {("one", "success"): 8, ("fails", "failure", "ValueError"): 2}
    assert values(found["cascade.telemetry.sent"]) == {("traces",): spans}
    assert values(found["cascade.run.active"]) == {(): 0}


def test_connectors_of_the_environment_share_a_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    with FaultyReceiver() as receiver:
        monkeypatch.setenv("CASCADE_CONNECTOR", "otel")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.http_endpoint)
        run_each(lambda: None)
        assert values(latest(receiver)["cascade.run.duration"]) == {("one", "success"): 8, ("fails", "failure"): 2}


def test_each_resource_of_an_application_has_its_own_metrics_and_logs(monkeypatch: pytest.MonkeyPatch) -> None:
    def service(resource: Any) -> str:
        return next(str(one.value.string_value) for one in resource.attributes if one.key == "service.name")

    with FaultyReceiver() as receiver:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.http_endpoint)
        for _ in range(3):
            for name in ("a", "b"):
                provider = TracerProvider(resource=Resource({"service.name": name}), shutdown_on_exit=False)
                cs.run(logs(), connector=OtelConnector(tracer_provider=provider, logs=True), log_level="OFF")
        runs = {service(request.resource_metrics[0].resource): metrics_of(request) for request in receiver.metrics}
        assert {name: values(one["cascade.run.duration"]) for name, one in runs.items()} == {
            "a": {("logs", "success"): 3},
            "b": {("logs", "success"): 3},
        }
        assert Counter(service(request.resource_logs[0].resource) for request in receiver.logs) == {"a": 3, "b": 3}


def test_the_deltas_of_different_connectors_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TEMPORALITY, "delta")
    with FaultyReceiver() as receiver:
        run_each(lambda: OtelConnector(receiver.http_endpoint))
        exports = [metrics_of(request) for request in receiver.metrics]
        durations = [values(one["cascade.run.duration"]) for one in exports if "cascade.run.duration" in one]
        assert sum(sum(found.values()) for found in durations) == RUNS
        sent = [values(one["cascade.telemetry.sent"]) for one in exports if "cascade.telemetry.sent" in one]
        assert sum(sum(found.values()) for found in sent) == len(receiver.spans)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_runs_and_tasks_in_progress_are_those_of_all_connectors(
    protocol: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_METRIC_EXPORT_INTERVAL", "10")
    count, release = 5, threading.Event()

    @cs.task
    def waits() -> bool:
        return release.wait(HANG)

    def run(_: int) -> bool:
        connector = OtelConnector(receiver.endpoint(protocol), protocol=protocol)
        return cs.run(waits(), connector=connector, log_level="OFF")

    def active(name: str) -> int:
        return values(latest(receiver)[f"cascade.{name}.active"])[()] if receiver.metrics else 0

    with FaultyReceiver() as receiver, ThreadPoolExecutor(count) as pool:
        results = pool.map(run, range(count))
        try:
            until_blocking(lambda: active("run") == active("task") == count)
        finally:
            release.set()
        assert list(results) == [True] * count
        until_blocking(lambda: active("run") == active("task") == 0)
        assert values(latest(receiver)["cascade.run.duration"]) == {("waits", "success"): count}


def test_a_collector_without_metrics_receives_one_request_per_hour(limits: pytest.MonkeyPatch) -> None:
    def metric_requests() -> int:
        return sum("metrics" in request.path for request in receiver.requests)

    with FaultyReceiver() as receiver:
        receiver.fault = Fault(http_status=404)
        for _ in range(3):
            cs.run(one(), connector=OtelConnector(receiver.http_endpoint), log_level="OFF")
        assert metric_requests() == 1
    limits.setattr("cascade.connectors.otel.metrics.export.UNSUPPORTED_PAUSE", 0.0)
    with FaultyReceiver() as receiver:
        receiver.fault = Fault(http_status=404)
        cs.run(one(), connector=OtelConnector(receiver.http_endpoint), log_level="OFF")
        receiver.fault = None
        cs.run(one(), connector=OtelConnector(receiver.http_endpoint), log_level="OFF")
        assert values(latest(receiver)["cascade.run.duration"]) == {("one", "success"): 1}


def test_the_largest_memory_limit_of_the_connectors_in_use_applies(caplog: pytest.LogCaptureFixture) -> None:
    @cs.task
    async def item(x: int) -> int:
        return x

    def lost_with(size: int) -> bool:
        caplog.clear()
        connector = OtelConnector(endpoint, metrics=False, max_buffer_bytes=size, on_full="drop", flush_timeout=HANG)
        cs.run(item.map(x=list(range(500))), connector=connector, log_level="OFF")
        return any("more than fits" in message for message in caplog.messages)

    @cs.task
    def in_a_run(size: int) -> bool:
        return lost_with(size)

    with FaultyReceiver() as receiver:
        receiver.fault = Fault(delay=0.2)
        endpoint = receiver.http_endpoint
        assert lost_with(20_000)
        large = OtelConnector(endpoint, metrics=False, max_buffer_bytes=2_000_000)
        assert not cs.run(in_a_run(20_000), connector=large, log_level="OFF")
        assert lost_with(20_000), "the larger connector exists, and is not in use"


KINDS = frozenset(
    {
        *(
            OtelConnector,
            ExportSetup,
            RunTracer,
            CascadeTracerProvider,
            TracerProvider,
            ProcessResource,
            ExportTarget,
            LiveRun,
        ),
        *(
            ExportQueue,
            Counters,
            MetricExporter,
            Aggregator,
            RunMetrics,
            Gauges,
            RunLogs,
            TaskLogHandler,
            ProviderFlush,
        ),
    }
)
"""Classes of the objects of a run and its connector."""


def instances() -> Counter[str]:
    gc.collect()
    return Counter(type(one).__qualname__ for one in gc.get_objects() if type(one) in KINDS)


@pytest.fixture
def few_traces(limits: pytest.MonkeyPatch) -> None:
    """The targets of three ended traces are stored, in place of a thousand."""
    limits.setattr("cascade.connectors.otel.routing.KEPT_TRACES", 3)


def grown(connector: Callable[[], OtelConnector], runs: int = 20) -> Callable[[], Counter[str]]:
    """Return a function that counts the objects and threads which `runs` runs have added."""

    def run_all() -> None:
        for _ in range(runs):
            cs.run(logs(), connector=connector(), log_level="OFF")

    def found() -> Counter[str]:
        names = (thread.name for thread in threading.enumerate() if thread.name in {"cascade-otlp", "cascade-metrics"})
        return instances() + Counter(names)

    run_all()
    before = found()
    run_all()
    return lambda: found() - before


def assert_nothing_grows(connector: Callable[[], OtelConnector]) -> None:
    added = grown(connector)
    # The thread of a plain function may reference its last call for a moment after the end of the run.
    until_blocking(lambda: not added())


@pytest.mark.usefixtures("few_traces")
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_objects_of_a_run_and_its_connector_are_freed(protocol: str) -> None:
    with FaultyReceiver() as receiver:
        endpoint = receiver.endpoint(protocol)
        assert_nothing_grows(lambda: OtelConnector(endpoint, protocol=protocol, logs=True))


@pytest.mark.usefixtures("few_traces")
def test_the_objects_of_a_run_with_the_provider_of_the_application_are_freed() -> None:
    provider = TracerProvider(shutdown_on_exit=False)
    assert_nothing_grows(lambda: OtelConnector(tracer_provider=provider))


@pytest.mark.usefixtures("few_traces")
def test_the_objects_of_a_run_without_exporters_are_freed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "none")
    monkeypatch.setenv("OTEL_METRICS_EXPORTER", "none")
    assert_nothing_grows(OtelConnector)


@pytest.mark.usefixtures("few_traces")
def test_the_latest_destinations_are_stored(limits: pytest.MonkeyPatch) -> None:
    limits.setattr("cascade.connectors.otel.routing.KEPT_DESTINATIONS", 3)
    numbers, before = itertools.count(), frozenset(threading.enumerate())
    with FaultyReceiver() as receiver:

        def elsewhere() -> OtelConnector:
            return OtelConnector(receiver.http_endpoint, headers={"x-team": str(next(numbers))}, logs=True)

        added = grown(elsewhere, runs=10)()
        until_blocking(lambda: threads("cascade-otlp", before) <= 2 * 3)
        until_blocking(lambda: threads("cascade-metrics", before) <= 3)
        assert added["ExportQueue"] == added["MetricExporter"] == added["CascadeTracerProvider"] == 0
        assert len(receiver.spans.named("run logs")) == next(numbers)


FORKING = """
import os, sys
import cascade as cs
from cascade.connectors.otel import OtelConnector
from tests.lab.time_limits import raise_time_limits

raise_time_limits()

@cs.task
def one() -> int:
    return 1

def run(connector=None):
    cs.run(one(), connector=connector or OtelConnector(sys.argv[1], protocol=sys.argv[2]), log_level="OFF")

inherited = OtelConnector(sys.argv[1], protocol=sys.argv[2])
run(inherited)
if os.fork() == 0:
    for connector in (inherited, None, inherited, None):
        run(connector)
    os._exit(0)
assert os.wait()[1] == 0
run()
"""


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_connectors_of_a_forked_child_share_the_inherited_queue(protocol: str) -> None:
    def instance(resource: Any) -> str:
        return next(str(one.value.string_value) for one in resource.attributes if one.key == "service.instance.id")

    with FaultyReceiver() as receiver:
        command = [sys.executable, "-W", "ignore:This process", "-c", FORKING, receiver.endpoint(protocol), protocol]
        subprocess.run(command, check=True, timeout=HANG, env=subprocess_environment())
        found = {instance(request.resource_metrics[0].resource): metrics_of(request) for request in receiver.metrics}
        runs = [values(one["cascade.run.duration"])["one", "success"] for one in found.values()]
        assert sorted(runs) == [2, 4]
