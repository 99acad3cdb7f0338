"""The commands of the documentation, on a real broker."""

import os
import re
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

import cascade as cs
from cascade.connectors.mqtt import MqttConnector
from cascade.connectors.mqtt.outbox import CAPACITY, MESSAGE_BYTES
from cascade.runtime.control.constraint import CONSTRAINT_TYPES, parse_constraint, parse_topic
from cascade.telemetry.topics import control_filter, control_topic
from cascade.telemetry.wire import decode_incoming, dumps
from cascade.testing import MemoryConnector
from stack.addresses import reserved_port
from tests.connectors.mqtt.broker import Broker, Listener, Message
from tests.connectors.mqtt.messages import warnings
from tests.lab import programs
from tests.lab.waiting import HANG, until_blocking

DOCS = Path(__file__).parents[3] / "docs"
BLOCK = re.compile(r"^```sh\n(.*?)^```", re.MULTILINE | re.DOTALL)


def commands(page: str, program: str) -> list[str]:
    return [found for found in BLOCK.findall((DOCS / page).read_text("utf-8")) if found.startswith(program)]


@pytest.fixture
def local(broker: Broker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Broker:
    """A broker that the clients of Mosquitto use instead of the one on port 1883."""
    for program in ("mosquitto_sub", "mosquitto_pub"):
        programs.program(program)
        (tmp_path / program).write_text(f"-p {broker.port}\n")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    return broker


@pytest.fixture
def control(local: Broker) -> Iterator[Listener]:
    with Listener(local.port, control_filter("local", "default")) as listener:
        yield listener


def test_the_command_of_mosquitto_pub_publishes_a_retained_constraint(control: Listener) -> None:
    typed = commands("control.md", "mosquitto_pub")
    prefix = control_filter("local", "default").removesuffix("#")
    seen = set()
    for count, command in enumerate(typed, 1):
        subprocess.run(["sh", "-c", command], check=True, timeout=HANG)
        message = _nth(control, count)
        assert (message.qos, message.retain) == (1, True)
        scope, kind = parse_topic(message.topic, prefix)
        if message.payload:
            seen.add(parse_constraint(scope, kind, decode_incoming(message.payload)).type)
    assert seen == set(CONSTRAINT_TYPES)


@cs.task
async def load() -> int:
    return 1


@cs.task
async def report(x: int) -> int:
    return x


@pytest.mark.parametrize("command", commands("mqtt.md", "mosquitto_sub"))
def test_the_command_of_mosquitto_sub_shows_the_run(local: Broker, tmp_path: Path, command: str) -> None:
    if "jq" in command:
        programs.program("jq")
    shown = tmp_path / "shown"
    # jq writes at once only to a terminal.
    typed = command.replace("jq -r", "jq --unbuffered -r")
    with shown.open("wb") as output:
        watching = subprocess.Popen(["sh", "-c", typed], stdout=output, start_new_session=True)
    try:
        expected = _expected(command)
        _run_until(lambda: all(word in shown.read_text("utf-8") for word in expected), local)
    finally:
        os.killpg(watching.pid, signal.SIGTERM)
        watching.wait(HANG)


def _expected(command: str) -> list[str]:
    if "status" in command:
        return ["cascade/status/local/default/", " online\n", " offline\n"]
    if "jq" in command:
        return ["ENGINE_STARTED\t\n", "RUNNING\tload\n", "COMPLETED\treport\n", "ENGINE_STOPPED\t\n"]
    return ["/events {", "ENGINE_STARTED", "COMPLETED", "ENGINE_STOPPED", " online\n"]


def _nth(listener: Listener, count: int) -> Message:
    return listener.wait_for(lambda messages: len(messages) >= count)[count - 1]


def _run_until(shown: Callable[[], bool], broker: Broker) -> None:
    """Run repeatedly, since mosquitto_sub does not report when it has subscribed."""

    def run_again() -> bool:
        cs.run(report(load()), connector=MqttConnector("127.0.0.1", broker.port), log_level="ERROR")
        return shown()

    until_blocking(run_again)


def test_the_pause_of_the_readme_holds_a_run_until_it_is_removed(local: Broker) -> None:
    pause, clear = commands("control.md", "mosquitto_pub")[:2]
    subprocess.run(["sh", "-c", pause], check=True, timeout=HANG)
    connector = MqttConnector("127.0.0.1", local.port)
    with Listener(local.port, "cascade/telemetry/#") as listener:
        values: list[int] = []
        work = threading.Thread(
            target=lambda: values.append(cs.run(report(load()), connector=connector, log_level="ERROR")), daemon=True
        )
        work.start()
        listener.wait_for(lambda seen: any(b'"PENDING"' in message.payload for message in seen))
        assert values == []
        subprocess.run(["sh", "-c", clear], check=True, timeout=HANG)
        work.join(HANG)
    assert values == [1]


def test_without_a_configuration_mosquitto_accepts_local_connections_only(tmp_path: Path) -> None:
    command = [programs.program("mosquitto"), "-p", str(reserved_port())]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=tmp_path) as process:
        assert process.stderr is not None
        assert any("Starting in local only mode" in line for line in process.stderr)
        process.kill()


