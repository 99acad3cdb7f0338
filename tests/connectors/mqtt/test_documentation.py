"""The documentation's commands, as they are typed, on a real broker."""

import os
import re
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import cascade as cs
from cascade.connectors.mqtt import MqttConnector
from cascade.runtime.control.constraint import CONSTRAINT_TYPES, parse_constraint, parse_topic
from cascade.telemetry.topics import control_filter
from cascade.telemetry.wire import received
from tests import servers
from tests.connectors.mqtt.broker import Broker, Listener, Message
from tests.waiting import HANG, until_blocking

DOCS = Path(__file__).parents[3] / "docs"
BLOCK = re.compile(r"^```sh\n(.*?)^```", re.MULTILINE | re.DOTALL)


def commands(page: str, program: str) -> list[str]:
    return [found for found in BLOCK.findall((DOCS / page).read_text("utf-8")) if found.startswith(program)]


@pytest.fixture
def local(broker: Broker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Broker:
    """A broker that Mosquitto's clients take for the one on port 1883."""
    for program in ("mosquitto_sub", "mosquitto_pub"):
        servers.program(program)
        (tmp_path / program).write_text(f"-p {broker.port}\n")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    return broker


@pytest.fixture
def control(local: Broker) -> Iterator[Listener]:
    with Listener(local.port, control_filter("local", "default")) as listener:
        yield listener


def test_what_mosquitto_pub_says_is_a_constraint_and_retained(control: Listener) -> None:
    typed = commands("control.md", "mosquitto_pub")
    prefix = control_filter("local", "default").removesuffix("#")
    seen = set()
    for count, command in enumerate(typed, 1):
        subprocess.run(["sh", "-c", command], check=True, timeout=HANG)
        message = _nth(control, count)
        assert (message.qos, message.retain) == (1, True)
        scope, kind = parse_topic(message.topic, prefix)
        if message.payload:
            seen.add(parse_constraint(scope, kind, received(message.payload)).type)
    assert seen == set(CONSTRAINT_TYPES)


@cs.task
async def load() -> int:
    return 1


@cs.task
async def report(x: int) -> int:
    return x


@pytest.mark.parametrize("command", commands("mqtt.md", "mosquitto_sub"))
def test_what_mosquitto_sub_shows_is_the_run(local: Broker, tmp_path: Path, command: str) -> None:
    if "jq" in command:
        servers.program("jq")
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
    """Run again and again: nobody says when mosquitto_sub has subscribed."""

    def run_again() -> bool:
        cs.run(report(load()), connector=MqttConnector("127.0.0.1", broker.port), log_level="ERROR")
        return shown()

    until_blocking(run_again)


def test_the_first_pages_pause_holds_a_run_until_it_is_cleared(local: Broker) -> None:
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
