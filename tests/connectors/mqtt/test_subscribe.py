"""Subscriptions: retained messages, floods, and reconnections."""

import asyncio
import json
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from cascade.connectors.mqtt import MqttConnector, health, subscriber
from cascade.connectors.mqtt.client import Client
from cascade.connectors.mqtt.health import ConnectionHealth
from cascade.connectors.mqtt.outbox import Outbox
from cascade.connectors.mqtt.subscriptions import BATCH, Subscriptions
from cascade.telemetry.topics import source, status_topic
from cascade.telemetry.wire import InvalidPayload
from stack.addresses import reserved_port
from tests.connectors.mqtt.broker import Broker, Listener
from tests.connectors.mqtt.messages import telemetry, warnings
from tests.connectors.mqtt.proxy import Packet, Proxy, received_by_client, sent_by_client
from tests.connectors.mqtt.waiting import delay_connections, is_connected
from tests.lab.waiting import HANG, NEVER, until, with_timeout

CONTROL = "cascade/control/local/default/constraints/#"
PAUSE = "cascade/control/local/default/constraints/global/pause"


class RecordingCallback:
    """A callback that records its calls."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, dict[str, Any]]] = []

    async def __call__(self, topic: str, payload: dict[str, Any]) -> None:
        await asyncio.sleep(0)
        self.calls.append((topic, payload))

    @property
    def payloads(self) -> list[dict[str, Any]]:
        return [payload for _, payload in self.calls]


def constraint(number: int = 0) -> dict[str, Any]:
    return {"id": f"c{number}", "type": "pause", "params": {}}


async def connected(broker: Broker, **options: Any) -> MqttConnector:
    connector = MqttConnector("127.0.0.1", broker.port, **options)
    await connector.connect()
    return connector


@pytest.mark.parametrize("settings", [(), ("max_inflight_messages 1",), ("max_inflight_messages 0",)])
async def test_subscribe_returns_after_the_retained_messages(tmp_path: Path, settings: tuple[str, ...]) -> None:
    """It holds for any number of messages in flight. Mosquitto's default is 20."""
    with Broker(tmp_path, *settings) as broker, Listener(broker.port) as other:
        topics = [f"cascade/control/local/default/constraints/task/t{n}/pause" for n in range(100)]
        for number, topic in enumerate(topics):
            other.publish(topic, json.dumps(constraint(number)), retain=True)
        callback, connector = RecordingCallback(), await connected(broker)
        await connector.subscribe(CONTROL, callback)
        assert sorted(callback.calls) == sorted((topic, constraint(n)) for n, topic in enumerate(topics))
        second = RecordingCallback()
        await connector.subscribe(CONTROL, second)
        assert sorted(second.calls) == sorted(callback.calls)
        await connector.disconnect()


async def test_messages_are_delivered_in_order(broker: Broker) -> None:
    with Listener(broker.port) as other:
        callback, connector = RecordingCallback(), await connected(broker)
        await connector.subscribe(CONTROL, callback)
        assert callback.calls == []
        sent: list[tuple[bytes, dict[str, Any]]] = [
            (b'{"a": 1}', {"a": 1}),
            (b"", {}),
            (b"[1]", InvalidPayload("it must be a JSON object, not list")),
            (b"\xff", InvalidPayload("it is not in UTF-8")),
            (b"x" * 20_000, InvalidPayload("it has 20,000 bytes, more than 16,384")),
            (b"x" * 1_000_000, InvalidPayload("it has 1,000,000 bytes, more than 16,384")),
        ]
        for count, (data, _) in enumerate(sent, 1):
            await asyncio.to_thread(other.publish, PAUSE, data)
            await until(lambda count=count: len(callback.calls) == count)  # type: ignore[misc]
        # The broker does not deliver messages above two megabytes.
        await asyncio.to_thread(other.publish, PAUSE, b"x" * 3_000_000)
        await asyncio.to_thread(other.publish, PAUSE, b'{"b": 2}')
        await until(lambda: len(callback.calls) > len(sent))
        expected = [*(payload for _, payload in sent), {"b": 2}]
        assert callback.calls == [(PAUSE, payload) for payload in expected]
        reasons = [getattr(payload, "reason", None) for payload in callback.payloads]
        assert reasons == [getattr(payload, "reason", None) for payload in expected]
        await connector.disconnect()


