"""Control decisions as events of the span of the run, and constraints on the spans of tasks and waits."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest

import cascade as cs
from cascade.connectors.memory import MemoryConnector
from cascade.connectors.otel import OtelConnector
from cascade.telemetry.topics import control_topic
from cascade.testing import OtlpReceiver, ReceivedSpan
from tests.lab.waiting import until, with_timeout

ORDER = ["APPLIED", "REFUSED", "CLEARED"]


@cs.task
async def one() -> int:
    return 1


@pytest.fixture
def receiver() -> Iterator[OtlpReceiver]:
    with OtlpReceiver() as receiver:
        yield receiver


async def controlled_run(receiver: OtlpReceiver) -> dict[str, ReceivedSpan]:
    connector = MemoryConnector()
    topic = control_topic("local", "default", "global", "rate_limit")
    payload = {"id": "slow", "type": "rate_limit", "params": {"rate": "1/h", "burst": 2}}
    await connector.deliver(topic, payload, retain=True)
    await connector.deliver(control_topic("local", "default", "global", "pause"), b"{", retain=True)
    target: Any = cs.task(list, name="both")([one(), cs.task(lambda: 2, name="two")()])
    run = asyncio.create_task(
        cs.run_async(target, connector=[OtelConnector(receiver.http_endpoint), connector], log_level="ERROR")
    )
    await until(lambda: any(payload["body"].get("state") == "PENDING" for payload in connector.payloads))
    await connector.deliver(topic, b"", retain=True)
    await with_timeout(run)
    spans = receiver.wait_for(lambda spans: any(span.name == "run both" for span in spans))
    return {span.name: span for span in spans}


async def test_decisions_are_events_of_the_run(receiver: OtlpReceiver) -> None:
    run = (await controlled_run(receiver))["run both"]
    decisions = [event.attributes for event in run.events if event.name == "cascade.control"]
    applied, refused, cleared = sorted(decisions, key=lambda decision: ORDER.index(decision["cascade.control.action"]))
    assert applied == {
        "cascade.control.action": "APPLIED",
        "cascade.control.scope": "global",
        "cascade.control.type": "rate_limit",
        "cascade.control.id": "slow",
        "cascade.control.params": json.dumps({"rate": "1/h", "burst": 2.0}),
    }
    assert cleared == {**applied, "cascade.control.action": "CLEARED"}
    assert "not JSON" in str(refused["cascade.control.reason"])
    assert all(run.start_ns <= event.time_ns <= run.end_ns for event in run.events)
    assert run.attributes["cascade.run.control.decisions"] == 3


async def test_the_constraint_that_held_a_task_is_on_its_span_and_its_wait(receiver: OtlpReceiver) -> None:
    spans = await controlled_run(receiver)
    wait = spans["both wait"]
    assert wait.attributes["cascade.wait.reason"] == "rate_limit"
    assert wait.attributes["cascade.control.id"] == "slow"
    (held,) = spans["both"].events
    assert (held.name, held.time_ns) == ("cascade.control.held", spans["both"].start_ns)
    assert held.attributes == {
        "cascade.wait.reason": "rate_limit",
        "cascade.control.scope": "global",
        "cascade.control.type": "rate_limit",
        "cascade.control.id": "slow",
    }
    assert wait.end_ns <= spans["both"].start_ns
