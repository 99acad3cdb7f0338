"""Two clients with one id, and the network thread beside a busy event loop."""

import contextlib
import re
import socket
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest
from paho.mqtt.packettypes import PacketTypes

from cascade.connectors.mqtt import MqttConnector
from cascade.connectors.mqtt.options import ClientId
from cascade.connectors.mqtt.outbox import MESSAGE_BYTES
from cascade.connectors.mqtt.packets import TAKEN_OVER
from cascade.telemetry.topics import events_topic
from cascade.telemetry.wire import dumps
from tests.connectors.mqtt.broker import Broker, Listener, Message
from tests.connectors.mqtt.messages import numbers, telemetry, telemetry_of, warnings
from tests.connectors.mqtt.proxy import Packet, Proxy, received_by_client
from tests.connectors.mqtt.waiting import is_connected
from tests.lab.waiting import NEVER, until

UNIQUE = r"cascade-.+-[0-9a-f]{8}"
USER = "if the broker makes the user name 'etl' the client id, give each process a user of its own"
BOTH = "and each connection of one ends that of the other: give each a client id of its own"


@pytest.mark.parametrize("is_busy", [False, True])
@pytest.mark.parametrize("client_id", [None, "worker"])
async def test_clients_with_their_user_name_as_id_warn_once(
    client_id: str | None, is_busy: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    topics = [events_topic("local", "default", run) for run in ("first", "second")]
    with (
        Broker(tmp_path, "use_username_as_clientid true") as broker,
        Listener(broker.port, "cascade/telemetry/#", username="watcher") as seen,
    ):
        connectors = [MqttConnector("127.0.0.1", broker.port, username="etl", client_id=client_id) for _ in topics]
        for connector in connectors:
            await connector.connect()
        count = 0

        async def publish() -> None:
            nonlocal count
            for connector, topic in zip(connectors, topics, strict=True):
                await connector.publish(topic, telemetry(count), 1)
            count += 1

        def is_settled() -> bool:
            return len(warnings(caplog)) == 2

        await publish()
        while not is_settled():
            if is_busy:
                await publish()
            await until(lambda: is_settled() or any(one.report().queued == 0 for one in connectors))
        await publish()
        for connector in connectors:
            await connector.disconnect()
        messages = seen.wait_for(lambda messages: all(len(_of(messages, topic)) >= count for topic in topics))
    for topic in topics:
        assert sorted(_of(messages, topic)) == list(range(count))
    assert [connector.report().lost for connector in connectors] == [0, 0]
    # Only some versions of Mosquitto send the reason.
    given = rf"MqttConnector: another client (?:has|seems to have) the id 'worker': continuing as 'worker-[0-9a-f]{{8}}'; {USER}"
    made_up = rf"MqttConnector: another client (?:has|seems to have) the id '{UNIQUE}', {BOTH}; {USER}"
    assert all(re.fullmatch(given if client_id else made_up, warning) for warning in warnings(caplog))


def _of(messages: list[Message], topic: str) -> set[int]:
    return {*numbers([message for message in messages if message.topic == topic])}


async def test_the_reason_code_session_taken_over_counts_at_once(
    shared_broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    def rule(packet: Packet) -> Iterable[Packet]:
        if not received_by_client(PacketTypes.CONNACK)(packet) or packet.connection > 4:
            return (packet,)
        return (packet, Packet(PacketTypes.DISCONNECT, bytes([TAKEN_OVER, 0]), 0, True, packet.connection))

    with Proxy(shared_broker.port, rule) as proxy:
        connector = MqttConnector("127.0.0.1", proxy.port)
        await connector.connect()
        await until(lambda: proxy.matching(lambda packet: packet.connection == 5))
        await connector.disconnect()
    (warning,) = warnings(caplog)
    user = "if the broker makes the user name the client id, give each process a user of its own"
    assert re.fullmatch(rf"MqttConnector: another client has the id '{UNIQUE}', {BOTH}; {user}", warning)


@pytest.mark.usefixtures("real_limits")
def test_delays_grow_until_a_long_connection() -> None:
    client_id = ClientId(None, "etl")
    pauses = []
    for _ in range(14):
        client_id.record_end(0, 1.0)
        pauses.append(client_id.pause)
    bounds = [0, 0, 0, 0, 0, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5, 5, 5]
    assert all(most / 2 <= pause <= most for pause, most in zip(pauses, bounds, strict=True))
    assert client_id.is_duplicate
    client_id.record_end(0, 5.0)
    assert client_id.pause > 0, "the other client has the same delays"
    client_id.record_end(0, 60.0)
    assert (client_id.pause, client_id.is_duplicate) == (0, False)


@pytest.mark.usefixtures("real_limits")
@pytest.mark.parametrize(
    "explain",
    [
        lambda client_id: client_id.record_end(0, None),
        lambda client_id: client_id.record_end(0, 0.1, is_explained=True),
        lambda client_id: client_id.record_end(0, NEVER),
    ],
    ids=["the broker is away", "a message is the reason", "a long connection"],
)
def test_early_ends_with_a_known_cause_are_ignored(explain: Callable[[ClientId], str]) -> None:
    client_id = ClientId("worker", None)
    for _ in range(5):
        assert [client_id.record_end(0, 0.1) for _ in range(4)] == [""] * 4
        assert explain(client_id) == ""
    assert client_id.value == "worker"


def test_a_generated_id_is_a_duplicate_only_by_reason_code() -> None:
    client_id = ClientId(None, None)
    assert [client_id.record_end(0, 0.1) for _ in range(20)] == [""] * 20
    assert (client_id.pause, client_id.is_duplicate) == (0, False)
    assert "another client has the id" in client_id.record_end(TAKEN_OVER, 0.1)


def test_other_reason_codes_are_ignored() -> None:
    client_id = ClientId("worker", None)
    assert [client_id.record_end(0x97, 0.1) for _ in range(20)] == [""] * 20
    assert (client_id.value, client_id.pause) == ("worker", 0)


async def test_session_taken_over_right_after_connack_is_reported(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The client reads CONNACK and DISCONNECT together, and never reports the connection."""
    connack, taken_over = b"\x20\x03\x00\x00\x00", bytes([0xE0, 2, TAKEN_OVER, 0])

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = server.accept()
                with connection:
                    connection.recv(4096)
                    connection.sendall(connack + taken_over)

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=serve, daemon=True).start()
        connector = MqttConnector("127.0.0.1", server.getsockname()[1], flush_timeout=0.1)
        await connector.connect()
        await until(lambda: len(warnings(caplog)) > 0)
        await connector.disconnect()
        server.shutdown(socket.SHUT_RDWR)
    assert "another client has the id" in warnings(caplog)[0]


async def test_a_loop_that_only_publishes_lets_the_network_thread_send(
    shared_broker: Broker, listener: Listener, project: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cascade.connectors.mqtt.session.MAX_ITERATION", 0)
    topic, count = events_topic("local", project, "run"), 1_000
    buffer = count // 2 * (MESSAGE_BYTES + len(dumps(telemetry())))
    connector = MqttConnector("127.0.0.1", shared_broker.port, strict=True, on_full="drop", max_buffer_bytes=buffer)
    await connector.connect()
    await connector.publish(topic, telemetry(), 1)
    listener.wait_for(telemetry_of)
    with threads_never_switched():
        for number in range(count):
            await connector.publish(topic, telemetry(number))
    await connector.disconnect()  # raises TelemetryLostError if the buffer was full


async def test_a_publishing_thread_never_waits_for_a_network_thread_without_a_connection(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    connector = MqttConnector("127.0.0.1", broker.port, flush_timeout=0.01)
    await connector.connect()
    await until(lambda: is_connected(connector))
    broker.kill()
    await until(lambda: not is_connected(connector))
    monkeypatch.setattr("cascade.connectors.mqtt.session.MAX_ITERATION", -1)
    monkeypatch.setattr("cascade.connectors.mqtt.session.LOCK_RELEASE", -1)  # an invalid argument of `time.sleep`
    for number in range(3):
        await connector.publish(events_topic("local", "default", "run"), telemetry(number))
    await connector.disconnect()


@contextlib.contextmanager
def threads_never_switched() -> Iterator[None]:
    """Disable the forced release of the interpreter's lock (GIL)."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(NEVER)
    try:
        yield
    finally:
        sys.setswitchinterval(interval)
