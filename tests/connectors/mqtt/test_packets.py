"""What travels is what paho would have packed."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from cascade.connectors.mqtt.packets import (
    PROPERTIES_BYTES,
    new_properties,
    packet_bytes,
    publish_properties,
    traceparent,
    tracestate,
)
from tests.connectors.mqtt.messages import SPAN, TRACE, telemetry

HEX = st.text("0123456789abcdef", min_size=1)


def unpacked(properties: Properties) -> dict[str, object]:
    found: dict[str, object] = new_properties(PacketTypes.PUBLISH).unpack(packed(properties))[0].json()  # type: ignore[no-untyped-call]
    return found


def packed(properties: Properties) -> bytes:
    form: bytes = properties.pack()  # type: ignore[no-untyped-call]
    return form


@given(st.integers(0, 2**128 - 1), st.integers(0, 2**64 - 1), st.integers(0, 255))
def test_it_is_byte_for_byte_what_paho_packs(trace: int, span: int, flags: int) -> None:
    payload = {"trace_id": f"{trace:032x}", "span_id": f"{span:016x}", "trace_flags": flags}
    text = f"00-{trace:032x}-{span:016x}-{flags:02x}"
    theirs = new_properties(PacketTypes.PUBLISH, ContentType="application/json", UserProperty=("traceparent", text))
    ours = publish_properties(traceparent(payload)).pack()
    assert ours == packed(theirs)
    assert len(ours) == PROPERTIES_BYTES


@given(
    st.sampled_from(
        ["a=1", "acme=t61rcWkgMzE,ot=th:c", "k=" + "0" * 200, ",".join(f"k{n}={'v' * 250}" for n in range(32))]
    )
)
def test_a_tracestate_is_packed_beside_the_traceparent(state: str) -> None:
    payload = telemetry() | {"tracestate": state}
    pairs = [("traceparent", f"00-{TRACE}-{SPAN}-01"), ("tracestate", state)]
    theirs = new_properties(PacketTypes.PUBLISH, ContentType="application/json", UserProperty=pairs)
    ours = publish_properties(traceparent(payload), tracestate(payload)).pack()
    assert ours == packed(theirs)
    assert packet_bytes("t", 0, state) >= 1 + 4 + 2 + 1 + 2 + len(ours)


@pytest.mark.parametrize("state", [None, "", "nonsense", "a=1\n", 7])
def test_a_tracestate_that_is_none_is_not_packed(state: object) -> None:
    assert tracestate(telemetry() | {"tracestate": state}) == ""
    assert publish_properties(b"", "a=1").pack() == publish_properties(b"").pack()


def test_without_a_trace_only_the_content_type_is_told() -> None:
    assert unpacked(publish_properties(b"")) == {"ContentType": "application/json"}


def test_the_traceparent_is_w3cs() -> None:
    assert traceparent(telemetry()) == f"00-{TRACE}-{SPAN}-01".encode()


@given(
    st.dictionaries(st.sampled_from(["trace_id", "span_id", "trace_flags"]), st.one_of(st.text(), st.integers(), HEX))
)
def test_a_payload_that_does_not_say_or_says_nonsense_has_none(payload: dict[str, object]) -> None:
    found = traceparent(payload)
    assert found == b"" or len(found) == 55
    assert "ContentType" in unpacked(publish_properties(found if found.isascii() else b""))


def test_they_can_be_shown_as_paho_does_when_it_logs() -> None:
    assert str(publish_properties(b"")) == "[]"


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), st.integers(0, 300_000))
def test_the_size_of_a_packet_is_never_too_small(topic: str, size: int) -> None:
    body = json.dumps("x" * size).encode()
    real = 1 + 4 + 2 + len(topic.encode()) + 2 + len(publish_properties(traceparent(telemetry())).pack()) + len(body)
    assert packet_bytes(topic, len(body)) >= real
