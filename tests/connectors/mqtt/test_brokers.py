"""Whole runs over Mosquitto, Mochi and Aedes."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from paho.mqtt.packettypes import PacketTypes

import cascade as cs
from cascade.connectors.mqtt import MqttConnector
from cascade.telemetry.state_schedule import FINAL_EXPIRY
from cascade.telemetry.topics import control_topic
from tests.connectors.mqtt import test_connector
from tests.connectors.mqtt.broker import SETTINGS, Broker, Listener, Message
from tests.connectors.mqtt.messages import events, numbers, statuses, warnings
from tests.connectors.mqtt.other_brokers import Aedes, BrokerProcess, Mochi
from tests.connectors.mqtt.proxy import Packet, Proxy, Rule
from tests.lab.time_limits import subprocess_environment

ITEMS = 200
PAUSE = control_topic("local", "default", "global", "pause")
AnyBroker = Broker | BrokerProcess
BROKERS: dict[str, Callable[[Path], AbstractContextManager[AnyBroker]]] = {
    "mosquitto": lambda folder: Broker(folder, *SETTINGS),
    "mochi": Mochi,
    "aedes": Aedes,
}


@pytest.fixture(params=BROKERS)
def any_broker(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[AnyBroker]:
    with BROKERS[request.param](tmp_path) as broker:
        yield broker


@cs.task
async def double(x: int) -> int:
    return 2 * x


@cs.task
async def total(numbers: list[int]) -> int:
    return sum(numbers)


def run(port: int) -> None:
    target = double.map(x=list(range(ITEMS)))
    assert cs.run(target, connector=MqttConnector("127.0.0.1", port), log_level="ERROR") == [
        2 * x for x in range(ITEMS)
    ]


def test_a_late_subscriber_receives_the_final_state(any_broker: AnyBroker) -> None:
    run(any_broker.port)
    with Listener(any_broker.port, "cascade/telemetry/+/+/+/state") as late:
        (message,) = late.wait_for(lambda seen: seen)
    state = json.loads(message.payload)
    assert (message.retain, state["status"], state["counts"]["completed"]) == (True, "success", ITEMS + 1)
    assert 0 < message.properties.MessageExpiryInterval <= FINAL_EXPIRY  # type: ignore[union-attr]  # pyright: ignore[reportOptionalMemberAccess, reportAttributeAccessIssue]


def has_left(messages: list[Message]) -> bool:
    return (b"", True) in statuses(messages)


def states(messages: list[Message], state: str) -> list[dict[str, Any]]:
    """The metadata of the messages with this state of a task."""
    return [payload["body"]["metadata"] for payload in events(messages) if payload["body"].get("state") == state]


def test_all_messages_of_a_run_arrive(any_broker: AnyBroker, caplog: pytest.LogCaptureFixture) -> None:
    with Listener(any_broker.port) as listener:
        run(any_broker.port)
        messages = listener.wait_for(has_left)
    assert sorted(numbers(messages)) == list(range(2 * ITEMS + 4))
    assert statuses(messages) == [(b"online", True), (b"offline", False), (b"", True)]
    assert warnings(caplog) == []


def test_a_retained_pause_holds_each_task_until_it_is_cleared(
    any_broker: AnyBroker, caplog: pytest.LogCaptureFixture
) -> None:
    target = total([double(x) for x in range(20)])
    with Listener(any_broker.port) as listener, ThreadPoolExecutor() as threads:
        listener.publish(PAUSE, json.dumps({"type": "pause"}), retain=True)
        connector = MqttConnector("127.0.0.1", any_broker.port)
        result = threads.submit(cs.run, target, connector=connector, log_level="ERROR")
        try:
            waiting = listener.wait_for(lambda seen: len(states(seen, "PENDING")) == 20)
        finally:
            listener.publish(PAUSE, b"", retain=True)
        assert result.result() == 380
        messages = listener.wait_for(has_left)
    assert {metadata["reason"] for metadata in states(waiting, "PENDING")} == {"paused"}
    assert states(waiting, "RUNNING") == []
    assert len(states(messages, "COMPLETED")) == 21
    assert warnings(caplog) == []


def test_no_terminal_message_is_lost_by_a_restart_of_the_broker(
    any_broker: AnyBroker, caplog: pytest.LogCaptureFixture
) -> None:
    connector = MqttConnector("127.0.0.1", any_broker.port)

    @cs.task
    def restart(x: int) -> int:
        any_broker.restart()
        return x

    target = double.map(x=[restart(double(1)), *range(ITEMS)])
    assert len(cs.run(target, connector=connector, log_level="ERROR")) == ITEMS + 1
    assert (connector.report().lost, connector.report().queued) == (0, 0)
    assert warnings(caplog) == []


KILLED = """
import asyncio, sys
from cascade.connectors.mqtt import MqttConnector

async def main():
    await MqttConnector("127.0.0.1", int(sys.argv[1])).connect()
    await asyncio.sleep(3600)

asyncio.run(main())
"""


def test_the_last_will_of_a_process_that_is_killed_stays_retained(any_broker: AnyBroker) -> None:
    with Listener(any_broker.port) as listener:
        process = subprocess.Popen([sys.executable, "-c", KILLED, str(any_broker.port)], env=subprocess_environment())
        try:
            listener.wait_for(len)
        finally:
            process.kill()
            process.wait()
        (_, offline) = listener.wait_for(lambda seen: len(seen) == 2)
    with Listener(any_broker.port) as later:
        (left,) = later.wait_for(len)
    assert (left.topic, left.payload, left.retain) == (offline.topic, b"offline", True)


def refuse_mqtt_5(packet: Packet) -> Iterable[Packet]:
    """Answers CONNECT like a broker with MQTT 5 disabled."""
    answer = Packet(PacketTypes.CONNACK, bytes([0, 0x84, 0]), from_broker=True, connection=packet.connection)
    return (answer if packet.kind == PacketTypes.CONNECT else packet,)


@pytest.mark.parametrize("rules", [(), (refuse_mqtt_5,)], ids=["3.1.1", "5"])
def test_a_broker_without_mqtt_5_is_reported_once(
    rules: tuple[Rule, ...], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with Aedes(tmp_path, version=3) as broker, Proxy(broker.port, *rules) as proxy:
        run(proxy.port)
    (warning,) = warnings(caplog)
    assert f"{2 * ITEMS + 4} of {2 * ITEMS + 4} messages were lost at 127.0.0.1:{proxy.port}" in warning
    assert "does not support MQTT 5" in warning


class TestMqttConnectorOverMochi(test_connector.TestMqttConnector):
    @pytest.fixture(autouse=True)
    def _other_side(self, tmp_path: Path, project: str) -> Iterator[None]:
        with Mochi(tmp_path) as broker, Listener(broker.port, f"cascade/+/local/{project}/#") as self.listener:
            self.port = broker.port
            yield
