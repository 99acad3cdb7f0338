"""Resource, sampler and limits from the environment."""

import os
import re
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan, SpanLimits, TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, DEFAULT_ON, ParentBasedTraceIdRatio, TraceIdRatioBased

from cascade.connectors.otel.sdk_settings import resource, sampler, span_limits
from cascade.telemetry.topics import source

ATTRIBUTES = "OTEL_RESOURCE_ATTRIBUTES"
NAME = "OTEL_SERVICE_NAME"


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, {"service.name": "cascade", "telemetry.sdk.language": "python", "telemetry.sdk.name": "opentelemetry"}),
        ({NAME: "mine"}, {"service.name": "mine"}),
        ({NAME: ""}, {"service.name": "cascade"}),
        ({NAME: " \t"}, {"service.name": "cascade"}),
        ({NAME: '"mine"\n'}, {"service.name": "mine"}),
        ({NAME: "first", ATTRIBUTES: "service.name=second"}, {"service.name": "first"}),
        ({NAME: " ", ATTRIBUTES: "service.name=second"}, {"service.name": "second"}),
        ({ATTRIBUTES: "service.name="}, {"service.name": "cascade"}),
        ({ATTRIBUTES: "service.name\t= mine "}, {"service.name": "mine"}),
        ({ATTRIBUTES: "service%2Ename=my%20own"}, {"service.name": "my own"}),
        ({ATTRIBUTES: "server.service.name=other"}, {"service.name": "cascade", "server.service.name": "other"}),
        ({ATTRIBUTES: "service.name.x=y,xservice.name=z"}, {"service.name": "cascade", "service.name.x": "y"}),
        ({ATTRIBUTES: "note=service.name=x"}, {"service.name": "cascade", "note": "service.name=x"}),
        ({ATTRIBUTES: "app.service.instance.id=7"}, {"app.service.instance.id": "7"}),
        ({ATTRIBUTES: "service.instance.id=7"}, {"service.instance.id": "7"}),
        ({ATTRIBUTES: "team=caf%C3%A9,a=b%2Cc,a%3Db=d"}, {"team": "café", "a": "b,c", "a=b": "d"}),
        ({ATTRIBUTES: "team=x%E9y"}, {"team": "x\N{REPLACEMENT CHARACTER}y"}),
        ({ATTRIBUTES: os.fsdecode(b"team=caf\xe9")}, {"team": "caf\N{REPLACEMENT CHARACTER}"}),
        ({NAME: os.fsdecode(b"caf\xe9")}, {"service.name": "caf\N{REPLACEMENT CHARACTER}"}),
        ({ATTRIBUTES: "a=1, ,b=2,"}, {"a": "1", "b": "2"}),
    ],
)
def test_resource(environ: dict[str, str], expected: dict[str, str], caplog: pytest.LogCaptureFixture) -> None:
    attributes = resource(environ).attributes
    assert {key: attributes[key] for key in expected} == expected
    if "service.instance.id" not in expected:
        assert attributes["service.instance.id"] == source()
    assert caplog.records == []


def test_an_invalid_pair_is_ignored_with_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(2):
        assert resource({ATTRIBUTES: "garbage,=x,a=1=2"}).attributes["a"] == "1=2"
    (record,) = caplog.records
    assert f"{ATTRIBUTES}: 'garbage', '=x' is ignored" in record.getMessage()


def test_detectors_have_a_priority_between_cascade_and_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPERIMENTAL_RESOURCE_DETECTORS", "process")
    found = resource(os.environ).attributes
    assert found["process.pid"] == os.getpid()
    assert (found["service.name"], found["service.instance.id"]) == ("cascade", source())
    monkeypatch.setenv(ATTRIBUTES, "process.pid=7")
    assert resource(os.environ).attributes["process.pid"] == "7"


@pytest.mark.parametrize(
    ("name", "argument", "expected"),
    [
        ("", "", DEFAULT_ON),
        ("Always_Off ", "", ALWAYS_OFF),
        ("traceidratio", "0.25", TraceIdRatioBased(0.25)),
        ("parentbased_traceidratio", "", ParentBasedTraceIdRatio(1.0)),
    ],
)
def test_sampler(name: str, argument: str, expected: Any, caplog: pytest.LogCaptureFixture) -> None:
    found = sampler({"OTEL_TRACES_SAMPLER": name, "OTEL_TRACES_SAMPLER_ARG": argument})
    assert found.get_description() == expected.get_description()
    assert caplog.records == []


@pytest.mark.parametrize("argument", ["x", "1.5", "-0.1", "nan", "10%"])
def test_with_an_invalid_ratio_all_runs_are_sampled(argument: str, caplog: pytest.LogCaptureFixture) -> None:
    found = sampler({"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": argument})
    assert found.get_description() == TraceIdRatioBased(1.0).get_description()
    (record,) = caplog.records
    assert f"OTEL_TRACES_SAMPLER_ARG={argument!r}" in record.getMessage()


@pytest.mark.parametrize("name", ["nonsense", "jaeger_remote"])
def test_an_unknown_sampler_causes_a_warning(name: str, caplog: pytest.LogCaptureFixture) -> None:
    assert sampler({"OTEL_TRACES_SAMPLER": name, "OTEL_TRACES_SAMPLER_ARG": "x"}) is DEFAULT_ON
    (record,) = caplog.records
    assert re.search(rf"OTEL_TRACES_SAMPLER='{name}'.*parentbased_always_on is used", record.getMessage())


@pytest.mark.parametrize("value", ["", "abc", "-1", "7", " 7 "])
def test_limits_equal_those_of_the_sdk(
    value: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for variable in ("OTEL_ATTRIBUTE_COUNT_LIMIT", "OTEL_SPAN_LINK_COUNT_LIMIT", "OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT"):
        found = span_limits({variable: value})
        if value.strip() == "7":
            monkeypatch.setenv(variable, value)
        assert vars(found) == vars(SpanLimits())
        monkeypatch.delenv(variable, raising=False)
        warned = [record for record in caplog.records if f"{variable}={value!r}" in record.getMessage()]
        assert len(warned) == (value in {"abc", "-1"})


def test_a_limit_may_be_any_number() -> None:
    limits = span_limits({"OTEL_SPAN_LINK_COUNT_LIMIT": "9" * 25, "OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT": "9" * 25})
    provider = TracerProvider(span_limits=limits, shutdown_on_exit=False)
    span = provider.get_tracer("users").start_span("any")
    span.set_attribute("key", "value")
    assert isinstance(span, ReadableSpan)
    assert span.attributes == {"key": "value"}
