"""The same runs on MQTT: what a watcher hears, what an operator may do, and what the broker's death changes."""

import json
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from cascade.telemetry.topics import control_topic
from stack import local
from tests.connectors.mqtt.broker import Listener, Message
from tests.e2e.runs import Run, run
from tests.e2e.stacks import Processes


@pytest.fixture
def project() -> str:
    """Tests do not hear each other's runs, nor obey each other's constraints."""
    return f"p{uuid.uuid4().hex}"


@pytest.fixture
def environment(processes: Processes, project: str) -> dict[str, str]:
    return {**processes.environment, "CASCADE_MQTT_URL": processes.mqtt_url(), "CASCADE_PROJECT_ID": project}


def listener(stack: Processes, project: str, user: str = local.OPERATOR) -> Listener:
    pattern = f"cascade/+/local/{project}/#"
    return Listener(stack.ports.mqtt, pattern, username=user, password=local.PASSWORD)


@pytest.fixture
def operator(processes: Processes, project: str) -> Iterator[Listener]:
    with listener(processes, project) as found:
        yield found


def told(messages: list[Message]) -> list[dict[str, Any]]:
    """The messages of runs, without presence, control and states."""
    return [json.loads(one.payload) for one in messages if one.topic.endswith("/events")]


def ended(messages: list[Message]) -> bool:
    """The run's last word is there; presence may come after it. Asked for each message, so it looks at few."""
    return any(b"ENGINE_STOPPED" in one.payload for one in messages[-3:])


def test_a_watcher_hears_what_the_trace_shows(
    processes: Processes, environment: dict[str, str], operator: Listener
) -> None:
    said = run(environment, "report")
    heard = told(operator.wait_for(ended))
    assert [one["seq"] for one in heard] == list(range(len(heard)))
    assert {one["run_id"] for one in heard} == {said["run_id"]}
    spans = processes.wait_for(said["trace_id"], lambda spans: bool(spans.named("run summary")))
    completed = [one for one in heard if one["body"].get("state") == "COMPLETED"]
    assert len(completed) == 11
    for one in completed:
        span = spans.by_id(one["span_id"])
        assert span.name in {one["body"]["task_name"], f"map({one['body']['task_name']})"}
        assert span.duration_ms == pytest.approx(one["body"]["duration_ms"], abs=0.01)


def test_an_operator_pauses_and_lets_go(
    processes: Processes, environment: dict[str, str], project: str, operator: Listener
) -> None:
    topic = control_topic("local", project, "task/count", "pause")
    operator.publish(topic, '{"type": "pause"}', retain=True)
    with Run(environment, "many", 10) as running:
        operator.wait_for(lambda messages: any(_is_held(one) for one in told(messages)))
        operator.publish(topic, "", retain=True)
        said = running.result()
    assert said["value"] == 10
    spans = processes.wait_for(said["trace_id"], lambda spans: bool(spans.named("run count")))
    wait = spans.one("count wait")
    assert wait.attributes["cascade.wait.reason"] == "paused"
    assert wait.attributes["cascade.control.scope"] == "task/count"


def _is_held(one: dict[str, Any]) -> bool:
    body = one["body"]
    return bool(body.get("state") == "PENDING" and body["metadata"]["reason"] == "paused")


def test_a_pause_survives_the_brokers_restart(own_processes: Processes, project: str) -> None:
    stack = own_processes
    environment = {**stack.environment, "CASCADE_MQTT_URL": stack.mqtt_url(), "CASCADE_PROJECT_ID": project}
    topic = control_topic("local", project, "task/further", "pause")
    with listener(stack, project) as before:
        before.publish(topic, '{"type": "pause"}', retain=True)
    stack.mosquitto.stop()
    stack.mosquitto.start()
    with listener(stack, project) as operator, Run(environment, "halves", 10) as running:
        running.wait_for_line("disturb")
        running.go_on()
        operator.wait_for(lambda messages: any(_is_held(one) for one in told(messages)))
        operator.publish(topic, "", retain=True)
        assert running.result()["value"] == 5


def test_the_broker_is_killed_in_the_middle_of_a_run(own_processes: Processes, project: str) -> None:
    """The run and its trace do not notice; what was to be said with QoS 1 is said when the broker is back."""
    stack = own_processes
    environment = {**stack.environment, "CASCADE_MQTT_URL": stack.mqtt_url(), "CASCADE_PROJECT_ID": project}
    with Run(environment, "halves", 40) as running:
        running.wait_for_line("disturb")
        stack.mosquitto.kill()
        running.go_on()
        running.wait_for_line("disturb")
        with ExitStack() as watching:
            with running.frozen():  # what it sends before anybody watches would be sent to nobody
                stack.mosquitto.start()
                watcher = watching.enter_context(listener(stack, project))
            said = running.result()
            heard = told(watcher.wait_for(ended))
    assert said["value"] == 20
    further = {one["span_id"] for one in heard if one["body"].get("state") == "COMPLETED"}
    spans = stack.wait_for(said["trace_id"], lambda spans: bool(spans.named("run count")))
    assert {span.span_id for span in spans.named("further")} <= further
    assert spans.orphans() == []


@pytest.mark.parametrize(
    ("user", "password"), [(local.RUNNER, "guessed"), ("nobody", local.PASSWORD)], ids=["password", "user"]
)
def test_wrong_credentials_are_told_and_change_nothing(
    processes: Processes, environment: dict[str, str], user: str, password: str
) -> None:
    with Run({**environment, "CASCADE_MQTT_URL": processes.mqtt_url(user, password)}, "report") as running:
        said = running.result()
    assert said["value"].startswith("v1: 12 brief")
    assert "Not authorized" in running.stderr
    assert password not in running.stderr
    spans = processes.wait_for(said["trace_id"], lambda spans: bool(spans.named("run summary")))
    assert spans.orphans() == []


def test_a_runner_may_not_steer(
    processes: Processes, environment: dict[str, str], project: str, operator: Listener
) -> None:
    """The access list: a runner's pause reaches nobody, and what runs goes on."""
    topic = control_topic("local", project, "global", "pause")
    with listener(processes, project, local.RUNNER) as runner:
        runner.publish(topic, '{"type": "pause"}', retain=True)
    assert run(environment, "many", 5)["value"] == 5
    heard = operator.wait_for(ended)
    assert [one for one in heard if one.topic == topic] == []


def test_of_a_large_run_all_messages_are_heard(environment: dict[str, str], operator: Listener) -> None:
    assert run(environment, "many", 2_000)["value"] == 2_000
    heard = told(operator.wait_for(ended))
    assert [one["seq"] for one in heard] == list(range(len(heard)))
    assert sum(one["body"].get("state") == "COMPLETED" for one in heard) == 2_002
