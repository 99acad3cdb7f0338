"""A meter provider of the application: its readers get the metrics, and Cascade exports none."""

import os
import subprocess
import sys
import textwrap
from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from cascade.connectors.otel.buffer import Counters, FlushReport
from cascade.connectors.otel.metrics import RunMetrics
from cascade.connectors.otel.metrics.aggregation import MAX_NAMES
from cascade.connectors.otel.metrics.catalogue import BOUNDS, METRICS
from cascade.testing import OtlpReceiver
from tests.connectors.otel.metrics import messages
from tests.lab.waiting import HANG


def provider_with_reader() -> tuple[MeterProvider, InMemoryMetricReader]:
    reader = InMemoryMetricReader()
    return MeterProvider([reader], shutdown_on_exit=False), reader


def read(reader: InMemoryMetricReader) -> dict[str, Any]:
    data = reader.get_metrics_data()
    assert data is not None
    ((scope,),) = (resource.scope_metrics for resource in data.resource_metrics)
    assert scope.scope.name == "cascade"
    return {metric.name: metric for metric in scope.metrics}


def values(metric: Any) -> dict[tuple[Any, ...], int]:
    return {
        tuple(point.attributes.values()): getattr(point, "count", 0) or point.value for point in metric.data.data_points
    }


def test_all_metrics_with_names_units_and_bounds() -> None:
    provider, reader = provider_with_reader()
    metrics = RunMetrics.for_provider(provider)
    metrics.add_report("traces", lambda: FlushReport(sent=5, lost=1, retried=2))
    metrics.start_task("a")
    waited = messages.task(waits=[messages.wait("resource", 1)])
    for payload in (waited, messages.pending(), messages.skipped(), messages.stopped("other"), messages.started()):
        metrics.publish(payload)
    found = read(reader)
    assert {name: metric.unit for name, metric in found.items()} == {one.name: one.unit for one in METRICS}
    (point,) = found["cascade.task.duration"].data.data_points
    assert tuple(point.explicit_bounds) == BOUNDS
    assert dict(point.attributes) == {"cascade.task.name": "work", "cascade.task.result": "success"}
    (exemplar,) = point.exemplars
    assert (f"{exemplar.trace_id:032x}", f"{exemplar.span_id:016x}") == (messages.TRACE, messages.SPAN)
    assert values(found["cascade.run.active"]) == {(): 1}
    assert values(found["cascade.task.active"]) == {(): 1}
    assert values(found["cascade.task.cache.hits"]) == {("work",): 1}
    assert values(found["cascade.telemetry.sent"]) == {("traces",): 5}


def test_connectors_share_the_instruments_and_add_up(caplog: pytest.LogCaptureFixture) -> None:
    provider, reader = provider_with_reader()
    one, other = RunMetrics.for_provider(provider), RunMetrics.for_provider(provider)
    for metrics in (one, other):
        metrics.add_report("traces", lambda: FlushReport(sent=2))
        metrics.publish(messages.started())
        metrics.publish(messages.task())
    assert values(read(reader)["cascade.task.duration"]) == {("work", "success"): 2}
    assert values(read(reader)["cascade.run.active"]) == {(): 2}
    del one, metrics
    found = read(reader)
    assert values(found["cascade.telemetry.sent"]) == {("traces",): 4}
    assert caplog.records == []


def test_a_queue_that_connectors_share_is_counted_once() -> None:
    provider, reader = provider_with_reader()
    counters = Counters()
    counters.count_put()
    counters.add(sent=1)
    for _ in range(3):
        RunMetrics.for_provider(provider).add_report("traces", counters.report)
    assert values(read(reader)["cascade.telemetry.sent"]) == {("traces",): 1}


def test_instruments_have_the_cardinality_limits() -> None:
    provider, reader = provider_with_reader()
    metrics = RunMetrics.for_provider(provider)
    for number in range(MAX_NAMES + 5):
        metrics.publish(messages.task(f"task {number}"))
    points = read(reader)["cascade.task.duration"].data.data_points
    assert len(points) == MAX_NAMES + 1
    assert next(point.count for point in points if dict(point.attributes) == {"otel.metric.overflow": True}) == 5


def test_a_message_without_a_trace_is_measured() -> None:
    provider, reader = provider_with_reader()
    RunMetrics.for_provider(provider).publish(messages.task() | {"trace_id": "", "span_id": ""})
    assert values(read(reader)["cascade.task.duration"]) == {("work", "success"): 1}


def test_an_object_that_is_not_a_meter_provider_raises_a_type_error() -> None:
    with pytest.raises(TypeError, match="not an opentelemetry MeterProvider"):
        RunMetrics.for_provider("provider")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def test_the_applications_provider_is_found() -> None:
    program = """
        from opentelemetry import metrics
        from cascade.connectors.otel.metrics import application_meter_provider
        assert application_meter_provider() is None
        from opentelemetry.sdk.metrics import MeterProvider
        provider = MeterProvider()
        metrics.set_meter_provider(provider)
        assert application_meter_provider() is provider
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=True, timeout=HANG)


@pytest.mark.parametrize("own", [True, False], ids=["an endpoint", "the environment"])
def test_an_endpoint_argument_comes_before_the_applications_provider(own: bool) -> None:
    program = """
        import sys
        from opentelemetry import metrics
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.metrics.export import InMemoryMetricReader
        import cascade as cs
        from cascade.connectors.otel import OtelConnector

        reader = InMemoryMetricReader()
        connector = OtelConnector(*sys.argv[1:])  # it chooses at its first run
        metrics.set_meter_provider(MeterProvider([reader]))
        cs.run(cs.task(lambda: 1, name="one")(), connector=connector)
        print(reader.get_metrics_data() is not None)
    """
    with OtlpReceiver() as receiver:
        command = [sys.executable, "-c", textwrap.dedent(program), *([receiver.http_endpoint] if own else [])]
        environ = {**os.environ, "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.http_endpoint}
        done = subprocess.run(command, check=True, timeout=HANG, env=environ, capture_output=True, text=True)
        assert len(receiver.spans.named("run one")) == 1
        assert bool(receiver.metrics) is own
    assert done.stdout == f"{not own}\n"


def test_with_a_no_op_provider_of_the_application_no_metrics_are_exported() -> None:
    program = """
        from opentelemetry import metrics
        import cascade as cs
        from cascade.connectors.otel import OtelConnector

        metrics.set_meter_provider(metrics.NoOpMeterProvider())
        cs.run(cs.task(lambda: 1, name="one")(), connector=OtelConnector())
    """
    with OtlpReceiver() as receiver:
        environ = {**os.environ, "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.http_endpoint}
        subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=True, timeout=HANG, env=environ)
        assert len(receiver.spans.named("run one")) == 1
        assert receiver.metrics == []