async def test_subscribe_waits_for_callbacks_with_a_time_limit(broker: Broker, limits: pytest.MonkeyPatch) -> None:
    with Listener(broker.port) as other:
        other.publish(PAUSE, json.dumps(constraint()), retain=True)
        connector, done = await connected(broker), asyncio.Event()

        async def slow_callback(topic: str, payload: dict[str, Any]) -> None:
            await asyncio.sleep(0.1)
            done.set()

        async def blocked_callback(topic: str, payload: dict[str, Any]) -> None:
            await asyncio.Event().wait()

        await connector.subscribe(CONTROL, slow_callback)
        assert done.is_set()
        limits.setattr(subscriber, "SUBSCRIBE_TIMEOUT", 0.05)
        await with_timeout(connector.subscribe(CONTROL, blocked_callback))
        await connector.disconnect()


async def test_subscribe_does_not_wait_for_a_refused_port(limits: pytest.MonkeyPatch) -> None:
    limits.setattr(subscriber, "SUBSCRIBE_TIMEOUT", NEVER)
    limits.setattr(health, "ANSWER_TIMEOUT", NEVER)
    connector = MqttConnector("127.0.0.1", reserved_port())
    await connector.connect()
    await with_timeout(connector.subscribe(CONTROL, RecordingCallback()))
    await connector.disconnect()


@pytest.mark.usefixtures("real_limits")
async def test_subscribe_has_a_time_limit_without_an_answer(broker: Broker) -> None:
    with broker.frozen():
        connector = await connected(broker, flush_timeout=NEVER)
        await with_timeout(connector.subscribe(CONTROL, RecordingCallback()))
        await connector.disconnect()


async def test_a_subscription_before_connect_is_kept(broker: Broker) -> None:
    with Listener(broker.port) as other:
        other.publish(PAUSE, json.dumps(constraint()), retain=True)
        connector, callback = MqttConnector("127.0.0.1", broker.port), RecordingCallback()
        await connector.subscribe(CONTROL, callback)
        await connector.connect()
        await until(lambda: callback.payloads == [constraint()])
        await connector.disconnect()


async def test_no_message_is_delivered_after_unsubscribe(broker: Broker) -> None:
    with Listener(broker.port) as other:
        first, second, connector = RecordingCallback(), RecordingCallback(), await connected(broker)
        for callback in (first, second):
            await connector.subscribe(CONTROL, callback)
        await connector.unsubscribe(CONTROL, first)
        await connector.unsubscribe(CONTROL, first)
        await connector.unsubscribe("never/subscribed", first)
        await asyncio.to_thread(other.publish, PAUSE, b'{"a": 1}')
        await until(lambda: second.payloads)
        await connector.unsubscribe(CONTROL, second)
        # A new subscription receives the retained messages again.
        await asyncio.to_thread(other.publish, PAUSE, b'{"b": 2}', retain=True)
        third = RecordingCallback()
        await connector.subscribe(CONTROL, third)
        assert (first.payloads, second.payloads) == ([], [{"a": 1}])
        # Twice if the broker has not handled UNSUBSCRIBE yet: once live, once retained.
        assert third.payloads in ([{"b": 2}], [{"b": 2}] * 2)
        await connector.disconnect()


async def test_the_last_disconnect_ends_all_subscriptions(broker: Broker) -> None:
    with Listener(broker.port) as other:
        callback, connector = RecordingCallback(), await connected(broker)
        await connector.connect()
        await connector.subscribe(CONTROL, callback)
        await connector.disconnect()
        await asyncio.to_thread(other.publish, PAUSE, b'{"a": 1}')
        await until(lambda: callback.payloads == [{"a": 1}])
        await connector.disconnect()
        await connector.connect()
        await until(lambda: is_connected(connector))
        await asyncio.to_thread(other.publish, PAUSE, b'{"b": 2}')
        await connector.subscribe("cascade/else", RecordingCallback())  # a round trip
        assert callback.payloads == [{"a": 1}]
        await connector.disconnect()


