import logging
import sys
from dataclasses import replace
from enum import StrEnum
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry import trace
from opentelemetry._logs import SeverityNumber
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.sdk._logs._internal import std_to_otel
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.semconv.attributes import code_attributes

import cascade as cs
from cascade.connectors.otel.logs.records import (
    MAX_BODY_BYTES,
    MAX_EXTRAS,
    encode_record,
    encode_request,
    encode_resource,
    severity,
)
from cascade.telemetry import attributes as a
from cascade.telemetry.limits import MAX_STACK_BYTES, MAX_VALUE_BYTES
from cascade.telemetry.redact import MASK
from tests.connectors.otel.logs.conftest import RUN, TASK, Line, inside, lines

AROUND = encode_resource({"service.name": "tests", "ports": (1, 2)}, "https://schema")


class Colour(StrEnum):
    RED = "red"


class HostileError(Exception):
    def __str__(self) -> str:
        raise RuntimeError

    __repr__ = __str__


def read(*items: bytes) -> list[Line]:
    return lines([ExportLogsServiceRequest.FromString(encode_request(AROUND, items))])


def line_of(message: Any = "hello", *args: Any, extra: dict[str, Any] | None = None, **fields: Any) -> Line:
    made = logging.makeLogRecord(
        {"name": "app", "levelno": 20, "levelname": "INFO", "msg": message, "args": args, **fields, **(extra or {})}
    )
    (line,) = read(encode_record(made, TASK))
    return line


def raised(error: Exception) -> Any:
    try:
        raise error
    except type(error):
        return sys.exc_info()


def test_severities_equal_those_of_the_sdk() -> None:
    assert [SeverityNumber(severity(level)) for level in range(-1, 70)] == [std_to_otel(n) for n in range(-1, 70)]
    assert line_of(levelname="WARNING", levelno=30).record.severity_text == "WARN"


def test_attribute_names_follow_the_semantic_conventions() -> None:
    assert a.CODE_FILE_PATH == code_attributes.CODE_FILE_PATH
    assert a.CODE_LINE_NUMBER == code_attributes.CODE_LINE_NUMBER
    assert a.CODE_STACKTRACE == code_attributes.CODE_STACKTRACE


def test_a_record_has_its_text_location_and_time() -> None:
    line = line_of("%d rows", 3, pathname="/app.py", funcName="load", lineno=7, created=1.5)
    assert (line.scope, line.body, line.record.severity_number, line.record.severity_text) == (
        "app",
        "3 rows",
        9,
        "INFO",
    )
    assert line.record.time_unix_nano == 1_500_000_000 < line.record.observed_time_unix_nano
    assert line.attributes == {
        "code.file.path": "/app.py", "code.function.name": "load", "code.line.number": 7,
        "cascade.run.id": RUN, "cascade.task.id": "t", "cascade.task.name": "work",
        "cascade.task.attempt": 2, "cascade.map.index": 0,
    }  # fmt: skip


