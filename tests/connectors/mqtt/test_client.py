"""The aiomqtt client of a connection, where it differs from aiomqtt and paho."""

import asyncio
import contextlib
import gc
import inspect
import itertools
import logging
import math
import select
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import aiomqtt
import pytest
from blockbuster import blockbuster_ctx
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.subscribeoptions import SubscribeOptions

import cascade as cs
from cascade.connectors.mqtt import MqttConnector, transport
from cascade.connectors.mqtt.client import Client
from cascade.connectors.mqtt.options import MqttOptions
from cascade.connectors.mqtt.outbox import Outbox, OutgoingMessage
from cascade.connectors.mqtt.packets import BrokerLimits, IncomingMessage, new_properties, publish_properties
from cascade.connectors.mqtt.subscriber import Barrier
from cascade.connectors.mqtt.transport import NetworkLoop
from tests.connectors.mqtt.broker import Broker, Listener
from tests.connectors.mqtt.messages import numbers, statuses, telemetry, warnings
from tests.connectors.mqtt.proxy import Packet, Proxy, received_by_client, sent_by_client
from tests.lab import time_limits
from tests.lab.waiting import HANG, until, until_blocking

TOPIC = "cascade/telemetry/local/default/run/events"
CONTROL = "cascade/control/local/default/constraints/#"
PAUSE = "cascade/control/local/default/constraints/global/pause"
CONNACK, DISCONNECT, PINGRESP = bytes.fromhex("2003000000"), bytes.fromhex("e0018b"), bytes.fromhex("d000")
NORMAL_DISCONNECT = bytes.fromhex("e000")


@cs.task
async def double(x: int) -> int:
    return 2 * x


def new_client(port: int, ca_certificate: Path | None = None) -> Client:
    options = MqttOptions("127.0.0.1" if ca_certificate is None else "localhost", port, ca_certificate=ca_certificate)
    return Client(options, "client", "cascade/status/local/default/client", "session", BrokerLimits(print), print)


def run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    with asyncio.Runner(loop_factory=NetworkLoop) as runner:
        runner.run(main())


def test_aiomqtt_has_the_methods_that_are_overridden() -> None:
    """Private methods, which a version of aiomqtt may rename."""
    overridden = [name for name in vars(Client) if name.startswith("_on_") or name == "_wait_for"]
    assert len(overridden) == 9
    for name in overridden:
        expected, actual = (list(inspect.signature(getattr(one, name)).parameters) for one in (aiomqtt.Client, Client))
        assert actual == expected


def test_after_an_exception_the_broker_publishes_the_will(broker: Broker) -> None:
    async def fail() -> None:
        async with new_client(broker.port):
            raise LookupError("the caller's own")

    with Listener(broker.port, "cascade/status/#") as listener:
        with pytest.raises(LookupError):
            run(fail)
        assert listener.wait_for(len)[0].payload == b"offline"


def test_a_clean_exit_does_not_reset_the_connection_before_disconnect_is_read(broker: Broker) -> None:
    """A system resets a connection that receives something after it was closed. The receiver then loses unread bytes."""
    accepted: list[bool] = []

    def forward(server: socket.socket) -> None:
        downward, _ = server.accept()
        with downward, socket.create_connection(("127.0.0.1", broker.port)) as upward:
            other = {downward: upward, upward: downward}
            data = b"-"
            while data and not accepted:
                for source in select.select(list(other), [], [])[0]:
                    data = source.recv(65_536)
                    if source is downward and data.endswith(NORMAL_DISCONNECT):
                        accepted.extend(sends_after_the_end(downward) for _ in range(2))
                    other[source].sendall(data)

    def sends_after_the_end(to_client: socket.socket) -> bool:
        with contextlib.suppress(OSError):
            while to_client.recv(65_536):
                pass
            to_client.sendall(PINGRESP)
            return True
        return False

    async def leave(port: int) -> None:
        async with new_client(port) as connected:
            await connected.publish("cascade/x", b"x", 1)

    with socket.create_server(("127.0.0.1", 0)) as server, ThreadPoolExecutor() as threads:
        forwarding = threads.submit(forward, server)
        run(partial(leave, server.getsockname()[1]))
        forwarding.result()
    assert accepted == [True, True]


