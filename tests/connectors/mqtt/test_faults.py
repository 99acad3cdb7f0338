"""Brokers that are unreachable, freeze, restart, refuse, or end the connection do not change a run."""

import contextlib
import errno
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import cascade as cs
from cascade.connectors.mqtt import MqttConnector, health
from cascade.connectors.mqtt.client import Client
from cascade.connectors.mqtt.health import SHORT_TIMEOUT, ConnectionHealth
from cascade.runtime.exceptions import TelemetryLostError
from cascade.telemetry.topics import events_topic, status_topic
from stack.addresses import reserved_port
from tests.connectors.mqtt.broker import Broker, Listener
from tests.connectors.mqtt.messages import events, numbers, statuses, telemetry, warnings
from tests.connectors.mqtt.waiting import delay_connections, is_connected
from tests.lab.programs import program
from tests.lab.waiting import HANG, NEVER, until, until_blocking

TOPIC = events_topic("local", "default", "run")
ITEMS = 300
MESSAGES = 2 * ITEMS + 4
"""Messages of a run: two for each task, for the map, and for the run."""


@cs.task
async def double(x: int) -> int:
    return 2 * x


def run(connector: MqttConnector, target: Any = None) -> None:
    flow = double.map(x=list(range(ITEMS))) if target is None else target
    assert cs.run(flow, connector=connector, log_level="ERROR") == [2 * x for x in range(ITEMS)]


def restore_limits(health: ConnectionHealth, limits: pytest.MonkeyPatch) -> None:
    """Restore the time limits of the product, also for the present connection."""
    limits.undo()
    health.record_activity()


def test_a_refused_port_loses_only_the_messages(caplog: pytest.LogCaptureFixture) -> None:
    port = reserved_port()
    run(MqttConnector("127.0.0.1", port, flush_timeout=NEVER))
    (warning,) = warnings(caplog)
    count = f"{MESSAGES} of {MESSAGES} messages were lost"
    assert warning == f"MqttConnector: {count} at 127.0.0.1:{port}: connection refused"


@pytest.mark.usefixtures("real_limits")
def test_the_flush_to_an_unresponsive_broker_is_short(broker: Broker, caplog: pytest.LogCaptureFixture) -> None:
    with broker.frozen():
        run(MqttConnector("127.0.0.1", broker.port, flush_timeout=NEVER))
    (warning,) = warnings(caplog)
    assert f"{MESSAGES} messages were lost" in warning
    assert "not acknowledged" in warning


def test_later_waits_for_an_unresponsive_broker_are_shorter(
    broker: Broker, limits: pytest.MonkeyPatch, latest_health: Callable[[], ConnectionHealth]
) -> None:
    connector = MqttConnector("127.0.0.1", broker.port, flush_timeout=NEVER)
    run(connector)
    assert connector.report().lost == 0
    with broker.frozen():
        restore_limits(latest_health(), limits)
        run(connector)
        limits.setattr(health, "ANSWER_TIMEOUT", NEVER)
        run(connector)
        lost = connector.report().lost
        assert lost == 2 * MESSAGES
        assert latest_health().wait_limit == SHORT_TIMEOUT  # an answer of the resumed broker would end it
    run(connector)
    assert connector.report().lost == lost
    assert latest_health().wait_limit == NEVER


async def test_an_unsuccessful_flush_shortens_the_next_one(
    broker: Broker, limits: pytest.MonkeyPatch, latest_health: Callable[[], ConnectionHealth]
) -> None:
    connector = MqttConnector("127.0.0.1", broker.port, flush_timeout=NEVER)
    await connector.connect()
    await until(lambda: is_connected(connector))
    with broker.frozen():
        restore_limits(latest_health(), limits)
        for number in range(2):
            await connector.connect()
            await connector.publish(TOPIC, telemetry(number), 1)
            await connector.disconnect()
            assert latest_health().wait_limit == SHORT_TIMEOUT
    await connector.disconnect()


