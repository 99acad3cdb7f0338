import json

import pytest

from cascade.connectors.otel.metrics._settings import Settings
from cascade.testing import Fault, OtlpReceiver
from tests.connectors.otel import peers
from tests.connectors.otel.metrics import messages
from tests.connectors.otel.metrics.exports import exporting
from tests.waiting import HANG, NEVER


def test_defaults() -> None:
    expected = Settings(exporters=frozenset({"otlp"}), temporality="cumulative", exemplars="trace_based", interval=60)
    assert Settings.from_environment({}) == expected
    assert Settings.from_environment(dict.fromkeys(VARIABLES, " ")) == expected


VARIABLES = {
    "OTEL_METRICS_EXPORTER": "otlp, console, none",
    "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE": "cumulative, delta, lowmemory",
    "OTEL_METRICS_EXEMPLAR_FILTER": "trace_based, always_on, always_off",
    "OTEL_METRIC_EXPORT_INTERVAL": "milliseconds above zero",
}


@pytest.mark.parametrize("value", ["statsd", "-1", "otlp,nan"])
@pytest.mark.parametrize("variable", VARIABLES)
def test_an_unknown_value_is_named_with_the_choices(variable: str, value: str) -> None:
    with pytest.raises(ValueError, match=variable) as caught:
        Settings.from_environment({variable: value})
    assert VARIABLES[variable] in str(caught.value)


def test_words_may_be_written_in_capitals() -> None:
    found = Settings.from_environment({"OTEL_METRICS_EXPORTER": "OTLP, Console", "OTEL_METRIC_EXPORT_INTERVAL": "500"})
    assert (found.exporters, found.interval) == (frozenset({"otlp", "console"}), 0.5)


@pytest.mark.parametrize(
    "environ",
    [{"OTEL_METRICS_EXPORTER": "none"}, {"OTEL_METRICS_EXPORTER": "prometheus"}, {"OTEL_SDK_DISABLED": "true"}],
)
def test_what_turns_metrics_off_turns_them_off(environ: dict[str, str]) -> None:
    with OtlpReceiver() as receiver, exporting(receiver.http_endpoint, **environ) as metrics:
        metrics.publish(messages.task())
        metrics.flush(HANG)
        assert receiver.requests == []


def test_the_console_alone(capsys: pytest.CaptureFixture[str]) -> None:
    with exporting(peers.refused(), OTEL_METRICS_EXPORTER="console") as metrics:
        metrics.publish(messages.task("printed"))
        metrics.flush(NEVER)
    assert "printed" in json.dumps(json.loads(capsys.readouterr().out))


def test_the_console_goes_on_when_the_collector_takes_no_metrics(capsys: pytest.CaptureFixture[str]) -> None:
    with (
        OtlpReceiver() as receiver,
        exporting(receiver.http_endpoint, OTEL_METRICS_EXPORTER="console,otlp") as metrics,
    ):
        metrics.publish(messages.task("first"))
        metrics.flush(HANG)
        receiver.fault = Fault(http_status=404)
        for name in ("second", "third"):
            metrics.publish(messages.task(name))
            metrics.flush(HANG)
        assert len(receiver.metrics) == 1
        assert len(receiver.requests) == 2
    printed = capsys.readouterr().out
    assert all(name in printed for name in ("first", "second", "third"))
