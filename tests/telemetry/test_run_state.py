"""Tests of the fold with the messages of real runs."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest
from jsonschema import Draft202012Validator

import cascade as cs
from cascade.connectors.memory import MemoryConnector
from cascade.runtime.events import TaskExecutionStarted
from cascade.telemetry.limits import MAX_LISTED_TASKS
from cascade.telemetry.run_state import RunStateFold, encode_state
from cascade.telemetry.schema import load
from cascade.telemetry.wire import dumps, loads, parse_timestamp
from cascade.testing import record_run
from tests.lab.waiting import until, with_timeout
from tests.runtime.control.controlled_engine import ControlledEngine

VALIDATOR = Draft202012Validator(load("state"))
FIRST = 0
"""A time before any delay of a retry ends."""


def folded(payloads: list[dict[str, Any]], now_ns: int = FIRST, **options: int) -> dict[str, Any]:
    """Return the state as a subscriber receives it."""
    fold = RunStateFold(payloads[0])
    for payload in payloads:
        fold.add(payload)
    state = loads(dumps(encode_state(fold.state(now_ns, **options))))
    VALIDATOR.validate(state)
    return state


def names(tasks: list[dict[str, Any]]) -> list[str]:
    return [task["task_name"] for task in tasks]


@cs.task
async def extract() -> list[int]:
    return [1, 2, 3]


@cs.task
async def check(number: int) -> int:
    return number


@cs.task
async def fail(_: Any = None) -> int:
    raise LookupError("the key is gone")


def test_the_state_has_the_name_and_the_tags_of_the_run() -> None:
    connector = MemoryConnector()
    cs.run(extract(), connector=connector, log_level="OFF", name="nightly", tags=["finance", "password=hunter2"])
    states = [folded(connector.payloads[: count + 1]) for count in range(len(connector.payloads))]
    assert {(state["target"], *state["tags"]) for state in states} == {("nightly", "finance", "password=***")}
    assert folded(record_run(extract(), spans=False).payloads)["tags"] == []


def test_the_state_includes_the_latest_message() -> None:
    run = record_run(check(cs.task(len, name="count")(extract())), spans=False)
    states = [folded(run.payloads[: count + 1]) for count in range(len(run.payloads))]
    assert [state["seq"] for state in states] == [payload["seq"] for payload in run.payloads]
    assert [state["ts"] for state in states] == [payload["ts"] for payload in run.payloads]
    shown = [(state["status"], names(state["running"]), state["counts"]["completed"]) for state in states]
    assert shown == [
        ("running", [], 0),
        ("running", ["extract"], 0),
        ("running", [], 1),
        ("running", ["count"], 1),
        ("running", [], 2),
        ("running", ["check"], 2),
        ("running", [], 3),
        ("success", [], 3),
    ]


def test_a_state_has_the_target_the_times_and_the_identity_of_its_run() -> None:
    run = record_run(check(2), spans=False)
    first, last = run.payloads[0], run.payloads[-1]
    state = folded(run.payloads)
    assert {name: state[name] for name in ("run_id", "org_id", "project_id", "source", "trace_id", "v")} == {
        name: first[name] for name in ("run_id", "org_id", "project_id", "source", "trace_id", "v")
    }
    metadata = last["body"]["metadata"]
    assert (state["target"], state["tasks"]) == ("check", 1)
    for name in ("start", "end"):
        assert parse_timestamp(state[f"{name}_time"]) == metadata[f"{name}_ns"] // 1000 * 1000
    assert state["duration_ms"] == last["body"]["duration_ms"]
    assert (folded([first])["end_time"], folded([first])["duration_ms"]) == (None, None)


def test_the_counts_equal_those_of_the_last_message() -> None:
    skipped = cs.task(lambda: 1, name="never")().run_if(cs.task(lambda: False, name="no")())
    for target in (check.map(number=[1, 2]), skipped, fail.map(_=[1]), check(7).with_retry(1)):
        run = record_run(target, spans=False)
        *before, last = run.payloads
        counts = {name: count for name, count in folded(before)["counts"].items() if count}
        final = last["body"]["metadata"]["counts"]
        assert counts == {name: count for name, count in final.items() if name not in {"retried", "held_back"}}
        assert folded(run.payloads)["counts"] == {"pending": 0, "running": 0, **folded(before)["counts"]}


def up_to(payloads: list[dict[str, Any]], name: str, state: str, number: int = 1) -> list[dict[str, Any]]:
    """Return the messages of a run up to the first, or another, message of a task in a state."""
    found = [n for n, p in enumerate(payloads) if (p["body"].get("task_name"), p["body"].get("state")) == (name, state)]
    return payloads[: found[number - 1] + 1]


def test_items_of_maps_are_tasks_and_come_after_other_tasks() -> None:
    all_run, release = asyncio.Event(), asyncio.Event()
    running = []

    @cs.task
    async def hold(item: int) -> int:
        running.append(item)
        if len(running) == 50:
            all_run.set()
        await release.wait()
        return 1

    @cs.task
    async def wait_for_all() -> None:
        await all_run.wait()

    @cs.task
    async def last(_: Any) -> None:
        release.set()

    @cs.task
    async def join(*_: Any) -> None: ...

    run = record_run(join(hold.map(item=list(range(50))), last(wait_for_all())), spans=False)
    state = folded(up_to(run.payloads, "last", "RUNNING"))
    assert names(state["running"][:2]) == ["map(hold)", "last"]
    assert state["running"][0]["map_size"] == 50
    assert [task["map_index"] for task in state["running"][2:]] == list(range(MAX_LISTED_TASKS - 2))
    assert (state["tasks"], state["counts"]["running"]) == (4 + 50, 52)
    assert names(folded(up_to(run.payloads, "last", "RUNNING"), listed=1)["running"]) == ["map(hold)"]


@pytest.mark.parametrize(
    ("kind", "params", "reason"),
    [
        ("pause", None, "paused"),
        ("concurrency", {"limit": 1}, "concurrency"),
        ("rate_limit", {"rate": "1/h"}, "rate_limit"),
    ],
)
async def test_a_task_that_a_constraint_holds_has_its_reason_and_its_constraint(
    kind: str, params: Any, reason: str
) -> None:
    release = asyncio.Event()

    @cs.task
    async def hold(_: int) -> None:
        await release.wait()

    controlled = ControlledEngine()
    await controlled.constrain("task/hold", kind, params)
    work = controlled.start(hold.map(_=[1, 2]))
    await until(lambda: any(p["body"].get("state") == "PENDING" for p in controlled.connector.payloads))
    seen = up_to(controlled.connector.payloads, "hold", "PENDING")
    release.set()
    await controlled.clear("task/hold", kind)
    await with_timeout(work)
    waiting = folded(seen)["waiting"]
    assert [(task["task_name"], task["reason"]) for task in waiting] == [("hold", reason)]
    assert waiting[0]["constraint"] == {"scope": "task/hold", "type": kind, "id": f"{kind}-1"}
    assert parse_timestamp(waiting[0]["start_time"]) == seen[-1]["body"]["metadata"]["start_ns"] // 1000 * 1000
    assert folded(seen)["counts"]["pending"] == 1
    assert folded(controlled.connector.payloads)["waiting"] == []


def test_tasks_that_wait_for_a_resource_or_an_executor_have_that_reason() -> None:
    slow = cs.task(lambda x: __import__("time").sleep(0.005), name="slow")
    run = record_run(slow.map(x=[1, 2]).with_constraints(cpu=1), system_resources={"cpu": 1}, spans=False)
    state = folded(up_to(run.payloads, "slow", "PENDING"))
    assert [(task["task_name"], task["reason"]) for task in state["waiting"]] == [("slow", "resource")]
    assert "constraint" not in state["waiting"][0]
    assert folded(up_to(run.payloads, "slow", "RUNNING", 2))["waiting"] == []


def flaky(failures: int, name: str = "flaky") -> Any:
    calls = list(range(failures))

    async def work() -> int:
        if calls:
            raise ConnectionError(f"failure {calls.pop()} of password=hunter2")
        return 1

    return cs.task(work, name=name)()


def test_a_retry_waits_until_its_delay_is_over_and_then_runs() -> None:
    run = record_run(flaky(2).with_retry(5, delay=0.002), spans=False)
    payloads = up_to(run.payloads, "flaky", "PENDING", 2)
    metadata = payloads[-1]["body"]["metadata"]
    due_ns = metadata["end_ns"] + round(metadata["delay_ms"] * 1e6)
    (waiting,) = folded(payloads, due_ns - 1)["waiting"]
    assert (waiting["reason"], waiting["attempt"]) == ("retry", 2)
    assert parse_timestamp(waiting["start_time"]) == metadata["end_ns"] // 1000 * 1000
    assert parse_timestamp(waiting["end_time"]) == due_ns // 1000 * 1000
    later = folded(payloads, due_ns)
    assert later["waiting"] == []
    assert [(task["attempt"], task["start_time"]) for task in later["running"]] == [(3, waiting["end_time"])]


def test_the_end_of_a_delay_is_the_next_change_without_a_message() -> None:
    run = record_run(flaky(1).with_retry(5, delay=0.002), spans=False)
    payloads = up_to(run.payloads, "flaky", "PENDING")
    fold = RunStateFold(payloads[0])
    assert fold.next_change_ns() is None
    for payload in payloads:
        fold.add(payload)
    metadata = payloads[-1]["body"]["metadata"]
    assert fold.next_change_ns() == metadata["end_ns"] + 2_000_000
    fold.state(metadata["end_ns"] + 2_000_000)
    assert fold.next_change_ns() is None


async def test_an_attempt_that_was_held_back_after_its_delay_runs_again() -> None:
    started, paused, release = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def work() -> int:
        if started.is_set():
            await release.wait()
            return 1
        started.set()
        await paused.wait()
        raise ConnectionError

    controlled = ControlledEngine()
    run = controlled.start(cs.task(work, name="flaky")().with_retry(1, delay=0.001))
    await with_timeout(started.wait())
    await controlled.constrain("task/flaky", "pause")
    paused.set()
    await until(lambda: any(p["body"]["metadata"].get("reason") == "paused" for p in controlled.connector.payloads))
    assert [task["reason"] for task in folded(controlled.connector.payloads)["waiting"]] == ["paused"]
    await controlled.clear("task/flaky", "pause")
    second = (await with_timeout(controlled.wait_for(TaskExecutionStarted, 2))).attempt
    release.set()
    assert await with_timeout(run) == 1
    state = folded(up_to(controlled.connector.payloads, "flaky", "RUNNING", 2))
    assert (second, [task["attempt"] for task in state["running"]], state["waiting"]) == (2, [2], [])


def test_the_last_error_has_its_task_or_resource_and_no_secret() -> None:
    run = record_run(flaky(1).with_retry(1), spans=False)
    error = folded(run.payloads)["last_error"]
    assert (error["type"], error["task_name"]) == ("ConnectionError", "flaky")
    assert "failure 0" in error["message"]
    assert "hunter2" not in json.dumps(folded(run.payloads))
    assert error["time"] == up_to(run.payloads, "flaky", "PENDING")[-1]["ts"]
    assert "stacktrace" not in error

    @cs.resource
    def broken() -> Iterator[int]:
        raise OSError("no disk")
        yield 1

    @cs.task
    def use(db: int = cs.inject(broken)) -> int:
        return db

    error = folded(record_run(use(), spans=False).payloads)["last_error"]
    assert (error["type"], error["message"]) == ("OSError", "no disk")


def test_listed_tasks_and_errors_have_the_label_of_the_call() -> None:
    run = record_run(flaky(1).with_retry(1, delay=0.002).with_label("monday"), spans=False)
    assert [task["label"] for task in folded(up_to(run.payloads, "flaky", "RUNNING"))["running"]] == ["monday"]
    failed = up_to(run.payloads, "flaky", "PENDING")
    end_ns = failed[-1]["body"]["metadata"]["end_ns"]
    assert [task["label"] for task in folded(failed, end_ns)["waiting"]] == ["monday"]
    assert [task["label"] for task in folded(failed, end_ns + 2_000_000)["running"]] == ["monday"]
    assert folded(run.payloads)["last_error"]["label"] == "monday"


def test_the_error_of_a_teardown_has_its_resource() -> None:
    @cs.resource
    def broken() -> Iterator[int]:
        yield 1
        raise OSError("cannot close")

    @cs.task
    def use(db: int = cs.inject(broken)) -> int:
        return db

    error = folded(record_run(use(), spans=False).payloads)["last_error"]
    assert (error["resource_name"], error["type"], error["message"]) == ("broken", "OSError", "cannot close")


def test_a_failed_run_has_the_error_of_the_task_that_ended_it() -> None:
    run = record_run(check(fail()), spans=False)
    state = folded(run.payloads)
    assert (state["status"], state["running"], state["counts"]["failed"]) == ("failure", [], 1)
    error = state["last_error"]
    assert (error["type"], error["task_name"], error["message"]) == ("LookupError", "fail", "the key is gone")


def test_a_cancelled_run_has_the_reason_and_its_tasks_have_no_errors() -> None:
    connector = MemoryConnector()
    runs: list[asyncio.Future[Any]] = []

    async def cancel() -> None:
        runs[0].cancel("by the test")
        await asyncio.Event().wait()

    async def main() -> None:
        runs.append(asyncio.ensure_future(cs.run_async(cs.task(cancel)(), connector=connector, log_level="OFF")))
        with pytest.raises(asyncio.CancelledError):
            await runs[0]

    asyncio.run(main())
    state = folded(connector.payloads)
    assert (state["status"], state["counts"]["cancelled"]) == ("cancellation", 1)
    assert (state["last_error"]["type"], state["last_error"]["message"]) == ("cancellation", "cancelled: by the test")
    assert "task_name" not in state["last_error"]


def test_a_truncated_message_is_counted() -> None:
    run = record_run(check(fail()), spans=False)
    for payload in run.payloads:
        for key in ("tasks", "exception", "counts"):
            payload["body"]["metadata"].pop(key, None)
    state = folded(run.payloads)
    assert (state["status"], state["tasks"], state["counts"]["failed"]) == ("failure", 0, 1)
    assert state["last_error"]["message"].endswith("LookupError: the key is gone")