def test_connecting_is_retried_after_a_lack_of_file_descriptors(
    broker: Broker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    begin, failures = Client.__init__, iter(range(2))

    def begin_later(client: Client, *arguments: Any) -> None:
        if next(failures, None) is not None:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        begin(client, *arguments)

    monkeypatch.setattr(Client, "__init__", begin_later)
    connector = MqttConnector("127.0.0.1", broker.port)
    run(connector)
    assert connector.report().lost == 0
    assert warnings(caplog) == []


def test_the_flush_to_a_frozen_broker_is_short(
    broker: Broker,
    caplog: pytest.LogCaptureFixture,
    limits: pytest.MonkeyPatch,
    latest_health: Callable[[], ConnectionHealth],
) -> None:
    connector = MqttConnector("127.0.0.1", broker.port, flush_timeout=NEVER)

    @cs.task
    async def freeze(found: list[int]) -> list[int]:
        await until(lambda: connector.report().sent > 0)
        broker.freeze()
        restore_limits(latest_health(), limits)
        return found

    try:
        run(connector, freeze(double.map(x=list(range(ITEMS)))))
    finally:
        broker.unfreeze()
    (warning,) = warnings(caplog)
    assert "messages were lost" in warning


def test_strict_raises_telemetry_lost_error() -> None:
    connector = MqttConnector("127.0.0.1", reserved_port(), strict=True)
    with pytest.raises(TelemetryLostError, match="connection refused") as caught:
        run(connector)
    assert caught.value.lost == MESSAGES


@pytest.mark.usefixtures("real_limits")
def test_the_warning_has_the_reason_of_an_unknown_host_name(caplog: pytest.LogCaptureFixture) -> None:
    run(MqttConnector("broker.invalid"))
    (warning,) = warnings(caplog)
    assert "lost at broker.invalid:1883: " in warning


@pytest.mark.parametrize("pause", [0.0, 0.3])
async def test_a_restarted_broker_receives_all_messages_in_order(
    broker: Broker, pause: float, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    connector = MqttConnector("127.0.0.1", broker.port)
    count = 4_000
    await connector.connect()
    await until(lambda: is_connected(connector))
    for number in range(count // 2):
        await connector.publish(TOPIC, telemetry(number), 1)
    await until(lambda: connector.report().sent > 200)
    listening = delay_connections(monkeypatch)
    broker.kill()
    await until(lambda: not is_connected(connector))
    time.sleep(pause)  # noqa: ASYNC251 - the loop may be busy all that time
    broker.start()
    with Listener(broker.port) as listener:
        listening.set()
        for number in range(count // 2, count):
            await connector.publish(TOPIC, telemetry(number), 1)
        await connector.disconnect()
        found = numbers(listener.wait_for(lambda seen: numbers(seen[-5:])[-1:] == [count - 1]))
    assert found == list(range(count)), "acknowledged messages are repeated first and in order"
    assert warnings(caplog) == []
    assert connector.report().lost == 0


def test_a_run_continues_while_the_broker_restarts(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with Broker(tmp_path, "max_queued_messages 0", "max_inflight_messages 0") as broker:
        connector = MqttConnector("127.0.0.1", broker.port)

        @cs.task
        def restart(x: int) -> int:
            broker.kill()
            broker.start()
            return x

        target = double.map(x=[restart(double(x)) for x in range(1)] + list(range(200)))
        assert len(cs.run(target, connector=connector, log_level="ERROR")) == 201
        assert connector.report().lost == 0
        assert (connector.report().lost, connector.report().queued) == (0, 0)
    assert warnings(caplog) == []


def test_a_broker_that_starts_during_the_run_receives_all_messages(
    broker: Broker,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    latest_health: Callable[[], ConnectionHealth],
) -> None:
    broker.kill()
    connector = MqttConnector("127.0.0.1", broker.port)

    @cs.task
    def start(found: list[int]) -> list[int]:
        until_blocking(lambda: latest_health().is_dead)
        listening = delay_connections(monkeypatch)
        broker.start()
        stack.enter_context(listener)
        listening.set()
        return found

    with contextlib.ExitStack() as stack:
        listener = Listener(broker.port)
        run(connector, start(double.map(x=list(range(ITEMS)))))
        assert numbers(listener.wait_for(_has_ended)) == list(range(MESSAGES + 2))
    assert warnings(caplog) == []


def _has_ended(messages: list[Any]) -> bool:
    return any(payload["body"].get("event") == "ENGINE_STOPPED" for payload in events(messages))


def password_file(folder: Path) -> Path:
    path = folder / "passwords"
    path.touch(mode=0o600)
    for name, secret in (("ada", "right:/?#@"), ("bob", "b")):
        subprocess.run([program("mosquitto_passwd"), "-b", str(path), name, secret], check=True, capture_output=True)
    return path


def test_a_wrong_password_is_reported_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with Broker(tmp_path, f"password_file {password_file(tmp_path)}", anonymous=False) as broker:
        run(MqttConnector("127.0.0.1", broker.port, username="ada", password="wrong", flush_timeout=NEVER))
        (warning,) = warnings(caplog)
        assert "not authorized" in warning.lower()
        assert "wrong" not in warning
        caplog.clear()
        run(MqttConnector("127.0.0.1", broker.port, username="ada", password="right:/?#@"))
        run(MqttConnector.from_url(f"mqtt://ada:right%3A%2F%3F%23%40@127.0.0.1:{broker.port}"))
        assert warnings(caplog) == []


async def test_after_refused_credentials_the_delay_is_30_seconds(
    tmp_path: Path, latest_health: Callable[[], ConnectionHealth]
) -> None:
    with Broker(tmp_path, anonymous=False) as broker:
        connector = MqttConnector("127.0.0.1", broker.port)
        await connector.connect()
        await until(lambda: latest_health().is_dead)
        assert latest_health().next_delay() == 30.0
        await connector.disconnect()


def test_messages_refused_by_an_access_list_are_counted_as_lost(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rules = tmp_path / "acl"
    rules.write_text("topic readwrite cascade/status/#\n")
    with Broker(tmp_path, f"acl_file {rules}") as broker:
        run(MqttConnector("127.0.0.1", broker.port))
    (warning,) = warnings(caplog)
    # A broker does not answer QoS 0, so only the loss of QoS 1 is detected.
    assert f"{ITEMS + 3} of {MESSAGES} messages were lost" in warning
    assert "Not authorized, on topic cascade/telemetry/local/default/" in warning


async def test_two_clients_with_one_id_do_not_reconnect_forever(
    broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = (MqttConnector("127.0.0.1", broker.port, client_id="same") for _ in range(2))
    with Listener(broker.port, "cascade/telemetry/#") as listener:
        await first.connect()
        await until(lambda: is_connected(first))
        await second.connect()
        await until(lambda: len(warnings(caplog)) > 0 and is_connected(first) and is_connected(second))
        for number, connector in enumerate((first, second)):
            await connector.publish(TOPIC, telemetry(number), 1)
            await connector.disconnect()
        assert numbers(listener.wait_for(lambda seen: len(seen) == 2)) == [0, 1]
    found = warnings(caplog)
    assert len(found) in {1, 2}, "one or both of them change their id, once"
    # Only some versions of Mosquitto send the reason.
    text = r"MqttConnector: another client (has|seems to have) the id 'same': continuing as 'same-[0-9a-f]{8}'"
    assert all(re.fullmatch(text, warning) for warning in found), found


@pytest.mark.parametrize("most", [1, 2, 20])
def test_receive_maximum_limits_the_messages_in_flight(
    tmp_path: Path, most: int, caplog: pytest.LogCaptureFixture
) -> None:
    with Broker(tmp_path, "max_queued_messages 0", f"max_inflight_messages {most}") as broker:
        connector = MqttConnector("127.0.0.1", broker.port)
        run(connector)
        assert connector.report().sent == MESSAGES
    assert warnings(caplog) == []


@pytest.mark.parametrize("limit", ["message_size_limit", "max_packet_size"])
@pytest.mark.parametrize("qos", [0, 1])
async def test_a_message_above_the_limit_is_sent_without_its_optional_parts(
    tmp_path: Path, limit: str, qos: int, caplog: pytest.LogCaptureFixture
) -> None:
    with Broker(tmp_path, f"{limit} 10000") as broker, Listener(broker.port, "cascade/telemetry/#") as listener:
        connector = MqttConnector("127.0.0.1", broker.port)
        await connector.connect()
        for number in range(100):
            big = {"output": "x" * 20_000} if number == 50 else {}
            await connector.publish(TOPIC, telemetry(number, **big), qos if big else 1)
        await connector.disconnect()
        messages = listener.wait_for(lambda seen: numbers(seen[-5:])[-1:] == [99])
    assert warnings(caplog) == []
    if limit == "message_size_limit" and qos == 0:  # Mosquitto drops it without an answer
        assert sorted({*numbers(messages), 50}) == list(range(100))
        return
    assert sorted(set(numbers(messages))) == list(range(100))
    assert events(messages)[numbers(messages).index(50)]["body"]["metadata"] == {"truncated": ["output"]}


@pytest.mark.parametrize("limit", ["message_size_limit", "max_packet_size"])
async def test_a_message_that_cannot_be_shrunk_enough_is_dropped_alone(
    tmp_path: Path, limit: str, caplog: pytest.LogCaptureFixture
) -> None:
    with Broker(tmp_path, f"{limit} 10000") as broker, Listener(broker.port, "cascade/telemetry/#") as listener:
        connector = MqttConnector("127.0.0.1", broker.port)
        await connector.connect()
        for number in range(100):
            more = {"unknown": "x" * 20_000} if number in {20, 70} else {}
            await connector.publish(TOPIC, telemetry(number, **more), 1)
        await connector.disconnect()
        found = numbers(listener.wait_for(lambda seen: numbers(seen[-5:])[-1:] == [99]))
    assert sorted({*found, 20, 70}) == list(range(100))
    (warning,) = warnings(caplog)
    assert warning.startswith("MqttConnector: 2 of 100 messages were lost")
    assert (
        "larger than the broker accepts" if limit == "max_packet_size" else "the broker closed the connection each time"
    ) in warning


def test_a_frozen_subscriber_receives_the_queued_messages(
    shared_broker: Broker, project: str, caplog: pytest.LogCaptureFixture
) -> None:
    pattern = f"cascade/telemetry/local/{project}/+/events"
    options = ["-p", str(shared_broker.port), "-V", "5", "-q", "1", "-t", pattern, "-C", str(MESSAGES + 1), "-F", "%q"]
    with Listener(shared_broker.port, pattern) as other_client:
        slow = subprocess.Popen(["mosquitto_sub", *options], stdout=subprocess.PIPE, text=True)
        try:
            # It has subscribed when it receives the retained message.
            other_client.publish(f"cascade/telemetry/local/{project}/hello/events", b"hello", retain=True)
            assert slow.stdout is not None
            assert slow.stdout.readline()
            slow.send_signal(signal.SIGSTOP)
            run(MqttConnector("127.0.0.1", shared_broker.port))
            other_client.wait_for(lambda seen: _has_ended([m for m in seen if m.payload != b"hello"]))
            slow.send_signal(signal.SIGCONT)
            assert slow.wait(HANG) == 0
        finally:
            slow.kill()
            slow.stdout.close() if slow.stdout else None
            other_client.publish(f"cascade/telemetry/local/{project}/hello/events", b"", retain=True)
    assert warnings(caplog) == []


WORKER = """
import asyncio, sys, time
from cascade.connectors.mqtt import MqttConnector

async def main():
    connector = MqttConnector("127.0.0.1", int(sys.argv[1]))
    await connector.connect()
    print("connected", flush=True)
    await asyncio.sleep(3600)

asyncio.run(main())
"""


def test_the_status_of_a_killed_worker_is_offline(shared_broker: Broker, listener: Listener, project: str) -> None:
    environment = {**os.environ, "CASCADE_PROJECT_ID": project}
    worker = subprocess.Popen([sys.executable, "-c", WORKER, str(shared_broker.port)], env=environment)
    try:
        (online,) = listener.wait_for(lambda seen: len(seen) == 1)
        assert (online.payload, online.retain) == (b"online", True)
    finally:
        worker.kill()
        worker.wait()
    seen = listener.wait_for(lambda seen: len(seen) == 2)
    assert statuses(seen) == [(b"online", True), (b"offline", True)]
    topic = seen[1].topic
    assert re.fullmatch(status_topic("local", project, rf".+-{worker.pid}-[0-9a-f]{{4}}"), topic)
    with Listener(shared_broker.port, topic) as later:
        (left,) = later.wait_for(lambda seen: len(seen) == 1)
        assert (left.payload, left.retain) == (b"offline", True)
        assert left.properties is not None
        assert 86_000 < left.properties.MessageExpiryInterval <= 86_400  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
    listener.publish(topic, b"", retain=True)


EXITS_DURING_A_RUN = """
import asyncio, sys
from cascade.connectors.mqtt import MqttConnector
from tests.lab.time_limits import raise_time_limits

raise_time_limits()

async def main():
    connector = MqttConnector("127.0.0.1", int(sys.argv[1]))
    await connector.connect()
    await connector.publish(sys.argv[2], {"seq": 1}, 1)
    sys.exit(3)

asyncio.run(main())
"""


def test_an_interpreter_that_exits_during_a_run_publishes_offline(
    shared_broker: Broker, listener: Listener, project: str
) -> None:
    environment = {**os.environ, "CASCADE_PROJECT_ID": project}
    topic = events_topic("local", project, "run")
    command = [sys.executable, "-c", EXITS_DURING_A_RUN, str(shared_broker.port), topic]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=HANG)
    assert (done.returncode, done.stderr) == (3, "")
    seen = listener.wait_for(lambda seen: (b"", True) in statuses(seen))
    assert numbers(seen) == [1]
    assert statuses(seen) == [(b"online", True), (b"offline", False), (b"", True)]