def test_a_record_of_the_logger_of_a_task_has_the_task_in_attributes_only() -> None:
    made, task = list[logging.LogRecord](), replace(TASK, label="monday")

    class Kept(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            made.append(record)

    kept, logger = Kept(), logging.getLogger("tests.app.of_task")
    logger.setLevel(logging.INFO)
    logger.addHandler(kept)
    with inside(task):
        cs.get_logger(logger.name).info("%d rows", 3, extra={"rows": 3})
        cs.get_logger(logger.name).info("own", extra={"label": "mine"})
    logger.removeHandler(kept)
    first, second = read(*[encode_record(record, task) for record in made])
    assert first.body == "3 rows"
    assert first.attributes["cascade.task.label"] == "monday"
    assert {name for name in first.attributes if "." not in name} == {"rows"}
    assert second.attributes["label"] == "mine"


def test_a_record_of_a_task_with_a_label_has_the_label() -> None:
    made = logging.makeLogRecord({"name": "app", "levelno": 20, "msg": "hello"})
    labels = [
        line.attributes.get("cascade.task.label") for line in read(encode_record(made, replace(TASK, label="monday")))
    ]
    assert labels == ["monday"]
    assert "cascade.task.label" not in line_of().attributes


def test_the_span_of_a_record_is_the_current_span() -> None:
    assert line_of().ids == (TASK.trace_id, TASK.span_id, 1)
    with TracerProvider(shutdown_on_exit=False).get_tracer("mine").start_as_current_span("own") as span:
        line = line_of()
        context = span.get_span_context()
    assert line.ids == (
        trace.format_trace_id(context.trace_id),
        trace.format_span_id(context.span_id),
        context.trace_flags,
    )


def test_an_exception_has_the_attributes_of_the_conventions() -> None:
    found = line_of(exc_info=raised(LookupError("password=hunter2")), stack_info="Stack: token=abc").attributes
    assert (found["exception.type"], found["exception.message"]) == ("LookupError", f"password={MASK}")
    assert "in raised" in found["exception.stacktrace"]
    assert "hunter2" not in str(found)
    assert found["code.stacktrace"] == f"Stack: token={MASK}"
    assert line_of(exc_info=raised(HostileError())).attributes["exception.type"].endswith("test_records.HostileError")
    assert line_of(exc_info=(None, None, None), exc_text="trace").attributes["exception.stacktrace"] == "trace"


def test_extra_values_of_simple_types_are_attributes() -> None:
    simple = {"n": 1, "yes": True, "share": 0.5, "word": "x", "colour": Colour.RED, "nan": float("nan"), "big": 2**80}
    other = {"list": [1], "none": None, "object": object(), "cascade.run.id": "forged", "exception.type": "forged"}
    line = line_of(extra={**simple, **other})
    expected = {"colour": "Colour.RED", "nan": "NaN", "big": str(2**80)}
    assert {key: line.attributes[key] for key in simple} == {**simple, **expected}
    assert line.attributes["yes"] is True
    assert line.attributes["cascade.run.id"] == RUN
    assert line.record.dropped_attributes_count == len(other)


def test_too_many_extra_values_are_counted() -> None:
    line = line_of(extra={f"key{n}": n for n in range(MAX_EXTRAS + 5)})
    assert line.record.dropped_attributes_count == 5


def test_secrets_are_masked_by_name_and_by_form() -> None:
    line = line_of(
        "to https://me:hunter2@db", extra={"db_password": "hunter2", "url": "x?token=hunter2", "a token=hunter2": 1}
    )
    assert line.body == f"to https://{MASK}@db"
    assert "hunter2" not in str(line.record)


@pytest.mark.parametrize(
    "text",
    [
        "Authorization: Bearer hunter2X9",
        "sent {'Authorization': 'Token hunter2X9'}",
        "Proxy-Authorization: Digest username=u, response=hunter2X9",
        "Cookie: a=b; sid=hunter2X9",
        "curl --password hunter2X9",
    ],
)
def test_headers_are_masked_in_the_body_and_in_extra_values(text: str) -> None:
    line = line_of(text, extra={"sent": text, "Authorization": "hunter2X9", "headers": f"x\n{text}"})
    assert "hunter2" not in str(line.record)
    assert line.attributes["Authorization"] == MASK


def test_a_body_is_masked_before_it_is_cut() -> None:
    secret = "https://app:hunter2X9@db"
    for back in range(0, 30, 3):
        size = MAX_BODY_BYTES - back
        line = line_of("x" * size + " " + secret, extra={"long": "y" * (MAX_VALUE_BYTES - back) + " " + secret})
        assert "hunt" not in str(line.record)


def test_a_number_of_tokens_is_not_masked() -> None:
    line = line_of("used tokens=120", extra={"tokens": 120, "has_token": True, "pin": 1234})
    assert line.body == "used tokens=120"
    assert (line.attributes["tokens"], line.attributes["has_token"], line.attributes["pin"]) == (120, True, MASK)


def test_texts_are_cut() -> None:
    line = line_of("x" * 10_000_000, extra={"long": "é" * 10_000}, name="n" * 1000, pathname="p" * 10_000)
    assert len(line.body.encode()) == MAX_BODY_BYTES
    assert max(len(str(value).encode()) for value in line.attributes.values()) == MAX_VALUE_BYTES
    assert line.scope.startswith("nnn")
    deep = raised(RuntimeError("x" * 1_000_000))
    assert len(line_of(exc_info=deep).attributes["exception.stacktrace"].encode()) <= MAX_STACK_BYTES + 16


@pytest.mark.parametrize(
    ("message", "args", "shown"),
    [
        ("two %s %s", ("one",), "two %s %s <arguments that cannot be shown: TypeError>"),
        ("%s", (HostileError(),), "%s <arguments that cannot be shown: RuntimeError>"),
        (HostileError(), (), "<HostileError> <arguments that cannot be shown: RuntimeError>"),
        ("\ud800 \x00", (), "? \x00"),
        (Colour.RED, (), "red"),
        ("", (), ""),
    ],
    ids=["too few", "hostile argument", "hostile message", "surrogate", "enum", "empty"],
)
def test_invalid_messages_are_exported_as_far_as_possible(message: Any, args: Any, shown: str) -> None:
    assert line_of(message, *args).body == shown


@pytest.mark.parametrize("created", [float("nan"), float("inf"), -1.0, 1e300, None, "now"])
def test_an_invalid_time_is_replaced_by_the_time_of_observation(created: Any) -> None:
    record = line_of(created=created).record
    assert record.time_unix_nano == record.observed_time_unix_nano > 0


@given(st.text(), st.dictionaries(st.text(), st.text() | st.floats() | st.integers() | st.booleans()), st.text())
def test_any_text_and_value_can_be_decoded(message: str, extra: dict[str, Any], name: str) -> None:
    known = {key: value for key, value in extra.items() if key not in vars(logging.makeLogRecord({}))}
    assert line_of(message, extra=known, name=name).body is not None


def test_a_request_groups_records_by_logger_under_one_resource() -> None:
    names = ["a", "b" * 500, "a", "", "ü" * 99]
    fields = {"levelno": 20, "lineno": 1}
    items = [
        encode_record(logging.makeLogRecord({**fields, "name": n, "msg": str(i)}), TASK) for i, n in enumerate(names)
    ]
    whole = ExportLogsServiceRequest.FromString(encode_request(AROUND, items))
    (around,) = whole.resource_logs
    assert [pair.key for pair in around.resource.attributes] == ["service.name", "ports"]
    assert around.schema_url == "https://schema"
    assert [[record.body.string_value for record in scope.log_records] for scope in around.scope_logs] == [
        ["0", "2"], ["1"], ["3"], ["4"],
    ]  # fmt: skip