@pytest.mark.parametrize("error", [LookupError("the subscriber's own"), asyncio.CancelledError()])
async def test_an_error_of_a_callback_is_logged_once(
    error: BaseException, broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    """A callback that awaits a task which is cancelled raises CancelledError, although nothing cancels the inbox."""
    with Listener(broker.port) as other:
        connector, calls = await connected(broker), list[Any]()

        async def fail(topic: str, payload: dict[str, Any]) -> None:
            calls.append(payload)
            raise error

        await connector.subscribe(CONTROL, fail)
        for number in range(3):
            await asyncio.to_thread(other.publish, PAUSE, json.dumps({"n": number}))
            await until(lambda number=number: len(calls) == number + 1)  # type: ignore[misc]
        await connector.disconnect()
    errors = [record for record in caplog.records if record.levelno >= logging.ERROR and "cascade" in record.name]
    assert [record.getMessage() for record in errors] == [
        f"MqttConnector: a subscriber failed for {PAUSE}; further failures are not logged"
    ]


async def test_a_message_removed_during_an_outage_is_delivered_as_empty(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    other_topic = PAUSE.replace("global", "task/t")
    changed, new = PAUSE.replace("pause", "concurrency"), PAUSE.replace("pause", "rate_limit")
    with Listener(broker.port) as other:
        for topic in (PAUSE, other_topic, changed):
            other.publish(topic, json.dumps(constraint()), retain=True)
        other.publish(PAUSE.replace("pause", "x"), b'{"not": "retained"}')
    callback, connector = RecordingCallback(), await connected(broker)
    await connector.subscribe(CONTROL, callback)
    assert len(callback.calls) == 3
    callback.calls.clear()
    may_connect = delay_connections(monkeypatch)
    broker.restart()  # it has no persistence
    with Listener(broker.port) as other:
        other.publish(other_topic, json.dumps(constraint()), retain=True)
        other.publish(changed, json.dumps(constraint(1)), retain=True)
        other.publish(new, json.dumps(constraint(2)), retain=True)
        may_connect.set()
        await until(lambda: len(callback.calls) == 3)
        assert sorted(callback.calls, key=str) == sorted(
            [(PAUSE, {}), (changed, constraint(1)), (new, constraint(2))], key=str
        ), "unchanged constraints are not delivered again"
        await asyncio.to_thread(other.publish, PAUSE, b'{"live": 1}')
        await until(lambda: len(callback.calls) == 4)
    await connector.disconnect()


async def test_a_flood_is_delivered_in_order_and_in_batches(broker: Broker) -> None:
    with Listener(broker.port, "nothing") as other:
        connector, found, calls, is_ordered = await connected(broker), dict[str, int](), 0, True
        count, topics, most, last = 5_000, 100, 0, 0

        async def store(topic: str, payload: dict[str, Any]) -> None:
            nonlocal calls, is_ordered
            calls += 1
            is_ordered &= payload["n"] > found.get(topic, -1)
            found[topic] = payload["n"]

        await connector.subscribe(CONTROL, store)

        def flood() -> None:
            for number in range(count):
                other.client.publish(f"{PAUSE}/{number % topics}", json.dumps({"n": number}))

        flooding = asyncio.ensure_future(asyncio.to_thread(flood))
        latest = {f"{PAUSE}/{number % topics}": number for number in range(count - topics, count)}
        async with asyncio.timeout(HANG):
            while found != latest:
                await asyncio.sleep(0)
                most, last = max(most, calls - last), calls
        assert most <= BATCH
        assert is_ordered
        await flooding
        await connector.disconnect()


async def test_only_the_latest_message_of_each_topic_is_delivered() -> None:
    callback, subscriptions = RecordingCallback(), Subscriptions(lambda: None, pytest.fail)
    _, inbox = subscriptions.add(CONTROL, callback)
    for number in range(100_000):
        subscriptions.receive(f"{PAUSE}/{number % 10}", b'{"n": %d}' % number, retained=False)
    subscriptions.wake()
    await until(lambda: len(callback.calls) == 10)
    assert callback.payloads == [{"n": 99_990 + n} for n in range(10)]
    await inbox.close()


async def test_a_pause_among_thousands_of_invalid_messages_is_delivered(broker: Broker) -> None:
    with Listener(broker.port, "nothing") as other:
        for number in range(6_000):
            other.client.publish(f"{PAUSE}/{number}", b"invalid", 1, retain=True)
        other.publish(PAUSE, json.dumps(constraint()), retain=True)
        callback, later, connector = RecordingCallback(), RecordingCallback(), await connected(broker)
        for one in (callback, later):
            await connector.subscribe(CONTROL, one)
            await until(lambda one=one: len(one.calls) == 6_001)  # type: ignore[misc]
            assert (PAUSE, constraint()) in one.calls
        await connector.disconnect()


async def test_messages_above_the_capacity_are_dropped_with_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cascade.connectors.mqtt.subscriptions.CAPACITY", 1 << 20)
    may_return, calls, reported = asyncio.Event(), list[str](), set[str]()
    subscriptions = Subscriptions(lambda: None, reported.add)

    async def blocked(topic: str, payload: dict[str, Any]) -> None:
        await may_return.wait()
        calls.append(topic)

    subscription, inbox = subscriptions.add(CONTROL, blocked)
    for number in range(5_000):
        subscriptions.receive(f"{PAUSE}/{number}", b'{"n": 1}', retained=True)
        subscriptions.wake()
    (warning,) = reported
    assert "MiB of received messages are queued" in warning
    may_return.set()
    await until(lambda: len(calls) >= 3_500)
    assert 3_500 < len(subscription.retained) < 4_500
    await until(lambda: inbox.is_idle)
    assert len(calls) < 4_500
    await inbox.close()


def test_a_subscription_whose_event_loop_is_closed_is_dropped() -> None:
    subscriptions = Subscriptions(lambda: None, pytest.fail)

    async def subscribe() -> None:
        subscriptions.add(CONTROL, RecordingCallback())

    asyncio.run(subscribe())
    assert [subscription.pattern for subscription in subscriptions.all()] == [CONTROL]
    subscriptions.receive(PAUSE, b'{"a": 1}', retained=False)
    assert subscriptions.all() == []


async def test_a_subscription_in_another_event_loop_is_ended_by_the_last_disconnect(broker: Broker) -> None:
    connector = await connected(broker)
    entered = asyncio.Event()
    loop = asyncio.get_running_loop()

    async def elsewhere() -> str:
        ended = asyncio.Event()

        async def blocked(topic: str, payload: dict[str, Any]) -> None:
            loop.call_soon_threadsafe(entered.set)
            try:
                await asyncio.Event().wait()
            finally:
                ended.set()

        await connector.subscribe(CONTROL, blocked)
        async with asyncio.timeout(HANG):
            await ended.wait()
        return "ended"

    thread = asyncio.ensure_future(asyncio.to_thread(lambda: asyncio.run(elsewhere())))
    with Listener(broker.port) as other:
        other.publish(PAUSE, b'{"a": 1}', retain=True)
        await entered.wait()
    await connector.disconnect()
    assert await thread == "ended"


@pytest.mark.parametrize("pattern", ["", "a/#/b", "a+", "$SYS/#", "a\0"])
async def test_an_invalid_topic_filter_is_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match="topic filter"):
        await MqttConnector("127.0.0.1", reserved_port()).subscribe(pattern, RecordingCallback())


async def test_constraints_stay_valid_if_the_broker_refuses_the_subscription(
    broker: Broker, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    subscribe = Client.subscribe

    async def refused(client: Client, *arguments: Any, **options: Any) -> list[ReasonCode]:
        await subscribe(client, *arguments, **options)
        return [ReasonCode(PacketTypes.SUBACK, "Quota exceeded")]

    with Listener(broker.port) as other:
        other.publish(PAUSE, json.dumps(constraint()), retain=True)
        callback, later, connector = RecordingCallback(), RecordingCallback(), await connected(broker)
        await connector.subscribe(CONTROL, callback)
        monkeypatch.setattr(Client, "subscribe", refused)
    broker.restart()  # it has no persistence, so the pause is gone
    await until(lambda: warnings(caplog))
    await connector.subscribe(CONTROL, later)
    assert callback.calls == later.calls == [(PAUSE, constraint())]
    assert warnings(caplog) == [f"MqttConnector: control cannot be received on {CONTROL}: Quota exceeded"]
    await connector.disconnect()


async def test_another_thread_may_connect_while_the_last_run_ends(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    connector, callback, abandon = await connected(broker), RecordingCallback(), Outbox.abandon

    async def begin() -> None:
        await connector.connect()
        await connector.subscribe(CONTROL, callback)
        await connector.publish("cascade/telemetry/local/default/run/events", telemetry(), 1)
        await connector.disconnect()

    begins = threading.Thread(target=lambda: asyncio.run(begin()))

    def preempted(outbox: Outbox, before: int, reason: str) -> None:
        if begins.ident is None:
            begins.start()
            begins.join(0.5)  # the other thread connects while this one ends the session
        abandon(outbox, before, reason)

    monkeypatch.setattr(Outbox, "abandon", preempted)
    with Listener(broker.port) as other:
        other.publish(PAUSE, json.dumps(constraint()), retain=True)
        await connector.disconnect()
        await asyncio.to_thread(begins.join)
    assert callback.payloads == [constraint()]
    assert (connector.report().sent, connector.report().lost) == (1, 0)


PLUGIN = Path("/usr/lib/x86_64-linux-gnu/mosquitto_dynamic_security.so")


@pytest.mark.skipif(not PLUGIN.exists(), reason="the dynamic security plugin is not installed")
async def test_a_refused_subscription_is_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, limits: pytest.MonkeyPatch
) -> None:
    """An ACL file of Mosquitto 2.0 accepts each subscription and delivers nothing. The plugin refuses it."""
    limits.setattr(subscriber, "SUBSCRIBE_TIMEOUT", NEVER)
    rules = {"publishClientSend": True, "publishClientReceive": True, "subscribe": False, "unsubscribe": True}
    (tmp_path / "security.json").write_text(json.dumps({"defaultACLAccess": rules, "clients": [], "roles": []}))
    options = (f"plugin {PLUGIN}", f"plugin_opt_config_file {tmp_path / 'security.json'}")
    with Broker(tmp_path, *options) as broker:
        connector = await connected(broker)
        for _ in range(2):
            await with_timeout(connector.subscribe(CONTROL, RecordingCallback()))
        await connector.publish("cascade/telemetry/local/default/run/events", telemetry(), 1)
        await connector.disconnect()
        assert connector.report().sent == 1
    assert warnings(caplog) == [f"MqttConnector: control cannot be received on {CONTROL}: Not authorized"]


@pytest.mark.parametrize("code", [0x80, 0x83, 0x97])
async def test_a_transiently_refused_subscription_is_repeated(
    broker: Broker, caplog: pytest.LogCaptureFixture, code: int
) -> None:
    refused = list[Packet]()

    def refuse_three_times(packet: Packet) -> Iterable[Packet]:
        if not sent_by_client(PacketTypes.SUBSCRIBE)(packet) or len(refused) == 3:
            return (packet,)
        refused.append(packet)
        answer = packet.body[:2] + bytes([0]) + bytes([code] * packet.body.count(b"cascade/"))
        return (Packet(PacketTypes.SUBACK, answer, from_broker=True, connection=packet.connection),)

    callback = RecordingCallback()
    with Listener(broker.port) as other, Proxy(broker.port, refuse_three_times) as proxy:
        other.publish(PAUSE, json.dumps(constraint()), retain=True)
        connector = MqttConnector("127.0.0.1", proxy.port)
        await connector.connect()
        await connector.subscribe(CONTROL, callback)
        await until(lambda: callback.calls)
        await connector.disconnect()
    assert callback.calls == [(PAUSE, constraint())]
    assert [CONTROL.encode() in packet.body for packet in refused][1:] == [True, True]
    assert warnings(caplog)[0].startswith(f"MqttConnector: control cannot be received on {CONTROL}: ")


STATUS = "cascade/status/"
SUBSCRIBED, RETAINED = received_by_client(PacketTypes.SUBACK), received_by_client(PacketTypes.PUBLISH)


async def round_trips(connector: MqttConnector, proxy: Proxy) -> None:
    """Make three round trips to the broker, after which earlier packets are answered."""
    for number in range(3):
        count = len(proxy.matching(received_by_client(PacketTypes.PUBACK)))
        await connector.publish("cascade/telemetry/local/default/run/events", telemetry(number), 1)
        await asyncio.to_thread(proxy.wait_for_count, count + 1, received_by_client(PacketTypes.PUBACK))


async def test_retained_messages_that_the_broker_sends_after_its_answers_are_received_first(broker: Broker) -> None:
    with Listener(broker.port) as other, Proxy(broker.port) as proxy:
        other.publish(PAUSE, json.dumps(constraint()), retain=True)
        other.publish("else/pause", json.dumps(constraint(1)), retain=True)
        connector = MqttConnector("127.0.0.1", proxy.port)
        await connector.connect()
        for count, (pattern, topic) in enumerate([(CONTROL, PAUSE), ("else/#", "else/pause")]):
            proxy.hold(lambda packet: RETAINED(packet) and packet.retain)
            callback = RecordingCallback()
            subscribing = asyncio.ensure_future(connector.subscribe(pattern, callback))
            await asyncio.to_thread(
                proxy.wait_for_count, count + 1, lambda p: SUBSCRIBED(p) and len(p.body) > 2 + 1 + 1
            )
            await round_trips(connector, proxy)
            assert not subscribing.done()
            proxy.release()
            await subscribing
            assert callback.calls == [(topic, constraint(count))]
        assert not proxy.matching(sent_by_client(PacketTypes.UNSUBSCRIBE)), "not every broker answers UNSUBSCRIBE"
        await connector.disconnect()


async def test_a_retained_message_that_comes_after_the_presence_is_received_too(
    broker: Broker, limits: pytest.MonkeyPatch
) -> None:
    """Some brokers look up the retained messages of each filter in a separate process."""
    limits.setattr(subscriber, "RETAINED_GAP", NEVER)
    with Listener(broker.port) as other, Proxy(broker.port) as proxy:
        other.publish(PAUSE, json.dumps(constraint()), retain=True)
        proxy.hold(lambda packet: RETAINED(packet) and packet.topic == PAUSE)
        connector, callback = MqttConnector("127.0.0.1", proxy.port), RecordingCallback()
        await connector.connect()
        subscribing = asyncio.ensure_future(connector.subscribe(CONTROL, callback))
        await asyncio.to_thread(proxy.wait_for_count, 1, lambda p: RETAINED(p) and p.topic.startswith(STATUS))
        await round_trips(connector, proxy)
        assert not subscribing.done()
        limits.setattr(subscriber, "RETAINED_GAP", 0.01)
        proxy.release()
        await subscribing
        assert callback.calls == [(PAUSE, constraint())]
        await connector.disconnect()


async def test_the_wait_ends_with_a_gap_after_the_presence(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    timeout, gap, waits = asyncio.timeout, 0.0123, list[float | None]()

    def counted(delay: float | None) -> asyncio.Timeout:
        waits.append(delay)
        return timeout(delay)

    monkeypatch.setattr(asyncio, "timeout", counted)
    monkeypatch.setattr(subscriber, "RETAINED_GAP", gap)
    connector = await connected(broker)
    await connector.subscribe(CONTROL, RecordingCallback())
    assert waits.count(gap) == 1
    await connector.disconnect()


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[Broker]:
    """A broker whose access list does not allow a client to read its own presence."""
    (tmp_path / "acl").write_text(
        "topic write cascade/status/#\ntopic readwrite cascade/control/#\ntopic write cascade/telemetry/#\n"
    )
    with Broker(tmp_path, f"acl_file {tmp_path / 'acl'}") as broker:
        yield broker


LATE_WARNING = "MqttConnector: retained constraints may not have been applied before the first task: "
UNCERTAIN_WARNING = (
    "MqttConnector: retained constraints may not have been applied before the first task, because the broker does not "
    "send the presence of this process back; allow this user to read "
)


async def test_without_access_to_the_presence_round_trips_are_made(
    guarded: Broker, caplog: pytest.LogCaptureFixture, limits: pytest.MonkeyPatch
) -> None:
    topics = [f"cascade/control/local/default/constraints/task/t{n}/pause" for n in range(100)]
    with Listener(guarded.port, "nothing") as other:
        for number, topic in enumerate(topics):
            other.publish(topic, json.dumps(constraint(number)), retain=True)
    limits.setattr(subscriber, "PRESENCE_TIMEOUT", 0.05)
    callback, connector = RecordingCallback(), await connected(guarded)
    await connector.subscribe(CONTROL, callback)
    assert sorted(callback.calls) == sorted((topic, constraint(n)) for n, topic in enumerate(topics))
    limits.setattr(subscriber, "PRESENCE_TIMEOUT", NEVER)
    await with_timeout(connector.subscribe("cascade/control/#", RecordingCallback()))
    assert warnings(caplog) == [UNCERTAIN_WARNING + status_topic("local", "default", source())]
    await connector.disconnect()


async def test_a_broker_that_returns_neither_the_presence_nor_an_answer_to_unsubscribe_is_reported(
    guarded: Broker,
    caplog: pytest.LogCaptureFixture,
    limits: pytest.MonkeyPatch,
    latest_health: Callable[[], ConnectionHealth],
) -> None:
    limits.setattr(subscriber, "PRESENCE_TIMEOUT", 0.05)
    with Proxy(guarded.port) as proxy:
        proxy.hold(received_by_client(PacketTypes.UNSUBACK))
        connector = MqttConnector("127.0.0.1", proxy.port)
        await connector.connect()
        await connector.subscribe(CONTROL, RecordingCallback())
        assert warnings(caplog) == [f"{LATE_WARNING}the broker did not answer UNSUBSCRIBE"]
        await round_trips(connector, proxy)
        await until(lambda: not connector.report().queued)
        assert latest_health().silence == 0, "no answer is due"
        await connector.disconnect()


async def test_retained_messages_that_are_too_late_are_reported(
    broker: Broker, caplog: pytest.LogCaptureFixture, limits: pytest.MonkeyPatch
) -> None:
    limits.setattr(subscriber, "PRESENCE_TIMEOUT", 0.05)
    with Listener(broker.port) as other, Proxy(broker.port) as proxy:
        other.publish(PAUSE, json.dumps(constraint()), retain=True)
        proxy.hold(lambda packet: RETAINED(packet) and packet.retain)
        connector, callback = MqttConnector("127.0.0.1", proxy.port), RecordingCallback()
        await connector.connect()
        await connector.subscribe(CONTROL, callback)
        first = UNCERTAIN_WARNING + status_topic("local", "default", source())
        assert (callback.calls, warnings(caplog)) == ([], [first])
        proxy.release()
        await until(lambda: callback.payloads == [constraint()])
        await until(lambda: warnings(caplog) == [first, f"{LATE_WARNING}the broker sends them late"])
        await connector.disconnect()


async def test_a_refused_subscription_to_the_presence_is_harmless(broker: Broker, limits: pytest.MonkeyPatch) -> None:
    limits.setattr(subscriber, "PRESENCE_TIMEOUT", NEVER)

    def rule(packet: Packet) -> Iterable[Packet]:
        if SUBSCRIBED(packet):
            return (replace(packet, body=packet.body[:-1] + b"\x87"),)
        return () if RETAINED(packet) and packet.topic.startswith(STATUS) else (packet,)

    with Listener(broker.port) as other, Proxy(broker.port, rule) as proxy:
        other.publish(PAUSE, json.dumps(constraint()), retain=True)
        connector, callback = MqttConnector("127.0.0.1", proxy.port), RecordingCallback()
        await connector.connect()
        await with_timeout(connector.subscribe(CONTROL, callback))
        assert callback.payloads == [constraint()]
        await connector.disconnect()


async def test_a_subscription_that_ends_the_connection_is_sent_at_most_twice(broker: Broker) -> None:
    def forbid(packet: Packet) -> Iterable[Packet]:
        if sent_by_client(PacketTypes.SUBSCRIBE)(packet) and STATUS.encode() in packet.body:
            return (Packet(PacketTypes.DISCONNECT, b"\x87", from_broker=True, connection=packet.connection),)
        return (packet,)

    with Listener(broker.port) as other, Proxy(broker.port, forbid) as proxy:
        other.publish(PAUSE, json.dumps(constraint()), retain=True)
        connector, callback = MqttConnector("127.0.0.1", proxy.port), RecordingCallback()
        await connector.connect()
        await connector.subscribe(CONTROL, callback)
        await until(lambda: callback.payloads == [constraint()])
        await with_timeout(connector.subscribe("cascade/control/#", RecordingCallback()))
        assert len(proxy.matching(sent_by_client(PacketTypes.CONNECT))) == 3
        await connector.disconnect()


async def test_two_pending_subscriptions_do_not_count_as_forbidden(broker: Broker) -> None:
    with Proxy(broker.port) as proxy:
        proxy.hold(SUBSCRIBED)
        connector, sent = MqttConnector("127.0.0.1", proxy.port), sent_by_client(PacketTypes.SUBSCRIBE)
        await connector.connect()
        await asyncio.to_thread(proxy.wait_for_count, 1, sent)
        subscribing = asyncio.ensure_future(connector.subscribe(CONTROL, RecordingCallback()))
        await asyncio.to_thread(proxy.wait_for_count, 2, sent)
        proxy.release()
        await subscribing
        proxy.cut()
        packets = await asyncio.to_thread(proxy.wait_for_count, 3, sent)
        assert [STATUS.encode() in packet.body for packet in packets] == [True] * 3
        await connector.disconnect()


async def test_a_slow_tcp_handshake_extends_the_time_to_connect(
    broker: Broker, limits: pytest.MonkeyPatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits.setattr(health, "ANSWER_TIMEOUT", 0.05)
    reached = ConnectionHealth.record_tcp_connected
    monkeypatch.setattr(ConnectionHealth, "record_tcp_connected", lambda health, _: reached(health, HANG))
    with Listener(broker.port) as other, Proxy(broker.port) as proxy:
        other.publish(PAUSE, json.dumps(constraint()), retain=True)
        proxy.hold(received_by_client(PacketTypes.CONNACK))
        connector, callback = MqttConnector("127.0.0.1", proxy.port), RecordingCallback()
        await connector.connect()
        subscribing = asyncio.ensure_future(connector.subscribe(CONTROL, callback))
        await asyncio.wait({subscribing}, timeout=0.2)
        assert not subscribing.done()
        proxy.release()
        await subscribing
        assert callback.payloads == [constraint()]
        await connector.disconnect()


async def test_constraints_without_retain_end_with_the_connection(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The broker does not report whether they were removed meanwhile."""
    changed = PAUSE.replace("pause", "concurrency")
    callback, later, connector = RecordingCallback(), RecordingCallback(), await connected(broker)
    with Listener(broker.port) as other:
        await connector.subscribe(CONTROL, callback)
        other.publish(changed, json.dumps(constraint(1)), retain=True)
        await until(lambda: len(callback.calls) == 1)
        other.publish(changed, json.dumps(constraint(2)))
        other.publish(PAUSE, json.dumps(constraint()))
        await until(lambda: len(callback.calls) == 3)
    callback.calls.clear()
    may_connect = delay_connections(monkeypatch)
    broker.restart()
    with Listener(broker.port) as other:
        other.publish(changed, json.dumps(constraint(1)), retain=True)
        may_connect.set()
        await until(lambda: len(callback.calls) == 2)
        assert callback.calls == [(changed, constraint(1)), (PAUSE, {})]
        await connector.subscribe(CONTROL, later)
        assert later.calls == [(changed, constraint(1))]
    await connector.disconnect()


async def test_a_message_with_an_expiry_has_expires_at(broker: Broker) -> None:
    properties: Any = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
    properties.MessageExpiryInterval = 600
    callback, connector = RecordingCallback(), await connected(broker)
    with Listener(broker.port) as other:
        before = time.time()
        other.client.publish(PAUSE, json.dumps(constraint()), 1, retain=True, properties=properties).wait_for_publish(
            HANG
        )
        await connector.subscribe(CONTROL, callback)
        (payload,) = callback.payloads
        assert before < payload.pop("expires_at") <= time.time() + 600
        assert payload == constraint()
        ends = time.time() + 300
        other.client.publish(PAUSE, json.dumps({"expires_at": ends}), 1, properties=properties)
        await until(lambda: len(callback.calls) == 2)
        assert callback.payloads[1] == {"expires_at": ends}, "the earlier end applies"
    await connector.disconnect()


async def test_an_expired_message_is_not_delivered_to_later_subscribers() -> None:
    callback, later, subscriptions = RecordingCallback(), RecordingCallback(), Subscriptions(lambda: None, pytest.fail)
    subscriptions.add(CONTROL, callback)
    subscriptions.receive(PAUSE, b'{"n": 1}', retained=True, expiry=0)
    subscriptions.wake()
    await until(lambda: len(callback.calls) == 1)
    _, inbox = subscriptions.add(CONTROL, later)
    assert inbox.is_idle
    assert later.calls == []


async def test_a_hundred_thousand_retained_constraints_are_all_received(
    broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    count, topics = 100_000, set[str]()

    async def store(topic: str, payload: dict[str, Any]) -> None:
        topics.add(topic)

    with Listener(broker.port, "nothing") as other:
        for number in range(count):
            other.client.publish(PAUSE.replace("global", f"task/t{number}"), b'{"type": "pause"}', retain=True)
        await asyncio.to_thread(other.publish, PAUSE, json.dumps(constraint()), retain=True)
    connector = await connected(broker)
    for number in range(100):
        await connector.publish("cascade/telemetry/local/default/run/events", telemetry(number), 1)
    await connector.subscribe(CONTROL, store)
    assert len(topics) == count + 1
    later = set(topics)
    topics.clear()
    await connector.subscribe(CONTROL, store)
    await until(lambda: topics == later)
    await connector.disconnect()
    assert (connector.report().sent, connector.report().lost) == (100, 0)
    assert warnings(caplog) == []


@pytest.mark.parametrize("topics", [1, 1_000_000], ids=["one topic", "ever new topics"])
async def test_continuous_publications_do_not_delay_a_subscription(
    broker: Broker, topics: int, limits: pytest.MonkeyPatch
) -> None:
    limits.setattr(subscriber, "RETAINED_GAP", 1.0)  # longer than any gap of the publisher
    has_subscribed = threading.Event()

    def publish(other: Listener) -> None:
        for number in range(1_000_000):
            other.publish(PAUSE.replace("global", f"task/t{number % topics}"), json.dumps(constraint()), retain=True)
            if has_subscribed.wait(0.025):
                return

    connector = await connected(broker)
    with Listener(broker.port, "none") as other:
        publishing = asyncio.create_task(asyncio.to_thread(publish, other))
        try:
            await with_timeout(connector.subscribe(CONTROL, RecordingCallback()))
            assert not publishing.done()
        finally:
            has_subscribed.set()
            await publishing
    await connector.disconnect()