@pytest.mark.parametrize(
    ("lines", "receive_maximum", "packet_size"),
    [
        ((), 20, None),
        (("max_inflight_messages 0", "max_packet_size 1048576"), None, 1 << 20),
        (("message_size_limit 1048576",), 20, None),
    ],
)
def test_mosquitto_sends_its_limits_to_the_client(
    tmp_path: Path, lines: tuple[str, ...], receive_maximum: int | None, packet_size: int | None
) -> None:
    connected: Future[Any] = Future()
    with Broker(tmp_path, *lines) as broker:
        client = Client(CallbackAPIVersion.VERSION2, protocol=MQTTProtocolVersion.MQTTv5)
        client.on_connect = lambda _client, _data, _flags, _reason, properties: connected.set_result(properties)
        client.connect("127.0.0.1", broker.port)
        client.loop_start()
        limits = connected.result(HANG)
        client.disconnect()
        client.loop_stop()
    assert getattr(limits, "ReceiveMaximum", None) == receive_maximum
    assert getattr(limits, "MaximumPacketSize", None) == packet_size


def test_by_default_mosquitto_queues_1000_messages_for_a_subscriber(tmp_path: Path) -> None:
    with Broker(tmp_path) as broker:
        session = ["-p", str(broker.port), "-V", "5", "-q", "1", "-t", "t", "-i", "away", "-c", "-x", "3600"]
        subprocess.run([programs.program("mosquitto_sub"), *session, "-E"], check=True, timeout=HANG)
        with Listener(broker.port, "t") as other_client:
            for number in range(1_500):
                other_client.client.publish("t", str(number), 1)
            other_client.wait_for(lambda seen: len(seen) == 1_500)
            with subprocess.Popen(["mosquitto_sub", *session], stdout=subprocess.PIPE, text=True) as back:
                assert back.stdout is not None
                queued = [back.stdout.readline()]
                other_client.publish("t", "mark")
                queued += iter(back.stdout.readline, "mark\n")
                back.kill()
    assert len(queued) == 1_000


def test_mosquitto_answers_a_forbidden_subscription_with_success(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, limits: pytest.MonkeyPatch
) -> None:
    limits.setattr("cascade.connectors.mqtt.subscriber.PRESENCE_TIMEOUT", 0.05)
    rules = tmp_path / "acl"
    rules.write_text("topic write cascade/#\n")
    with Broker(tmp_path, f"acl_file {rules}") as broker:
        with Listener(broker.port) as operator:
            operator.publish(control_topic("local", "default", "global", "pause"), '{"type": "pause"}', retain=True)
        assert cs.run(report(load()), connector=MqttConnector("127.0.0.1", broker.port)) == 1
    (warning,) = warnings(caplog)
    assert "allow this user to read cascade/status/local/default/" in warning


def test_the_buffer_holds_the_stated_number_of_messages() -> None:
    connector = MemoryConnector()
    cs.run(cs.task(abs, name="measure_the_absolute").map(x=list(range(100))), connector=connector, log_level="OFF")
    size = sum(len(dumps(payload)) + MESSAGE_BYTES for payload in connector.payloads) / len(connector.payloads)
    assert 60_000 < CAPACITY / size < 80_000
