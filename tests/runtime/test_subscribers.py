import asyncio
from typing import Any
from unittest.mock import AsyncMock, Mock, call, patch

import pytest

import cascade as cs
from cascade.connectors.memory import MemoryConnector
from cascade.messaging.bus import MessageBus as Messages
from cascade.runtime import events
from cascade.runtime.bus import MessageBus
from cascade.runtime.subscribers import HumanReadableLogSubscriber, TelemetrySubscriber
from cascade.spec.lazy_types import MappedLazyResult
from cascade.spec.protocols import Connector
from cascade.telemetry.identity import place_run, span_id
from cascade.testing import FixedClock, RunRecord, record_run

RUN = "0f8fad5b-d9cb-469f-a165-70867728950e"


def test_each_event_is_printed_once() -> None:
    bus = MessageBus()
    with patch("cascade.runtime.subscribers.messaging_bus") as messages:
        HumanReadableLogSubscriber(bus)
        for event in (
            events.RunStarted(target_tasks=["t"], params={"p": 1}),
            events.TaskExecutionStarted(task_name="a"),
            events.TaskExecutionFinished(task_name="a", status="Succeeded", duration=1.5),
            events.TaskExecutionFinished(task_name="b", status="Failed", duration=2.5, error="E: x"),
            events.TaskSkipped(task_name="c", reason="Pruned"),
            events.TaskRetrying(task_name="d", attempt=1, max_attempts=2, delay=0.5, error="E: y"),
            events.RunFinished(status="Succeeded", duration=3.0),
            events.RunFinished(status="Failed", duration=4.0, error="E: z"),
        ):
            bus.publish(event)
    assert messages.mock_calls == [
        call.info("run.started", target_tasks=["t"]),
        call.info("run.started_with_params", params={"p": 1}),
        call.info("task.started", task_name="a"),
        call.info("task.finished_success", task_name="a", duration=1.5),
        call.error("task.finished_failure", task_name="b", duration=2.5, error="E: x"),
        call.info("task.skipped", task_name="c", reason="Pruned"),
        call.warning("task.retrying", task_name="d", attempt=1, max_attempts=2, delay=0.5, error="E: y"),
        call.info("run.finished_success", duration=3.0),
        call.error("run.finished_failure", duration=4.0, error="E: z"),
    ]


@pytest.mark.parametrize(
    ("kind", "msg_id"),
    [
        (events.ResourceReleased, "resource.teardown_failed"),
        (events.ResourceSetupFailed, "resource.setup_failed"),
    ],
)
def test_an_error_of_a_resource_is_printed(kind: type[events.ResourceEvent], msg_id: str) -> None:
    bus, printed = MessageBus(), Mock(spec=Messages)
    HumanReadableLogSubscriber(bus, min_level="ERROR", messages=printed)
    bus.publish(kind(resource_name="fine"))
    bus.publish(kind(resource_name="db", exception=events.ErrorInfo("sqlite3.OperationalError", "locked")))
    assert printed.mock_calls == [call.error(msg_id, resource_name="db", error="OperationalError: locked")]


@pytest.mark.parametrize("own", [True, False], ids=["a bus of its own", "the global bus"])
def test_messages_go_to_the_given_bus_else_to_the_global_one(own: bool) -> None:
    bus, given = MessageBus(), Mock(spec=Messages)
    with patch("cascade.runtime.subscribers.messaging_bus") as global_one:
        HumanReadableLogSubscriber(bus, messages=given if own else None)
        bus.publish(events.TaskSkipped(task_name="c", reason="Pruned"))
    expected = [call.info("task.skipped", task_name="c", reason="Pruned")]
    assert (given.mock_calls, global_one.mock_calls) == ((expected, []) if own else ([], expected))


def test_an_invalid_level_is_rejected_before_any_subscription() -> None:
    with pytest.raises(ValueError, match=r"min_level='LOUD': choose from DEBUG, INFO, WARNING, ERROR, OFF"):
        HumanReadableLogSubscriber(MessageBus(), min_level="LOUD")


class BrokenFactory:
    """A factory of items that raises."""

    name = "broken"

    def map(self, **kwargs: Any) -> Any:
        return MappedLazyResult(self, kwargs)

    def __call__(self, x: int) -> Any:
        raise ValueError("broken")


LEVELS = ["debug", "info", "warning", "error"]


