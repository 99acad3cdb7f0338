"""The shipped access list on a real broker: organizations are separated."""

import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

import cascade as cs
from cascade.connectors.mqtt import MqttConnector
from cascade.telemetry.topics import control_topic
from tests.connectors.mqtt.broker import Broker, Listener, Message
from tests.connectors.mqtt.messages import events, warnings
from tests.lab import programs
from tests.lab.waiting import HANG

ACL = Path(__file__).parents[3] / "stack" / "mosquitto" / "acl.example"
ACME, GLOBEX = ("acme", "etl"), ("globex", "reports")
PAUSE = '{"type": "pause"}'


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    folder = tmp_path_factory.mktemp("guarded")
    users = [line.split()[1] for line in ACL.read_text("utf-8").splitlines() if line.startswith("user ")]
    program = programs.program("mosquitto_passwd")
    passwords = folder / "passwords"
    passwords.touch(0o600)
    for user in users:
        subprocess.run([program, "-b", str(passwords), user, secret(user)], check=True, capture_output=True)
    with Broker(folder, f"password_file {passwords}", f"acl_file {ACL}", anonymous=False) as broker:
        yield broker


def secret(user: str) -> str:
    return f"secret of {user}"


def name_of(owner: tuple[str, str], role: str) -> str:
    return "-".join([*owner, role])


class User(Listener):
    """A user of the access list. It receives all messages that it may read, and the refusals."""

    def __init__(self, broker: Broker, owner: tuple[str, str], role: str) -> None:
        user = name_of(owner, role)
        super().__init__(broker.port, "cascade/#", username=user, password=secret(user))
        self._answers: dict[int, str] = {}
        self.client.on_publish = lambda _c, _u, mid, reason, _p: self._answers.update({mid: str(reason)})

    def publish_pause(self, owner: tuple[str, str], scope: str, payload: str, qos: int = 1) -> str:
        """Publish a retained pause, or remove it with an empty payload. Return the answer of the broker."""
        info = self.client.publish(control_topic(*owner, scope, "pause"), payload, qos, retain=True)
        info.wait_for_publish(HANG)
        return self._answers.pop(info.mid)


class TwoTaskRun:
    """A run of two tasks in a thread; the second one may start once `may_continue` is set."""

    def __init__(self, broker: Broker, user: str) -> None:
        self.started, self.may_continue = threading.Event(), threading.Event()
        self.run_id = ""
        self._connector = MqttConnector("127.0.0.1", broker.port, username=user, password=secret(user))
        self.value: Future[Any] = Future()
        # A daemon, so that a wrongly paused run does not outlive the test.
        threading.Thread(target=lambda: self.value.set_result(self._run()), daemon=True).start()

    def end(self) -> Any:
        self.may_continue.set()
        return self.value.result(HANG)

    def _run(self) -> Any:
        @cs.task
        def first() -> int:
            task = cs.current_task()
            self.run_id = task.run_id if task else ""
            self.started.set()
            assert self.may_continue.wait(HANG)
            return 1

        @cs.task
        def second(x: int) -> int:
            return x + 1

        return cs.run(second(first()), connector=self._connector, log_level="ERROR")


@pytest.fixture
def start(guarded: Broker, monkeypatch: pytest.MonkeyPatch) -> Callable[..., TwoTaskRun]:
    def start(owner: tuple[str, str], *, as_runner_of: tuple[str, str] | None = None) -> TwoTaskRun:
        monkeypatch.setenv("CASCADE_ORG_ID", owner[0])
        monkeypatch.setenv("CASCADE_PROJECT_ID", owner[1])
        going = TwoTaskRun(guarded, name_of(as_runner_of or owner, "runner"))
        assert going.started.wait(HANG)
        return going

    return start


def bodies(messages: list[Message]) -> list[dict[str, Any]]:
    return [payload["body"] for payload in events(messages)]


def has_ended(messages: list[Message]) -> bool:
    return any(body.get("event") == "ENGINE_STOPPED" for body in bodies(messages))


def all_received(user: User, owner: tuple[str, str]) -> list[Message]:
    """Return the messages before a message of the user, without the retained states of runs."""
    topic = control_topic(*owner, "global", "pause")
    user.publish(topic, b"")
    return [
        m
        for m in user.wait_for(lambda seen: any(m.topic == topic for m in seen))
        if not m.topic.endswith(("/state", topic))
    ]


