"""Packets and properties equal those that paho encodes."""

import json
from dataclasses import replace
from io import BytesIO
from typing import Any

import paho.mqtt.client as paho
import pytest
from hypothesis import given
from hypothesis import strategies as st
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from cascade.connectors.mqtt.packets import (
    MAX_ALIASES,
    MAX_MISSES,
    TopicAliases,
    new_properties,
    packet_bytes,
    publish_packet,
    publish_properties,
    traceparent,
    tracestate,
)
from tests.connectors.mqtt.messages import SPAN, TRACE, telemetry
from tests.connectors.mqtt.proxy import Packet

HEX = st.text("0123456789abcdef", min_size=1)


ALIASES = st.integers(0, 65_535)


def unpacked(properties: bytes) -> dict[str, object]:
    found: dict[str, object] = new_properties(PacketTypes.PUBLISH).unpack(properties)[0].json()  # type: ignore[no-untyped-call]
    return found


def paho_properties(alias: int = 0, **values: object) -> bytes:
    """Return the properties of a message as paho packs them."""
    if alias:
        values["TopicAlias"] = alias
    return packed(new_properties(PacketTypes.PUBLISH, ContentType="application/json", **values))


def packed(properties: Properties) -> bytes:
    form: bytes = properties.pack()  # type: ignore[no-untyped-call]
    return form


@given(st.integers(0, 2**128 - 1), st.integers(0, 2**64 - 1), st.integers(0, 255), ALIASES)
def test_properties_equal_those_of_paho(trace: int, span: int, flags: int, alias: int) -> None:
    payload = {"trace_id": f"{trace:032x}", "span_id": f"{span:016x}", "trace_flags": flags}
    text = f"00-{trace:032x}-{span:016x}-{flags:02x}"
    actual = publish_properties(traceparent(payload), alias=alias)
    assert actual == paho_properties(alias, UserProperty=("traceparent", text))
    assert publish_properties(b"", alias=alias) == paho_properties(alias)


@given(
    st.sampled_from(
        ["a=1", "acme=t61rcWkgMzE,ot=th:c", "k=" + "0" * 200, ",".join(f"k{n}={'v' * 250}" for n in range(32))]
    ),
    ALIASES,
)
def test_properties_have_the_tracestate(state: str, alias: int) -> None:
    payload = telemetry() | {"tracestate": state}
    pairs = [("traceparent", f"00-{TRACE}-{SPAN}-01"), ("tracestate", state)]
    actual = publish_properties(traceparent(payload), tracestate(payload), alias)
    assert actual == paho_properties(alias, UserProperty=pairs)


@pytest.mark.parametrize("state", [None, "", "nonsense", "a=1\n", 7])
def test_an_invalid_tracestate_is_omitted(state: object) -> None:
    assert tracestate(telemetry() | {"tracestate": state}) == ""
    assert publish_properties(b"", "a=1") == publish_properties(b"")


def test_without_a_trace_there_is_only_the_content_type() -> None:
    assert unpacked(publish_properties(b"")) == {"ContentType": "application/json"}


def test_the_traceparent_follows_w3c_trace_context() -> None:
    assert traceparent(telemetry()) == f"00-{TRACE}-{SPAN}-01".encode()


@given(
    st.dictionaries(st.sampled_from(["trace_id", "span_id", "trace_flags"]), st.one_of(st.text(), st.integers(), HEX))
)
def test_a_payload_without_valid_ids_has_no_traceparent(payload: dict[str, object]) -> None:
    found = traceparent(payload)
    assert found == b"" or len(found) == 55
    assert "ContentType" in unpacked(publish_properties(found if found.isascii() else b""))


@given(
    st.text(st.characters(exclude_categories=["Cs"])),
    st.sampled_from([0, 1, 40, 110, 130, 16_200, 16_400, 2_100_000]),
    st.integers(0, 65_535),
    st.booleans(),
)
def test_a_packet_equals_that_of_paho(topic: str, size: int, packet_id: int, retain: bool) -> None:
    actual = publish_packet(topic, b"x" * size, paho_properties(), packet_id, retain=retain)
    client: Any = paho.Client(CallbackAPIVersion.VERSION2, protocol=MQTTProtocolVersion.MQTTv5)
    sent = list[bytes]()
    client._sock, client._packet_queue = BytesIO(), lambda _, packet, *__: sent.append(bytes(packet))
    properties = new_properties(PacketTypes.PUBLISH, ContentType="application/json")
    client._send_publish(packet_id, topic.encode(), b"x" * size, int(packet_id > 0), retain, False, None, properties)
    assert sent == [actual]


@given(st.text(st.characters(exclude_categories=["Cs"])), st.integers(0, 300_000), ALIASES)
def test_the_size_of_a_packet_is_never_too_small(topic: str, size: int, alias: int) -> None:
    properties = publish_properties(traceparent(telemetry()), alias=alias)
    real = Packet(PacketTypes.PUBLISH, len(topic.encode()).to_bytes(2) + topic.encode() + bytes(2) + properties)
    body = json.dumps("x" * size).encode()
    whole = len(replace(real, body=real.body + body).encoded)
    assert whole <= packet_bytes(topic, len(properties) + len(body)) <= whole + 3


@given(st.integers(0, 5), st.lists(st.integers(0, 8), max_size=100))
def test_an_alias_has_the_topic_that_it_was_sent_with(maximum: int, topics: list[int]) -> None:
    aliases, broker = TopicAliases(maximum), dict[int, str]()
    for topic in map(str, topics):
        sent, alias = aliases.find(topic)
        assert 0 <= alias <= maximum
        assert sent or alias
        if sent and alias:
            aliases.add(sent, alias)
            broker[alias] = sent
        assert (sent or broker[alias]) == topic


def test_a_packet_that_is_not_sent_uses_no_alias() -> None:
    aliases = TopicAliases(2)
    assert [aliases.find("a"), aliases.find("a"), aliases.find("b")] == [("a", 1), ("a", 1), ("b", 1)]


def test_the_topics_of_later_runs_replace_those_of_earlier_ones() -> None:
    aliases = TopicAliases(65_535)
    for number in range(3 * MAX_ALIASES):
        for _ in range(MAX_MISSES):
            topic, alias = aliases.find(f"run-{number}")
            if topic and alias:
                aliases.add(topic, alias)
    assert aliases.find(f"run-{2 * MAX_ALIASES}") == ("", 1)
    assert aliases.find("run-0") == ("run-0", 0)


def test_alternating_topics_seldom_replace_each_other() -> None:
    aliases, without_topic = TopicAliases(3), 0
    for number in range(700):
        topic, alias = aliases.find(f"run-{number % 7}")
        if topic and alias:
            aliases.add(topic, alias)
        without_topic += not topic
    assert 250 < without_topic < 300