@pytest.mark.parametrize("level", LEVELS)
async def test_no_message_below_the_level_reaches_the_bus_of_messages(level: str) -> None:
    bus, printed = MessageBus(), Mock(spec=Messages)
    HumanReadableLogSubscriber(bus, min_level=level, messages=printed)
    engine = cs.Engine(cs.NativeSolver(), cs.LocalExecutor(), bus)
    half = cs.task(lambda x: 10 // x, name="half", threaded=False)
    await engine.run(half.map(x=[1, 2]))
    with pytest.raises(ZeroDivisionError):
        await engine.run(half.map(x=[1, 0]).with_retry(1))
    with pytest.raises(ValueError, match="broken"):
        await engine.run(BrokenFactory().map(x=[1]))
    assert {name for name, *_ in printed.mock_calls} == set(LEVELS[LEVELS.index(level) :])


def test_off_subscribes_to_nothing() -> None:
    bus = MessageBus()
    HumanReadableLogSubscriber(bus, min_level="off")
    assert not any(bus.handlers(kind) for kind in (events.RunStarted, events.TaskExecutionFinished, events.RunFinished))


async def test_events_reach_the_connector_in_the_next_iteration_of_the_loop() -> None:
    bus, connector = MessageBus(), AsyncMock(spec=Connector)
    TelemetrySubscriber(bus, connector)
    bus.publish(events.RunStarted(run_id=RUN, target_tasks=["t"]))
    bus.publish(events.RunStarted())
    await asyncio.sleep(0)
    ((topic, payload, qos),) = [publish.args for publish in connector.publish.await_args_list]
    assert topic == f"cascade/telemetry/local/default/{RUN}/events"
    assert (payload["body"]["event"], qos) == ("ENGINE_STARTED", 1)


async def test_messages_have_ids_and_sequence_numbers() -> None:
    bus, connector = MessageBus(), MemoryConnector()
    TelemetrySubscriber(bus, connector)
    bus.publish(events.RunStarted(run_id=RUN, trace=place_run(RUN)))
    bus.publish(events.TaskExecutionStarted(run_id=RUN, task_id="a", map_id="m", map_index=3))
    await bus.drain(RUN)
    run, task = connector.payloads
    assert [p["seq"] for p in (run, task)] == [0, 1]
    assert {p["trace_id"] for p in (run, task)} == {RUN.replace("-", "")}
    assert (run["span_id"], run["parent_span_id"]) == (span_id(RUN), "")
    assert (task["span_id"], task["parent_span_id"]) == (span_id(RUN, "a"), span_id(RUN, "m"))


async def test_time_never_runs_backwards_within_a_run() -> None:
    bus, connector = MessageBus(), MemoryConnector()
    TelemetrySubscriber(bus, connector)
    for timestamp in (1_700_000_100.0, 1_700_000_000.0, 1_700_000_200.0):
        bus.publish(events.RunStarted(run_id=RUN, timestamp=timestamp))
    await bus.drain(RUN)
    stamps = [p["ts"] for p in connector.payloads]
    assert stamps == sorted(stamps)
    assert stamps[0] == stamps[1] == "2023-11-14T22:15:00.000000Z"


async def test_a_drain_is_bounded_and_logs_the_number_of_lost_messages(caplog: pytest.LogCaptureFixture) -> None:
    class Stuck(MemoryConnector):
        async def publish(self, topic: str, payload: dict[str, Any], qos: int = 0) -> None:
            await asyncio.Event().wait()

    bus = MessageBus()
    subscriber = TelemetrySubscriber(bus, Stuck(), drain_timeout=0.01)
    bus.publish(events.RunStarted(run_id=RUN))
    await bus.drain(RUN)
    assert subscriber.lost == 1
    assert caplog.messages == ["Stuck: 1 telemetry messages were lost: not published within 0.01 s"]


async def test_an_interrupt_during_the_conversion_of_an_event_loses_no_other_event() -> None:
    bus, connector = MessageBus(), MemoryConnector()
    subscriber = TelemetrySubscriber(bus, connector)
    bus.publish(events.RunStarted(run_id=RUN, trace=place_run(RUN)))
    for task_id in "abc":
        bus.publish(events.TaskExecutionStarted(run_id=RUN, task_id=task_id))
    interrupt = patch("cascade.runtime.subscribers.timestamp", side_effect=KeyboardInterrupt)
    with interrupt, pytest.raises(KeyboardInterrupt):
        await subscriber.drain(RUN)
    await bus.drain(RUN)
    assert [p["body"].get("task_id") for p in connector.payloads] == [None, "b", "c"]
    assert [p["seq"] for p in connector.payloads] == [0, 1, 2]


@pytest.mark.parametrize("variable", ["CASCADE_ORG_ID", "CASCADE_PROJECT_ID"])
def test_an_invalid_org_or_project_is_rejected_before_the_run(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, "a/b")
    with pytest.raises(ValueError, match=variable):
        TelemetrySubscriber(MessageBus(), MemoryConnector())


@cs.task
def one(x: int = 0) -> int:
    return 1


@cs.task
def flaky() -> str:
    task = cs.current_task()
    if task is not None and task.attempt < 2:
        raise ConnectionError("password=hunter2 refused")
    return "ok"


@cs.task
def gather(*values: Any) -> Any:
    return values


def bodies(run: RunRecord, name: str) -> list[dict[str, Any]]:
    return [p["body"] for p in run.payloads if p["body"].get("task_name") == name]


def recorded(target: Any, **options: Any) -> RunRecord:
    return record_run(target, spans=False, **options)


def test_a_run_starts_with_its_tasks_and_ends_with_its_counts() -> None:
    target = gather(one(), one(), one.map(x=[1, 2]), flaky().with_retry(1), cs.Param("p", default="x"))
    run = recorded(target)
    first, last = run.payloads[0]["body"], run.payloads[-1]["body"]
    assert first["metadata"]["tasks"] == {"gather": 1, "one": 2, "map(one)": 1, "flaky": 1}
    assert first["metadata"]["inputs"] == ["p"]
    assert (last["event"], last["status"]) == ("ENGINE_STOPPED", "Succeeded")
    assert last["metadata"]["counts"] == {"completed": 7, "retried": 1}
    assert last["duration_ms"] == (last["metadata"]["end_ns"] - last["metadata"]["start_ns"]) / 1e6
    assert "params" not in first["metadata"]


def test_a_terminal_message_has_all_data_of_the_task() -> None:
    a, b = one(), one()
    target = gather(a, [b])
    run = recorded(target, clock=FixedClock(step=0.001))
    (header, _) = run.messages[-2]
    body = bodies(run, "gather")[-1]
    metadata = body["metadata"]
    assert body["duration_ms"] == (metadata["end_ns"] - metadata["start_ns"]) / 1e6
    assert metadata["result"] == "success"
    assert metadata["function"].endswith("gather")
    assert metadata["link_count"] == 2
    assert {link["span_id"] for link in metadata["links"]} == {span_id(header.run_id, x._uuid) for x in (a, b)}
    assert header.parent_span_id == span_id(header.run_id)


def test_a_retry_is_pending_with_the_attempt_that_failed() -> None:
    run = recorded(flaky().with_retry(2, delay=0.002))
    assert run.states("flaky") == ["RUNNING", "PENDING", "COMPLETED"]
    pending, completed = (b["metadata"] for b in bodies(run, "flaky")[1:])
    assert (pending["reason"], pending["attempt"], pending["max_attempts"], pending["delay_ms"]) == ("retry", 1, 2, 2.0)
    assert pending["exception"]["type"] == "ConnectionError"
    assert [a["attempt"] for a in completed["attempts"]] == [1, 2]
    assert completed["attempts"][0]["span_id"] == pending["span_id"]
    assert [w["reason"] for w in completed["waits"]] == ["retry"]


def test_secrets_do_not_leave_in_errors() -> None:
    def leak() -> None:
        raise ValueError("cannot reach https://user:hunter2@example.org")

    run = recorded(cs.task(leak)())
    assert isinstance(run.error, ValueError)
    assert "hunter2" not in str(run.payloads)


def test_a_failure_has_the_stack_trace_from_the_users_code_on() -> None:
    def explode() -> None:
        raise LookupError("boom")

    run = recorded(cs.task(explode)())
    (failed,) = (b for b in bodies(run, "explode") if b["state"] == "FAILED")
    exception = failed["metadata"]["exception"]
    assert (failed["error"], exception["type"], exception["message"]) == ("LookupError: boom", "LookupError", "boom")
    assert "in explode" in exception["stacktrace"]
    assert "cascade/runtime" not in exception["stacktrace"]


class HostileError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text for you")

    __repr__ = __str__


@pytest.mark.parametrize("name", ["\ud800", "a" * 100_000, "new\nline", "\x00", "", "☃"])
def test_hostile_names_never_break_a_run(name: str) -> None:
    assert recorded(cs.task(lambda: 1, name=name or "x")()).value == 1


def test_hostile_errors_are_raised_unchanged() -> None:
    def explode() -> None:
        raise HostileError

    assert isinstance(recorded(cs.task(explode)()).error, HostileError)


def test_a_blocked_task_is_pending_and_its_wait_is_in_the_terminal_message() -> None:
    slow = cs.task(lambda x: __import__("time").sleep(0.005), name="slow")
    run = recorded(slow.map(x=[1, 2]).with_constraints(cpu=1), system_resources={"cpu": 1})
    assert sorted(run.states("slow")) == ["COMPLETED", "COMPLETED", "PENDING", "RUNNING", "RUNNING"]
    waits = [b["metadata"].get("waits") for b in bodies(run, "slow") if b["state"] == "COMPLETED"]
    assert [w[0]["reason"] for w in waits if w] == ["resource"]