@pytest.mark.parametrize("qos", [0, 1])
def test_an_operator_cannot_pause_a_run_of_another_organisation(
    guarded: Broker, start: Callable[..., TwoTaskRun], qos: int
) -> None:
    with User(guarded, ACME, "operator") as other_user, User(guarded, GLOBEX, "operator") as operator:
        going = start(GLOBEX)
        for scope in ("global", f"run/{going.run_id}", "task/*"):
            # MQTT has no answer to QoS 0, so the refusal is not reported.
            assert other_user.publish_pause(GLOBEX, scope, PAUSE, qos) == ("Not authorized" if qos else "Success")
        assert all_received(other_user, ACME) == []  # the run would have received it by now
        assert going.end() == 2
        received = bodies(operator.wait_for(has_ended))
        assert not [body for body in received if body["type"] == "ControlEvent" or body.get("state") == "PENDING"]
    with User(guarded, GLOBEX, "operator") as operator:
        assert all_received(operator, GLOBEX) == []  # nothing is retained for later runs


def test_an_operator_cannot_read_another_organisations_telemetry(
    guarded: Broker, start: Callable[..., TwoTaskRun]
) -> None:
    with User(guarded, ACME, "operator") as other_user, User(guarded, GLOBEX, "operator") as operator:
        assert start(GLOBEX).end() == 2
        active = operator.wait_for(has_ended)
        assert {m.topic.split("/")[1] for m in active} >= {"telemetry", "status"}
        assert all_received(other_user, ACME) == []


def test_the_right_operator_can_pause_and_resume(guarded: Broker, start: Callable[..., TwoTaskRun]) -> None:
    with User(guarded, GLOBEX, "operator") as operator:
        going = start(GLOBEX)
        scope = f"run/{going.run_id}"
        assert operator.publish_pause(GLOBEX, scope, PAUSE) == "Success"
        operator.wait_for(lambda seen: any(body.get("action") == "APPLIED" for body in bodies(seen)))
        going.may_continue.set()
        operator.wait_for(lambda seen: any(body.get("state") == "PENDING" for body in bodies(seen)))
        assert not going.value.done()
        assert operator.publish_pause(GLOBEX, scope, "") == "Success"
        assert going.end() == 2
        held = [body for body in bodies(operator.wait_for(has_ended)) if body.get("state") == "PENDING"]
        assert [(body["task_name"], body["metadata"]["reason"]) for body in held] == [("second", "paused")]


@pytest.mark.parametrize("owner", [ACME, GLOBEX])
def test_a_runner_cannot_publish_constraints(guarded: Broker, owner: tuple[str, str]) -> None:
    with User(guarded, GLOBEX, "runner") as runner:
        assert runner.publish_pause(owner, "global", PAUSE) == "Not authorized"
    with User(guarded, owner, "operator") as operator:
        assert all_received(operator, owner) == []


def test_a_runner_cannot_publish_for_another_organisation(
    guarded: Broker, start: Callable[..., TwoTaskRun], caplog: pytest.LogCaptureFixture
) -> None:
    with User(guarded, ACME, "operator") as operator:
        assert start(ACME, as_runner_of=GLOBEX).end() == 2
        assert all_received(operator, ACME) == []
    assert "Not authorized" in " ".join(warnings(caplog))


@pytest.mark.parametrize(
    ("options", "is_shown"), [("-V 5 -q 1", True), ("-V 5 -q 0", False), ("-V 311 -q 1", False), ("-q 0", False)]
)
def test_mosquitto_pub_shows_a_refusal_only_with_mqtt_5_and_qos_1(
    guarded: Broker, options: str, is_shown: bool
) -> None:
    user = name_of(ACME, "operator")
    command = [programs.program("mosquitto_pub"), "-p", str(guarded.port), "-u", user, "-P", secret(user)]
    command += [*options.split(), "-t", control_topic(*GLOBEX, "global", "pause"), "-m", PAUSE]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANG, check=False)
    assert ("Not authorized" in done.stdout + done.stderr) == is_shown