def test_after_a_clean_exit_the_broker_publishes_no_will(broker: Broker) -> None:
    async def leave() -> None:
        async with new_client(broker.port) as connected:
            await connected.publish("cascade/status/last", b"bye", 1)

    with Listener(broker.port, "cascade/status/#") as listener:
        run(leave)
        until_blocking(lambda: "client disconnected" in broker.log)
        listener.publish("cascade/status/mark", b"mark")
        assert [m.payload for m in listener.wait_for(lambda seen: seen[-1:] and seen[-1].payload == b"mark")] == [
            b"bye",
            b"mark",
        ]


async def test_an_unexpected_error_ends_the_connection_without_disconnect(
    broker: Broker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It connects again, and the messages arrive. A warning has the traceback."""
    take, failed = Outbox.take, threading.Event()

    def fail_once(outbox: Outbox, *arguments: int) -> list[OutgoingMessage]:
        if outbox.is_waiting and not failed.is_set():
            failed.set()
            raise LookupError("a fault of ours")
        return take(outbox, *arguments)

    monkeypatch.setattr(Outbox, "take", fail_once)
    connector = MqttConnector("127.0.0.1", broker.port)
    with Listener(broker.port) as listener:
        await connector.connect()
        await asyncio.to_thread(listener.wait_for, len)
        await connector.publish(TOPIC, telemetry(), 1)
        await connector.disconnect()
        seen = listener.wait_for(lambda seen: (b"", True) in statuses(seen))
    assert statuses(seen)[:3] == [(b"online", True), (b"offline", True), (b"online", True)]
    assert [message.topic for message in seen if not message.topic.startswith("cascade/status/")] == [TOPIC]
    (warning,) = warnings(caplog)
    assert warning.startswith("MqttConnector: unexpected error in the connector: Traceback (most recent call last):")
    assert "LookupError: a fault of ours" in warning


async def test_an_unexpected_error_of_a_subscription_loses_no_message(
    broker: Broker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The logger that masks secrets reports it, and not that of asyncio."""

    def fail(*_: Any) -> None:
        raise LookupError("a fault of ours")

    monkeypatch.setattr(Barrier, "record_answers", fail)
    connector = MqttConnector("127.0.0.1", broker.port)
    await connector.connect()
    await until(lambda: warnings(caplog))
    await connector.publish(TOPIC, telemetry(), 1)
    await connector.disconnect()
    assert (connector.report().sent, connector.report().lost) == (1, 0)
    (warning,) = warnings(caplog)
    assert warning.startswith("MqttConnector: unexpected error in the connector: Traceback (most recent call last):")
    assert not [record for record in caplog.records if record.name == "asyncio" and record.levelno >= logging.ERROR]


async def test_an_error_while_a_batch_is_sent_loses_no_message_of_the_batch(
    broker: Broker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    send, failed = Client.send, threading.Event()

    def fail_once(client: Client, topic: str, body: bytes, *arguments: Any, **options: Any) -> int:
        if b'"seq":5' in body and not failed.is_set():
            failed.set()
            raise LookupError("a fault of ours")
        return send(client, topic, body, *arguments, **options)

    monkeypatch.setattr(Client, "send", fail_once)
    connector = MqttConnector("127.0.0.1", broker.port)
    with Listener(broker.port, TOPIC) as listener:
        await connector.connect()
        for number in range(10):
            await connector.publish(TOPIC, telemetry(number), number % 2)
        await connector.disconnect()
        seen = listener.wait_for(lambda seen: set(numbers(seen)) == set(range(10)))
    assert failed.is_set()
    assert (connector.report().sent, connector.report().lost) == (10, 0)
    assert set(numbers(seen)) == set(range(10))
    (warning,) = warnings(caplog)
    assert "LookupError: a fault of ours" in warning


@pytest.mark.parametrize("call", ["publish", "subscribe", "unsubscribe"])
def test_a_pending_call_ends_with_the_connection(broker: Broker, call: str) -> None:
    """aiomqtt waits for the answer until its own timeout, which is out of reach here."""

    async def wait() -> None:
        async with new_client(broker.port) as connected:
            broker.freeze()
            pending = asyncio.ensure_future(getattr(connected, call)("cascade/x", timeout=math.inf, **options))
            await asyncio.sleep(0)
            broker.kill()
            with pytest.raises(aiomqtt.MqttError, match="the connection was lost"):
                await pending

    options: dict[str, Any] = {"qos": 1} if call == "publish" else {}
    run(wait)


def test_a_connection_closed_before_connack_fails_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def close_at_once() -> None:
            connection, _ = server.accept()
            connection.close()

        closing = threading.Thread(target=close_at_once)
        closing.start()

        async def connect() -> None:
            async with new_client(server.getsockname()[1]):
                pass

        with pytest.raises(aiomqtt.MqttError):
            run(connect)
        closing.join()


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (CONNACK + DISCONNECT, "Server shutting down"),
        (CONNACK + DISCONNECT + 100 * PINGRESP, "Server shutting down"),
        (CONNACK + bytes.fromhex("400100") + 100 * PINGRESP, "Protocol error"),
        (bytes.fromhex("2003008700") + 100 * PINGRESP, "Not authorized"),
    ],
    ids=["disconnect", "bytes after disconnect", "bytes after a malformed packet", "bytes after a refusal"],
)
def test_a_connection_that_ends_with_connack_is_cleaned_up(
    answer: bytes, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No further reads are scheduled, and asyncio logs no exception."""
    reads, logged = Counter[str](), list[Any]()

    def counted_read(loop_read: Callable[[], object]) -> object:
        reads["read"] += 1
        return loop_read()

    async def connect() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: logged.append(context))
        one = new_client(server.getsockname()[1])
        monkeypatch.setattr(one._client, "loop_read", partial(counted_read, one._client.loop_read))
        with pytest.raises(aiomqtt.MqttError):
            await one.__aenter__()
        assert one.reason == reason
        for _ in range(2):  # a scheduled callback finds nothing to read
            await asyncio.sleep(0)
        before = reads["read"]
        for _ in range(10):
            await asyncio.sleep(0)
        assert reads["read"] == before

    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer_once() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(1)
                connection.sendall(answer)
                while connection.recv(1_000):
                    pass

        answering = threading.Thread(target=answer_once)
        answering.start()
        run(connect)
        answering.join()
    gc.collect()
    assert logged == []


def test_an_unacknowledged_packet_id_is_not_reused(broker: Broker) -> None:
    """There are 65,535 of them. paho does not send a message with the id of another one."""

    async def send() -> None:
        async with new_client(broker.port) as connected:
            acknowledged, both = list[int](), asyncio.Event()

            def record(packet_id: int, _: object) -> None:
                acknowledged.append(packet_id)
                if len(acknowledged) == 2:
                    both.set()

            connected.on_acknowledged = record
            broker.freeze()
            first = connected.send("cascade/x", b"first", 1, publish_properties(b""))
            connected._client._last_mid = first - 1
            second = connected.send("cascade/x", b"second", 1, publish_properties(b""))
            broker.unfreeze()
            await both.wait()
            assert acknowledged == [first, second]

    with Listener(broker.port, "cascade/x") as listener:
        run(send)
        assert [m.payload for m in listener.wait_for(lambda seen: len(seen) == 2)] == [b"first", b"second"]


def test_messages_and_subscriptions_never_share_a_packet_id(
    broker: Broker,
) -> None:
    async def main(proxy: Proxy) -> None:
        async with new_client(proxy.port) as connected:
            proxy.hold(lambda packet: packet.from_broker)
            calls = [
                asyncio.ensure_future(connected.subscribe("cascade/x")),
                asyncio.ensure_future(connected.unsubscribe("cascade/y")),
            ]
            await asyncio.to_thread(
                proxy.wait_for_count, 2, sent_by_client(PacketTypes.SUBSCRIBE, PacketTypes.UNSUBSCRIBE)
            )
            connected._client._last_mid = 0
            connected.send("cascade/x", b"x", 1, publish_properties(b""))
            connected._client._last_mid = 2
            calls.append(asyncio.ensure_future(connected.subscribe("cascade/z")))
            await asyncio.to_thread(proxy.wait_for_count, 2, sent_by_client(PacketTypes.SUBSCRIBE))
            await asyncio.to_thread(proxy.release)
            await asyncio.gather(*calls)

    with Proxy(broker.port) as proxy:
        run(lambda: main(proxy))
        kinds = (PacketTypes.SUBSCRIBE, PacketTypes.UNSUBSCRIBE, PacketTypes.PUBLISH)
        assert [packet.packet_id for packet in proxy.matching(sent_by_client(*kinds))] == [1, 2, 3, 4]


def test_traffic_in_both_directions_replaces_pings(broker: Broker) -> None:
    """PINGRESP can be late behind many packets of a slow network. The connection must not be lost in that case."""
    long_ago = time.monotonic() - 1_000

    async def main(proxy: Proxy) -> None:
        async with new_client(proxy.port) as connected:
            paho, answered = connected._client, asyncio.Event()
            connected.on_acknowledged = lambda *_: answered.set()
            for pinged_at in (0.0, long_ago):
                paho._last_msg_out = paho._last_bytes_received = long_ago
                paho._ping_t = pinged_at
                answered.clear()
                connected.send("cascade/x", b"x", 1, publish_properties(b""))
                await answered.wait()
                connected.keep_alive()
            assert not connected.is_over
            await connected.unsubscribe("cascade/x")

    with Proxy(broker.port) as proxy:
        run(lambda: main(proxy))
        assert proxy.matching(sent_by_client(PacketTypes.PINGREQ)) == []
        assert len(proxy.matching(sent_by_client(PacketTypes.UNSUBSCRIBE))) == 1


@pytest.mark.parametrize("block", [1, 7, 100, 1 << 16])
def test_acknowledgements_may_be_split_at_any_byte(broker: Broker, monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    """With a reason code, with properties of some and of many bytes, and with neither."""
    monkeypatch.setattr("cascade.connectors.mqtt.transport.BLOCK_SIZE", block)
    some, many = (
        b"\x87" + new_properties(PacketTypes.PUBACK, ReasonString="x" * size).pack()  # type: ignore[no-untyped-call]
        for size in (5, 200)
    )
    answers, codes = itertools.cycle([b"", b"\x10", b"\x87\x00", some, many]), [0, 0x10, 0x87, 0x87, 0x87]
    sent, received = list[int](), list[tuple[int, int]]()

    def answer(packet: Packet) -> Iterable[Packet]:
        if received_by_client(PacketTypes.PUBACK)(packet):
            return (replace(packet, body=packet.packet_id.to_bytes(2) + next(answers)),)
        return (packet,)

    async def send(port: int) -> None:
        async with new_client(port) as connected:
            connected.on_acknowledged = lambda packet_id, reason: received.append((packet_id, reason.value))
            for _ in codes:
                sent.extend(connected.send("cascade/x", b"x", 1, publish_properties(b"")) for _ in codes)
                await connected.subscribe("cascade/y")
            await until(lambda: len(received) == len(sent))

    with Proxy(broker.port, answer) as proxy:
        run(lambda: send(proxy.port))
    assert received == list(zip(sent, codes * len(codes), strict=True))


IN_CONNECT = """
import asyncio, sys
from tests.lab import time_limits
time_limits.raise_time_limits()
from cascade.connectors.mqtt import MqttConnector

async def main():
    connector = MqttConnector("127.0.0.1", int(sys.argv[1]), tls=True, flush_timeout=0.01)
    await connector.connect()
    sys.stdin.readline()

asyncio.run(main())
"""


def test_the_exit_does_not_wait_for_an_attempt_to_connect() -> None:
    """The interpreter joins the threads of executors. This thread waits for a TLS handshake that never ends."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        program = subprocess.Popen(
            [sys.executable, "-c", IN_CONNECT, str(server.getsockname()[1])],
            env=time_limits.subprocess_environment(),
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        connection, _ = server.accept()
        with connection:
            assert connection.recv(1), "the handshake has begun"
            _, errors = program.communicate(b"\n", timeout=HANG / 2)
    assert (program.returncode, errors) == (0, b"")


def test_the_event_loop_of_the_connection_is_never_blocked(broker: Broker) -> None:
    """A program may detect blocking calls in all event loops."""
    with blockbuster_ctx() as detector, Listener(broker.port, "cascade/telemetry/#") as listener:
        detector.functions["time.sleep"].can_block_in("mqtt/session.py", "wake")  # it releases the interpreter's lock
        assert cs.run(double(1), connector=MqttConnector("127.0.0.1", broker.port), log_level="ERROR") == 2
        listener.wait_for(lambda seen: any(b"ENGINE_STOPPED" in message.payload for message in seen))


def test_neither_paho_nor_aiomqtt_logs(broker: Broker, caplog: pytest.LogCaptureFixture) -> None:
    """Their log lines go to stderr in a program without a logging configuration."""
    caplog.set_level(logging.DEBUG)

    @cs.task
    def restart(x: int) -> int:
        broker.restart()
        return x

    cs.run(double(restart(1)), connector=MqttConnector("127.0.0.1", broker.port), log_level="ERROR")
    names = {record.name.partition(".")[0] for record in caplog.records}
    assert names <= {"cascade", "asyncio"}


async def test_neither_tasks_nor_pending_calls_grow_with_the_messages(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """aiomqtt creates a task for each incoming message, and counts all pending calls for each outgoing one."""
    counts, few, many = Counter[str](), 10, 1_000
    create_task, pending_call = NetworkLoop.create_task, Client._pending_call

    def counted_task(loop: Any, *arguments: Any, **options: Any) -> Any:
        counts["tasks"] += 1
        return create_task(loop, *arguments, **options)

    def counted_call(*arguments: Any) -> Any:
        counts["calls"] += 1
        return pending_call(*arguments)

    monkeypatch.setattr(NetworkLoop, "create_task", counted_task)
    monkeypatch.setattr(Client, "_pending_call", counted_call)
    totals = [await _exchange(broker, count, counts) for count in (few, many)]
    assert totals[1] == totals[0]


async def _exchange(broker: Broker, count: int, counts: Counter[str]) -> dict[str, int]:
    counts.clear()
    connector, found = MqttConnector("127.0.0.1", broker.port), set[str]()

    async def store(topic: str, payload: dict[str, int]) -> None:
        found.add(topic)

    await connector.connect()
    await connector.subscribe(CONTROL, store)
    before = dict(counts)
    with Listener(broker.port, "nothing") as other:
        for number in range(count):
            other.client.publish(f"{PAUSE}/{number}", b"{}", 1)
            await connector.publish(TOPIC, telemetry(number), number % 2)
        await until(lambda: len(found) == count)
    await until(lambda: not connector.report().queued)
    after = dict(counts)
    await connector.disconnect()
    return {name: after.get(name, 0) - before.get(name, 0) for name in ("tasks", "calls")}


@pytest.mark.skipif(not hasattr(socket, "TCP_QUICKACK"), reason="the system has no TCP_QUICKACK")
def test_quickack_is_set_again_after_each_read(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Linux switches delayed acknowledgements on again by itself."""
    calls: list[str] = []
    read, set_option = socket.socket.recv, socket.socket.setsockopt

    def counted_read(one: socket.socket, *arguments: Any) -> bytes:
        with contextlib.suppress(BlockingIOError):
            data = read(one, *arguments)
            if one.family == socket.AF_INET:  # not a socket of the event loop
                calls.append("read")
            return data
        raise BlockingIOError

    def counted_option(one: socket.socket, level: int, name: int, value: int) -> None:
        set_option(one, level, name, value)
        if (level, name, value) == (socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1):
            calls.append("acknowledge")

    async def exchange() -> None:
        async with new_client(broker.port) as connected:
            for _ in range(10):
                await connected.publish("cascade/x", b"x", 1)
            monkeypatch.undo()

    monkeypatch.setattr(socket.socket, "setsockopt", counted_option, raising=False)
    monkeypatch.setattr(socket.socket, "recv", counted_read, raising=False)
    run(exchange)
    assert calls.count("acknowledge") >= 11
    assert calls[::2] == ["read"] * (len(calls) // 2)
    assert calls[1::2] == ["acknowledge"] * (len(calls) // 2)


def test_the_loop_is_a_selector_loop_whatever_the_policy_of_the_program() -> None:
    async def main() -> None:
        assert isinstance(asyncio.get_running_loop(), asyncio.SelectorEventLoop)
        first, second = socket.socketpair()
        with first, second:
            readable = asyncio.Event()
            asyncio.get_running_loop().add_reader(first, readable.set)
            second.send(b"x")
            await readable.wait()
            asyncio.get_running_loop().remove_reader(first)

    run(main)


def test_packets_of_one_loop_iteration_are_written_together(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    writes: list[int] = []
    flush = transport.Transport.flush

    def counted(transport: Any) -> bool:
        writes.append(len(transport.unwritten))
        return flush(transport)

    async def exchange() -> None:
        async with new_client(broker.port) as connected:
            await connected.publish("cascade/x", b"x", 1)
            writes.clear()
            await asyncio.gather(*(connected.publish("cascade/x", b"x", 1) for _ in range(100)))

    monkeypatch.setattr(transport.Transport, "flush", counted)
    run(exchange)
    assert max(writes) >= 100 * len("cascade/x")
    assert sum(map(bool, writes)) <= 2


@pytest.mark.parametrize("has_tls", [False, True])
def test_data_larger_than_the_socket_buffer_arrives(
    has_tls: bool,
    certificates: Path,
    tmp_path: Path,
) -> None:
    """While the broker is frozen, the buffers of the system fill up. The client then continues by itself.

    With TLS, OpenSSL must get the bytes again that the system has not accepted.
    """
    count, body = 400, b"x" * 50_000
    ca = certificates / "ca.pem" if has_tls else None
    files = (f"certfile {certificates / 'server.pem'}", f"keyfile {certificates / 'server.key'}") if has_tls else ()
    listening: Any = {"host": "localhost", "context": ssl.create_default_context(cafile=ca)} if has_tls else {}

    def socket_is_full(client: Client) -> bool:
        client.flush()
        return client.wants_write

    async def exchange() -> None:
        async with new_client(broker.port, ca) as connected:
            broker.freeze()
            calls = [
                asyncio.ensure_future(connected.publish("cascade/x", body, 1, timeout=math.inf)) for _ in range(count)
            ]
            await until(lambda: socket_is_full(connected))
            broker.unfreeze()
            await asyncio.gather(*calls)
            assert not connected.wants_write

    with Broker(tmp_path, listener=files) as broker, Listener(broker.port, "cascade/x", **listening) as listener:
        run(exchange)
        assert {m.payload for m in listener.wait_for(lambda seen: len(seen) == count)} == {body}


@pytest.mark.parametrize("block", [1, 7, 100, 1 << 16])
def test_messages_may_be_split_at_any_byte(broker: Broker, monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    """Only those that were read completely, and have no property but the expiry, are received without paho."""
    monkeypatch.setattr("cascade.connectors.mqtt.transport.BLOCK_SIZE", block)
    properties: dict[str, Any] = {"ContentType": "application/json", "MessageExpiryInterval": 60}
    received, expected = list[IncomingMessage](), list[IncomingMessage]()
    with Proxy(broker.port) as proxy, Listener(broker.port, "nothing") as other:

        def publish() -> None:
            kinds = itertools.product(("", "é"), ([], list(properties)[1:], [*properties]), (0, 90, 300, 20_000))
            for number, (end, used, size) in enumerate(kinds):
                topic, qos = f"a/{number}{end}", number % 2
                options = new_properties(PacketTypes.PUBLISH, **{name: properties[name] for name in used})
                message = IncomingMessage(topic, b"x" * size, bool(number % 3), 60 if used else None)
                other.client.publish(topic, message.payload, qos, message.retain, options).wait_for_publish(HANG)
                expected.append(message)
            other.publish("a/end", b"")

        async def main() -> None:
            async with new_client(proxy.port) as client:
                ended = asyncio.Event()

                def receive(message: IncomingMessage) -> None:
                    if message.topic == "a/end":
                        ended.set()
                    else:
                        assert message.expiry is None or 0 < message.expiry <= 60
                        received.append(message._replace(expiry=message.expiry and 60))

                client.on_received = receive
                await client.subscribe("a/#", options=SubscribeOptions(qos=1, retainAsPublished=True))
                await asyncio.to_thread(publish)
                async with asyncio.timeout(HANG):
                    await ended.wait()
                client.flush()
                await asyncio.to_thread(
                    proxy.wait_for_count, len(expected) // 2 + 1, sent_by_client(PacketTypes.PUBACK)
                )

        run(main)
        ids = [packet.packet_id for packet in proxy.matching(received_by_client(PacketTypes.PUBLISH)) if packet.qos]
        assert [packet.packet_id for packet in proxy.matching(sent_by_client(PacketTypes.PUBACK))] == ids
    assert sorted(received) == sorted(expected)
