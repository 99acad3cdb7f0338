"""OTLP and MQTT together: one run has the same ids and times on both."""

from typing import Any

import pytest

import cascade as cs
from cascade.connectors.mqtt import MqttConnector
from cascade.connectors.otel import OtelConnector
from cascade.testing import OtlpReceiver, ReceivedSpan
from tests.connectors.mqtt.broker import Broker, Listener
from tests.connectors.mqtt.messages import events


@cs.task
def load() -> list[int]:
    return [1, 2, 3]


@cs.task
async def double(x: int) -> int:
    if x == 2 and not calls:
        calls.append(x)
        raise ConnectionError("once")
    return 2 * x


calls: list[int] = []


@pytest.mark.parametrize("order", ["otel first", "mqtt first"])
def test_ids_and_durations_agree(shared_broker: Broker, listener: Listener, order: str) -> None:
    calls.clear()
    with OtlpReceiver() as receiver:
        connectors: list[Any] = [OtelConnector(receiver.http_endpoint), MqttConnector("127.0.0.1", shared_broker.port)]
        target = double.map(x=load()).with_retry(1)
        cs.run(target, connector=connectors if order == "otel first" else connectors[::-1], log_level="ERROR")
        spans = receiver.wait_for(lambda spans: any(span.name.startswith("run ") for span in spans))
    messages = events(listener.wait_for(lambda seen: b"ENGINE_STOPPED" in b"".join(m.payload for m in seen)))
    by_id = {(span.trace_id, span.span_id): span for span in spans}
    ended = [m for m in messages if m["body"].get("state") == "COMPLETED" or m["body"].get("event") == "ENGINE_STOPPED"]
    assert len(ended) == 6
    for message in ended:
        _check_same_span(message, by_id[message["trace_id"], message["span_id"]])
    (retried,) = [m["body"]["metadata"] for m in ended if len(m["body"]["metadata"].get("attempts", ())) == 2]
    trace_id = messages[0]["trace_id"]
    assert all((trace_id, attempt["span_id"]) in by_id for attempt in retried["attempts"])


def _check_same_span(message: dict[str, Any], span: ReceivedSpan) -> None:
    body = message["body"]
    assert span.name in {body.get("task_name"), f"run {body['metadata'].get('target')}"}
    assert (span.parent_span_id or "") == message["parent_span_id"]
    assert (span.start_ns, span.end_ns) == (body["metadata"]["start_ns"], body["metadata"]["end_ns"])
    assert (span.end_ns - span.start_ns) / 1e6 == pytest.approx(body["duration_ms"])
    assert [(link.trace_id, link.span_id) for link in span.links] == [
        (link["trace_id"], link["span_id"]) for link in body["metadata"].get("links", ())
    ]
