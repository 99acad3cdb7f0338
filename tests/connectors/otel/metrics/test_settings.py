import json

import pytest

from cascade.connectors.otel.sdk_settings import MetricSettings
from tests.connectors.otel import servers
from tests.connectors.otel.metrics import messages
from tests.connectors.otel.metrics.exports import exporting, flush
from tests.lab.receiver import Fault, FaultyReceiver
from tests.lab.waiting import NEVER


def test_defaults() -> None:
    expected = MetricSettings(
        exporters=frozenset({"otlp"}), temporality="cumulative", exemplars="trace_based", interval=60
    )
    assert MetricSettings.from_environment({}) == expected
    assert MetricSettings.from_environment(dict.fromkeys(VARIABLES, " ")) == expected


VARIABLES = {
    "OTEL_METRICS_EXPORTER": "exporter",
    "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE": "cumulative, delta, lowmemory",
    "OTEL_METRICS_EXEMPLAR_FILTER": "trace_based, always_on, always_off",
    "OTEL_METRIC_EXPORT_INTERVAL": "milliseconds above zero",
}


@pytest.mark.parametrize("value", ["statsd", "-1", "1m", "nan", "0"])
@pytest.mark.parametrize("variable", VARIABLES)
def test_an_unknown_value_causes_one_warning_and_the_default(
    variable: str, value: str, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(2):
        assert MetricSettings.from_environment({variable: value}) == MetricSettings()
    (record,) = caplog.records
    assert f"{variable}={value!r}" in record.getMessage()
    assert VARIABLES[variable] in record.getMessage()


@pytest.mark.parametrize("exporter", ["none", "prometheus", "zipkin"])
def test_without_an_exporter_nothing_else_is_read(exporter: str, caplog: pytest.LogCaptureFixture) -> None:
    environ = {"OTEL_METRICS_EXPORTER": exporter, "OTEL_METRIC_EXPORT_INTERVAL": "1m"}
    assert MetricSettings.from_environment(environ) == MetricSettings(exporters=frozenset())
    assert [record for record in caplog.records if "INTERVAL" in record.getMessage()] == []


def test_an_infinite_interval_is_one_year() -> None:
    assert MetricSettings.from_environment({"OTEL_METRIC_EXPORT_INTERVAL": "inf"}).interval == 365 * 86_400


def test_values_are_case_insensitive() -> None:
    found = MetricSettings.from_environment(
        {"OTEL_METRICS_EXPORTER": "OTLP, Console", "OTEL_METRIC_EXPORT_INTERVAL": "500"}
    )
    assert (found.exporters, found.interval) == (frozenset({"otlp", "console"}), 0.5)


@pytest.mark.parametrize(
    "environ",
    [{"OTEL_METRICS_EXPORTER": "none"}, {"OTEL_METRICS_EXPORTER": "prometheus"}, {"OTEL_SDK_DISABLED": "true"}],
)
def test_a_variable_that_disables_metrics_stops_all_exports(environ: dict[str, str]) -> None:
    with FaultyReceiver() as receiver, exporting(receiver.http_endpoint, **environ) as metrics:
        metrics.publish(messages.task())
        flush(metrics)
        assert receiver.requests == []


def test_the_console_exporter_needs_no_collector(capsys: pytest.CaptureFixture[str]) -> None:
    with exporting(servers.unused_endpoint(), OTEL_METRICS_EXPORTER="console") as metrics:
        metrics.publish(messages.task("printed"))
        flush(metrics, NEVER)
    assert "printed" in json.dumps(json.loads(capsys.readouterr().out))


def test_the_console_exporter_continues_if_the_collector_does_not_support_metrics(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with (
        FaultyReceiver() as receiver,
        exporting(receiver.http_endpoint, OTEL_METRICS_EXPORTER="console,otlp") as metrics,
    ):
        metrics.publish(messages.task("first"))
        flush(metrics)
        receiver.fault = Fault(http_status=404)
        for name in ("second", "third"):
            metrics.publish(messages.task(name))
            flush(metrics)
        assert len(receiver.metrics) == 1
        assert len(receiver.requests) == 2
    printed = capsys.readouterr().out
    assert all(name in printed for name in ("first", "second", "third"))
