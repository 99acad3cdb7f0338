import json
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from cascade.spec.telemetry import Body, Header, TaskStateEvent
from cascade.telemetry.schema import load
from cascade.telemetry.wire import (
    InvalidPayload,
    decode,
    decode_incoming,
    dumps,
    encode,
    encode_body,
    loads,
    parse_timestamp,
    task_body,
    timestamp,
    with_expiry,
)
from tests.telemetry.strategies import bodies, headers

VALIDATOR = Draft202012Validator(load("message"))


@given(headers, bodies)
def test_a_decoded_message_equals_the_original_and_fits_the_schema(header: Header, body: Body) -> None:
    payload = loads(dumps(encode(header, body)))
    assert decode(payload) == (header, body)
    VALIDATOR.validate(payload)


@given(bodies.filter(lambda body: isinstance(body, TaskStateEvent)))
def test_the_body_of_a_task_is_that_of_its_event(body: TaskStateEvent) -> None:
    made = task_body(body.task_id, body.task_name, body.state, body.duration_ms, body.error, body.metadata)
    assert list(made.items()) == list(encode_body(body).items())


@given(headers, bodies)
def test_unknown_fields_are_ignored(header: Header, body: Body) -> None:
    payload: dict[str, Any] = encode(header, body) | {"new_in_1_1": 1}
    payload["body"]["also_new"] = [1]
    assert decode(payload) == (header, body)


def message(**changes: Any) -> dict[str, Any]:
    payload = encode(Header("r", "2026-01-01T00:00:00.000000Z", 0), TaskStateEvent("t", "task", "RUNNING"))
    body = payload["body"] | {key[5:]: value for key, value in changes.items() if key.startswith("body_")}
    return (
        payload | {k: v for k, v in changes.items() if not k.startswith("body_")} | {"body": changes.get("body", body)}
    )


@pytest.mark.parametrize(
    ("payload", "problem"),
    [
        ([], "must be an object"),
        (message(v="2.0"), "v='2.0'"),
        (message(body=5), "body must be an object"),
        (message(body_type="Nonsense"), "body.type='Nonsense'"),
        (message(seq="1"), "seq='1'"),
        (message(seq=True), "seq=True"),
        (message(run_id=None), "run_id=None"),
        (message(body_task_id=5), "body.task_id=5"),
        (message(body_metadata=[]), "body.metadata="),
        ({"v": "1.0", "body": {"type": "TaskStateEvent"}}, "is missing"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_invalid_message_is_refused_with_the_field(payload: Any, problem: str) -> None:
    with pytest.raises(ValueError, match=problem.replace(".", r"\.")):
        decode(payload)


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"\xff", b"[" * 100_000, b'"text"', b"NaN"])
def test_invalid_json_raises_a_value_error(data: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - the parser's own texts
        loads(data)


@given(st.integers(0, 4_000_000_000_000_000_000))
def test_a_parsed_timestamp_is_exact_to_the_microsecond(ns: int) -> None:
    assert parse_timestamp(timestamp(ns)) == ns // 1000 * 1000


def test_a_timestamp_has_exactly_one_form() -> None:
    assert timestamp(1_700_000_000_123_456_789) == "2023-11-14T22:13:20.123456Z"
    with pytest.raises(ValueError, match="no time zone"):
        parse_timestamp("2023-11-14T22:13:20")


def test_json_is_strict() -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        dumps({"x": float("nan")})
    assert json.loads(dumps({"x": "\ud800"})) == {"x": "\ud800"}


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"{", "not JSON"),
        (b"\xff{}", "not in UTF-8"),
        (b"[1]", "must be a JSON object, not list"),
        (b"{}", "an empty object"),
        (b'{"a": NaN}', "NaN is not a JSON number"),
        (b"[" * 16_000, "nested too deeply" if sys.version_info < (3, 14) else "not JSON"),
        (b" " * 20_000, "20,000 bytes, more than 16,384"),
    ],
)
def test_an_invalid_incoming_message_has_a_reason(data: bytes, why: str) -> None:
    found = decode_incoming(data)
    assert isinstance(found, InvalidPayload)
    assert why in found.reason
    assert found == {}


@given(st.binary(max_size=300))
def test_any_incoming_message_is_an_object_or_invalid(data: bytes) -> None:
    found = decode_incoming(data)
    assert (found == {}) is (data == b"" or isinstance(found, InvalidPayload))


PAUSE = {"type": "pause"}


@pytest.mark.parametrize(
    ("payload", "expected"),
    [
        (PAUSE, 1060.0),
        (PAUSE | {"expires_at": None}, 1060.0),
        (PAUSE | {"expires_at": 2000}, 1060.0),
        (PAUSE | {"expires_at": 1e11}, 1060.0),
        (PAUSE | {"expires_at": 1059.5}, 1059.5),
        (PAUSE | {"expires_at": 1060}, 1060.0),
        (PAUSE | {"expires_at": 0}, 0),
    ],
    ids=str,
)
def test_the_message_expiry_lowers_the_end_of_a_constraint(payload: dict[str, Any], expected: float) -> None:
    before = dict(payload)
    assert with_expiry(payload, 60, 1000.0) == before | {"expires_at": expected}
    assert payload == before


@pytest.mark.parametrize(
    "expires_at", [True, "1000", [], -1, 1_795_790_835_000, 1e12, float("inf"), float("nan"), 10**400]
)
def test_an_invalid_end_is_not_changed(expires_at: Any) -> None:
    payload = PAUSE | {"expires_at": expires_at}
    assert with_expiry(payload, 60, 1000.0) is payload


@pytest.mark.parametrize("data", [b"", b"nonsense", b"{}", b"[1]"])
def test_an_empty_or_invalid_payload_gets_no_end(data: bytes) -> None:
    payload = decode_incoming(data)
    assert with_expiry(payload, 60, 1000.0) is payload


def test_other_faults_are_not_changed() -> None:
    assert with_expiry({"type": 7, "else": 1}, 0, 1000.0) == {"type": 7, "else": 1, "expires_at": 1000.0}


def test_a_byte_order_mark_is_ignored() -> None:
    assert decode_incoming(b"\xef\xbb\xbf" + b'{"type": "pause"}') == PAUSE
    assert isinstance(decode_incoming('{"type": "pause"}'.encode("utf-16")), InvalidPayload)
