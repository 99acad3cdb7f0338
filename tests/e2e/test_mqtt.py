"""Runs on MQTT: messages to subscribers, control by an operator, and kills of the broker."""

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
    """Return a project per test, so that tests do not receive each other's messages and constraints."""
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


def run_messages(messages: list[Message]) -> list[dict[str, Any]]:
    """Return the messages of runs, without presence, control and states."""
    return [json.loads(one.payload) for one in messages if one.topic.endswith("/events")]


def ended(messages: list[Message]) -> bool:
    """Whether the run has ended. Checks the last messages only, because it is called for each message."""
    return any(b"ENGINE_STOPPED" in one.payload for one in messages[-3:])


def test_the_messages_of_a_run_match_its_trace(
    processes: Processes, environment: dict[str, str], operator: Listener
) -> None:
    result = run(environment, "report")
    received = run_messages(operator.wait_for(ended))
    assert [one["seq"] for one in received] == list(range(len(received)))
    assert {one["run_id"] for one in received} == {result["run_id"]}
    spans = processes.wait_for(result["trace_id"], lambda spans: bool(spans.named("run summary")))
    completed = [one for one in received if one["body"].get("state") == "COMPLETED"]
    assert len(completed) == 11
    for one in completed:
        span = spans.by_id(one["span_id"])
        assert span.name in {one["body"]["task_name"], f"map({one['body']['task_name']})"}
        assert span.duration_ms == pytest.approx(one["body"]["duration_ms"], abs=0.01)


def test_an_operator_pauses_and_resumes_a_run(
    processes: Processes, environment: dict[str, str], project: str, operator: Listener
) -> None:
    topic = control_topic("local", project, "task/count", "pause")
    operator.publish(topic, '{"type": "pause"}', retain=True)
    with Run(environment, "many", 10) as running:
        operator.wait_for(lambda messages: any(_is_paused(one) for one in run_messages(messages)))
        operator.publish(topic, "", retain=True)
        result = running.result()
    assert result["value"] == 10
    spans = processes.wait_for(result["trace_id"], lambda spans: bool(spans.named("run count")))
    wait = spans.one("count wait")
    assert wait.attributes["cascade.wait.reason"] == "paused"
    assert wait.attributes["cascade.control.scope"] == "task/count"


def _is_paused(one: dict[str, Any]) -> bool:
    body = one["body"]
    return bool(body.get("state") == "PENDING" and body["metadata"]["reason"] == "paused")


def test_a_pause_survives_a_restart_of_the_broker(own_processes: Processes, project: str) -> None:
    stack = own_processes
    environment = {**stack.environment, "CASCADE_MQTT_URL": stack.mqtt_url(), "CASCADE_PROJECT_ID": project}
    topic = control_topic("local", project, "task/further", "pause")
    with listener(stack, project) as before:
        before.publish(topic, '{"type": "pause"}', retain=True)
    stack.mosquitto.stop()
    stack.mosquitto.start()
    with listener(stack, project) as operator, Run(environment, "halves", 10) as running:
        running.wait_for_line("disturb")
        running.resume()
        operator.wait_for(lambda messages: any(_is_paused(one) for one in run_messages(messages)))
        operator.publish(topic, "", retain=True)
        assert running.result()["value"] == 5


def test_the_broker_is_killed_during_a_run(own_processes: Processes, project: str) -> None:
    """The run and its trace are not affected. Messages with QoS 1 are delivered after the restart of the broker."""
    stack = own_processes
    environment = {**stack.environment, "CASCADE_MQTT_URL": stack.mqtt_url(), "CASCADE_PROJECT_ID": project}
    with Run(environment, "halves", 40) as running:
        running.wait_for_line("disturb")
        stack.mosquitto.kill()
        running.resume()
        running.wait_for_line("disturb")
        with ExitStack() as subscriptions:
            with running.frozen():  # messages before the subscription would be lost
                stack.mosquitto.start()
                subscriber = subscriptions.enter_context(listener(stack, project))
            result = running.result()
            received = run_messages(subscriber.wait_for(ended))
    assert result["value"] == 20
    further = {one["span_id"] for one in received if one["body"].get("state") == "COMPLETED"}
    spans = stack.wait_for(result["trace_id"], lambda spans: bool(spans.named("run count")))
    assert {span.span_id for span in spans.named("further")} <= further
    assert spans.orphans() == []


@pytest.mark.parametrize(
    ("user", "password"), [(local.RUNNER, "guessed"), ("nobody", local.PASSWORD)], ids=["password", "user"]
)
def test_wrong_credentials_are_reported_and_do_not_affect_the_run(
    processes: Processes, environment: dict[str, str], user: str, password: str
) -> None:
    with Run({**environment, "CASCADE_MQTT_URL": processes.mqtt_url(user, password)}, "report") as running:
        result = running.result()
    assert result["value"].startswith("v1: 12 brief")
    assert "Not authorized" in running.stderr
    assert password not in running.stderr
    spans = processes.wait_for(result["trace_id"], lambda spans: bool(spans.named("run summary")))
    assert spans.orphans() == []


def test_a_runner_may_not_publish_control_messages(
    processes: Processes, environment: dict[str, str], project: str, operator: Listener
) -> None:
    """By the access list, the broker drops a pause from a runner, and the run continues."""
    topic = control_topic("local", project, "global", "pause")
    with listener(processes, project, local.RUNNER) as runner:
        runner.publish(topic, '{"type": "pause"}', retain=True)
    assert run(environment, "many", 5)["value"] == 5
    received = operator.wait_for(ended)
    assert [one for one in received if one.topic == topic] == []


def test_all_messages_of_a_large_run_are_received(environment: dict[str, str], operator: Listener) -> None:
    assert run(environment, "many", 2_000)["value"] == 2_000
    received = run_messages(operator.wait_for(ended))
    assert [one["seq"] for one in received] == list(range(len(received)))
    assert sum(one["body"].get("state") == "COMPLETED" for one in received) == 2_002
