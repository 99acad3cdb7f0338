"""Whole runs that are controlled from outside."""

import asyncio
import re
import time
from typing import Any

import pytest

import cascade as cs
from cascade.connectors.memory import MemoryConnector
from cascade.runtime.control.controller import MAX_PATTERNS
from cascade.runtime.control.notifier import AT_ONCE, REFUSALS_AT_ONCE
from cascade.runtime.engine import run_nested
from cascade.runtime.events import ControlDecision, RunFinished, TaskBlocked, TaskExecutionStarted
from tests.lab.waiting import NEVER, with_timeout
from tests.runtime.control.controlled_engine import ControlledEngine


@cs.task
async def one() -> int:
    return 1


@cs.task
async def double(x: int) -> int:
    await asyncio.sleep(0)
    return 2 * x


class Counted:
    """A function of a task that counts its concurrent calls."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.now = self.most = self.calls = 0
        self._seconds = seconds

    async def __call__(self, x: int) -> int:
        self.now, self.calls = self.now + 1, self.calls + 1
        self.most = max(self.most, self.now)
        for _ in range(3):
            await asyncio.sleep(self._seconds)
        self.now -= 1
        return x


async def test_a_retained_constraint_applies_to_later_runs() -> None:
    controlled = ControlledEngine()
    await controlled.constrain("global", "pause")
    for _ in range(2):
        run = controlled.start(one())
        await controlled.wait_for(TaskBlocked)
        assert controlled.started == []
        await controlled.clear("global", "pause")
        assert await with_timeout(run) == 1
        await controlled.constrain("global", "pause")
        controlled.events.clear()
    assert controlled.connector.connections == 0


async def test_a_retained_constraint_for_a_known_run_id_applies_to_its_first_task() -> None:
    controlled = ControlledEngine(run_ids=iter(["first", "second"]).__next__)
    await controlled.constrain("run/second", "pause")
    assert await with_timeout(controlled.start(one())) == 1
    assert controlled.decisions == []
    run = controlled.start(one())
    await controlled.wait_for(TaskBlocked)
    assert controlled.decisions == [("APPLIED", "run/second", "pause")]
    await controlled.clear("run/second", "pause")
    assert await with_timeout(run) == 1


class OneCallback(MemoryConnector):
    """Removes all callbacks of a topic, once the test allows it."""

    def __init__(self) -> None:
        super().__init__()
        self.unsubscribes, self.may_end = asyncio.Event(), asyncio.Event()
        self._callbacks: list[Any] = []

    async def subscribe(self, topic: str, callback: Any) -> None:
        self._callbacks.append(callback)
        await super().subscribe(topic, callback)

    async def unsubscribe(self, topic: str, callback: Any) -> None:
        self.unsubscribes.set()
        await self.may_end.wait()
        for each in self._callbacks:
            await super().unsubscribe(topic, each)


async def test_a_run_that_begins_while_the_last_one_unsubscribes_has_its_own_subscription() -> None:
    connector, may_finish = OneCallback(), asyncio.Event()
    controlled = ControlledEngine(connector)
    first = controlled.start(one())
    await with_timeout(connector.unsubscribes.wait())
    second = controlled.start(cs.task(may_finish.wait, name="wait")())
    for _ in range(50):  # turns of the loop in which the second run could subscribe too early
        await asyncio.sleep(0)
    assert connector.connections == 2
    connector.may_end.set()
    assert await with_timeout(first) == 1
    await with_timeout(controlled.wait_for(TaskExecutionStarted, 2))
    await controlled.constrain("global", "concurrency", {"limit": 3})
    assert controlled.decisions == [("APPLIED", "global", "concurrency")]
    may_finish.set()
    assert await with_timeout(second)


async def test_each_decision_is_on_the_wire_and_the_wait_in_the_terminal_message() -> None:
    controlled = ControlledEngine()
    await controlled.constrain("global", "pause", id="stop-1")
    run = controlled.start(one())
    await controlled.wait_for(TaskBlocked)
    await asyncio.sleep(0.002)  # messages omit waits shorter than a millisecond
    await controlled.clear("global", "pause")
    await with_timeout(run)
    published = [
        (b["action"], b["scope"], b["constraint_type"], b["constraint_id"]) for b in controlled.bodies("ControlEvent")
    ]
    assert published == [("APPLIED", "global", "pause", "stop-1"), ("CLEARED", "global", "pause", "stop-1")]
    pending, running, completed = controlled.bodies("TaskStateEvent")
    constraint = {"scope": "global", "type": "pause", "id": "stop-1"}
    assert (pending["state"], pending["metadata"]["reason"]) == ("PENDING", "paused")
    assert pending["metadata"]["constraint"] == constraint
    (wait,) = completed["metadata"]["waits"]
    assert (wait["reason"], wait["constraint"]) == ("paused", constraint)
    assert wait["end_ns"] <= running["metadata"]["start_ns"]
    metadata = controlled.bodies("LifecycleEvent")[-1]["metadata"]
    assert [(c["action"], c["type"]) for c in metadata["control"]] == [("APPLIED", "pause"), ("CLEARED", "pause")]
    assert (metadata["control_count"], metadata["counts"]["held_back"]) == (2, 1)


async def test_secrets_in_an_id_or_a_scope_are_masked() -> None:
    controlled = ControlledEngine()
    await controlled.constrain("task/token=hunter2X9", "pause", id="token=hunter2X9")
    run = controlled.start(cs.task(lambda: 1, name="token=hunter2X9")())
    await controlled.wait_for(TaskBlocked)
    await asyncio.sleep(0.002)  # messages omit waits shorter than a millisecond
    await controlled.clear("task/token=hunter2X9", "pause")
    assert await with_timeout(run) == 1
    pending = controlled.bodies("TaskStateEvent")[0]
    assert pending["metadata"]["constraint"] == {"scope": "task/token=***", "type": "pause", "id": "token=***"}
    assert [body["constraint_id"] for body in controlled.bodies("ControlEvent")] == ["token=***"] * 2
    assert "hunter2X9" not in str(controlled.connector.payloads)


async def test_a_secret_in_the_type_of_a_refused_message_is_masked() -> None:
    controlled, may_finish = ControlledEngine(), asyncio.Event()
    run = controlled.start(cs.task(may_finish.wait, name="waiting")())
    await controlled.wait_for(TaskExecutionStarted)
    await controlled.send("global", "token=hunter2X9", b'{"type": "pause"}')
    may_finish.set()
    await with_timeout(run)
    (refused,) = controlled.bodies("ControlEvent")
    assert (refused["action"], refused["constraint_type"]) == ("REFUSED", "token=***")
    assert "hunter2X9" not in str(controlled.connector.payloads)


async def test_running_tasks_finish_and_later_tasks_wait_after_a_pause() -> None:
    controlled, may_finish = ControlledEngine(), asyncio.Event()

    @cs.task
    async def first() -> int:
        await may_finish.wait()
        return 1

    run = controlled.start(double(first()))
    await controlled.wait_for(TaskExecutionStarted)
    await controlled.constrain(f"run/{await controlled.run_id()}", "pause")
    may_finish.set()
    await controlled.wait_for(TaskBlocked)
    assert (controlled.started, controlled.reasons) == (["first"], [("double", "paused")])
    await controlled.clear(f"run/{await controlled.run_id()}", "pause")
    assert await with_timeout(run) == 2


async def test_a_pause_of_another_run_or_of_other_tasks_has_no_effect() -> None:
    controlled = ControlledEngine()
    await controlled.constrain("run/4711", "pause")
    await controlled.constrain("task/other*", "pause")
    assert await with_timeout(controlled.start(one())) == 1
    assert controlled.decisions == [("APPLIED", "task/other*", "pause")]


async def test_patterns_choose_tasks_by_name() -> None:
    controlled = ControlledEngine()
    await controlled.constrain("task/dou*", "pause")
    run = controlled.start(double(one()))
    await controlled.wait_for(TaskBlocked)
    assert (controlled.started, controlled.reasons) == (["one"], [("double", "paused")])
    await controlled.clear("task/dou*", "pause")
    assert await with_timeout(run) == 2


@pytest.mark.parametrize("size", [3, 400])
async def test_a_concurrency_limit_applies_to_fan_outs_and_maps(size: int) -> None:
    controlled, counted = ControlledEngine(), Counted()
    await controlled.constrain("global", "concurrency", {"limit": 2})
    work = cs.task(counted, name="work")
    assert await with_timeout(controlled.start(work.map(x=list(range(size))))) == list(range(size))
    assert (counted.most, counted.calls) == (2, size)

    @cs.task
    def total(*xs: int) -> int:
        return sum(xs)

    counted.most = 0
    assert await with_timeout(controlled.start(total(*(work(i) for i in range(size))))) == sum(range(size))
    assert counted.most == 2


async def test_several_types_of_one_scope_apply_together() -> None:
    controlled, counted = ControlledEngine(), Counted(seconds=0.001)  # messages omit shorter waits
    await controlled.constrain("task/work", "concurrency", {"limit": 3})
    await controlled.constrain("task/work", "rate_limit", {"rate": "1000/s"})
    await controlled.constrain("task/work", "pause")
    run = controlled.start(cs.task(counted, name="work").map(x=list(range(100))))
    await controlled.wait_for(TaskBlocked, 100)
    assert counted.calls == 0
    start = time.monotonic()
    await controlled.clear("task/work", "pause")
    await with_timeout(run)
    assert counted.most <= 3
    assert time.monotonic() - start >= (100 - 50) / 1000, "the default burst of this rate is 50"
    waits = [wait for body in controlled.bodies("TaskStateEvent") for wait in body["metadata"].get("waits", ())]
    assert {wait["reason"] for wait in waits} >= {"paused", "concurrency"}


async def test_a_rate_delays_starts_but_not_the_first_one() -> None:
    controlled = ControlledEngine()
    await controlled.constrain("global", "rate_limit", {"rate": "100/s", "burst": 1})
    start = time.monotonic()
    await with_timeout(controlled.start(double.map(x=list(range(6)))))
    assert time.monotonic() - start >= 0.05
    await controlled.constrain("global", "rate_limit", {"rate": "1/h"})
    controlled.events.clear()
    run = controlled.start(double.map(x=[1, 2]))
    await controlled.wait_for(TaskBlocked)
    assert controlled.started == ["map(double)", "double"]
    await controlled.clear("global", "rate_limit")
    assert await with_timeout(run) == [2, 4]


async def test_a_constraint_expires_without_a_further_message() -> None:
    now = [1_000.0]
    controlled = ControlledEngine(clock=lambda: now[0])
    await controlled.constrain("global", "pause", expires_at=now[0] + 0.05)
    run = controlled.start(one())
    await controlled.wait_for(TaskBlocked)
    now[0] += 0.05
    assert await with_timeout(run) == 1
    assert controlled.decisions == [("APPLIED", "global", "pause"), ("EXPIRED", "global", "pause")]


async def test_an_expired_constraint_has_no_effect_and_is_published() -> None:
    controlled = ControlledEngine()
    await controlled.constrain("global", "pause", expires_at=1)
    assert await with_timeout(controlled.start(one())) == 1
    assert controlled.decisions == []
    controlled, may_finish = ControlledEngine(), asyncio.Event()
    run = controlled.start(cs.task(may_finish.wait, name="wait")())
    await controlled.wait_for(TaskExecutionStarted)
    await controlled.constrain("global", "pause")
    await controlled.constrain("global", "pause", expires_at=1)
    may_finish.set()
    await with_timeout(run)
    assert controlled.decisions == [("APPLIED", "global", "pause"), ("EXPIRED", "global", "pause")]


async def test_a_repeated_constraint_is_not_published_again_and_a_changed_one_is() -> None:
    controlled, may_finish = ControlledEngine(), asyncio.Event()
    run = controlled.start(cs.task(may_finish.wait, name="wait")())
    await controlled.wait_for(TaskExecutionStarted)
    for limit in (4, 4, 5):
        await controlled.constrain("global", "concurrency", {"limit": limit})
    await controlled.clear("global", "pause")
    may_finish.set()
    await with_timeout(run)
    assert [one.params for one in controlled.events_of(ControlDecision)] == [{"limit": 4}, {"limit": 5}]


async def test_a_retry_waits_for_a_pause() -> None:
    controlled, calls = ControlledEngine(), list[str]()

    @cs.task
    async def flaky() -> str:
        calls.append("flaky")
        if len(calls) == 1:
            await controlled.constrain("global", "pause")
            raise ConnectionError
        return "done"

    run = controlled.start(flaky().with_retry(2, delay=0.01))
    await controlled.wait_for(TaskBlocked)
    assert calls == ["flaky"]
    await asyncio.sleep(0.002)
    await controlled.clear("global", "pause")
    assert await with_timeout(run) == "done"
    (completed,) = [b for b in controlled.bodies("TaskStateEvent") if b["state"] == "COMPLETED"]
    assert [wait["reason"] for wait in completed["metadata"]["waits"]] == ["retry", "paused"]


async def test_a_task_that_waits_for_a_retry_does_not_count_as_running() -> None:
    controlled, failed, other_ran = ControlledEngine(), asyncio.Event(), asyncio.Event()

    @cs.task
    async def flaky() -> int:
        if not failed.is_set():
            failed.set()
            raise ConnectionError
        return int(other_ran.is_set())

    @cs.task
    async def other() -> int:
        other_ran.set()
        return 1

    await controlled.constrain("global", "concurrency", {"limit": 1})
    target: Any = cs.task(list, name="both")([flaky().with_retry(1, delay=0.02), other()])
    assert await with_timeout(controlled.start(target)) == [1, 1]


async def test_a_run_that_is_cancelled_while_paused_ends_at_once() -> None:
    controlled = ControlledEngine()
    await controlled.constrain("global", "pause")
    run = controlled.start(double.map(x=[1, 2, 3]))
    await controlled.wait_for(TaskBlocked)
    run.cancel()
    await with_timeout(asyncio.wait({run}))
    assert run.cancelled()
    assert controlled.events_of(RunFinished)[0].status == "Cancelled"
    await controlled.clear("global", "pause")
    assert await with_timeout(controlled.start(double(1))) == 2


async def test_a_failure_ends_a_run_whose_other_tasks_are_paused() -> None:
    controlled = ControlledEngine()

    @cs.task
    async def fail() -> None:
        raise LookupError("mine")

    await controlled.constrain("task/double", "pause")
    with pytest.raises(LookupError):
        await with_timeout(controlled.start(cs.task(list, name="all")([double(1), fail()])))


async def test_a_map_that_is_paused_as_a_whole_waits_once() -> None:
    controlled = ControlledEngine()
    await controlled.constrain("global", "pause")
    run = controlled.start(double.map(x=[1, 2]))
    await controlled.wait_for(TaskBlocked)
    assert controlled.reasons == [("map(double)", "paused")]
    await asyncio.sleep(0.002)
    await controlled.clear("global", "pause")
    assert await with_timeout(run) == [2, 4]
    (whole,) = [
        b for b in controlled.bodies("TaskStateEvent") if b["task_name"] == "map(double)" and b["state"] == "COMPLETED"
    ]
    assert [wait["reason"] for wait in whole["metadata"]["waits"]] == ["paused"]


async def test_a_nested_run_uses_the_permit_of_its_task() -> None:
    controlled = ControlledEngine()

    @cs.task
    async def outer() -> Any:
        return await run_nested(double(one()))

    await controlled.constrain("global", "concurrency", {"limit": 1})
    assert await with_timeout(controlled.start(cs.task(list, name="both")([outer(), outer()]))) == [2, 2]


@pytest.mark.parametrize("limit", [1, 2])
async def test_concurrent_nested_runs_use_the_permit_of_their_task(limit: int) -> None:
    controlled = ControlledEngine()

    @cs.task
    async def outer() -> Any:
        return await asyncio.gather(*(run_nested(double(double(x))) for x in range(3)))

    await controlled.constrain("global", "concurrency", {"limit": limit})
    assert await with_timeout(controlled.start(cs.task(list, name="both")([outer(), outer()]))) == [
        [0, 4, 8],
        [0, 4, 8],
    ]


async def test_a_nested_run_that_outlives_its_task_does_not_change_the_count() -> None:
    controlled, left = ControlledEngine(), list[Any]()

    @cs.task
    async def leaves_one_behind() -> int:
        left.append(asyncio.ensure_future(run_nested(double(one()))))
        await asyncio.sleep(0)
        return 1

    @cs.task
    async def fails_first() -> int:
        left.append(asyncio.ensure_future(run_nested(double(one()))))
        await asyncio.sleep(0)
        if len(left) < 3:
            raise ConnectionError
        return 1

    await controlled.constrain("global", "concurrency", {"limit": 1})
    assert await with_timeout(controlled.start(double(double(leaves_one_behind())))) == 4
    assert await with_timeout(controlled.start(double(double(fails_first().with_retry(2))))) == 4
    await with_timeout(asyncio.gather(*left, return_exceptions=True))


async def test_a_pause_of_a_run_applies_to_its_nested_runs() -> None:
    controlled, inside, may_finish = ControlledEngine(), asyncio.Event(), asyncio.Event()

    @cs.task
    async def first() -> int:
        inside.set()
        await may_finish.wait()
        return 1

    @cs.task
    async def outer() -> Any:
        return await run_nested(double(first()))

    run = controlled.start(outer())
    await with_timeout(inside.wait())
    await controlled.constrain(f"run/{await controlled.run_id()}", "pause")
    may_finish.set()
    await controlled.wait_for(TaskBlocked)
    assert controlled.reasons == [("double", "paused")]
    assert len({decision.run_id for decision in controlled.events_of(ControlDecision)}) == 2
    await controlled.clear(f"run/{await controlled.run_id()}", "pause")
    assert await with_timeout(run) == 2


async def test_a_blocked_retry_holds_no_resource() -> None:
    controlled, failed = ControlledEngine(system_resources={"gpu": 1}), asyncio.Event()

    @cs.task
    async def flaky() -> int:
        if not failed.is_set():
            failed.set()
            await controlled.constrain("task/flaky", "pause")
            raise ConnectionError
        return 1

    run = controlled.start(flaky().with_retry(1, delay=0.01).with_constraints(gpu=1))
    await controlled.wait_for(TaskBlocked)
    assert await with_timeout(controlled.start(one().with_constraints(gpu=1))) == 1
    await controlled.clear("task/flaky", "pause")
    assert await with_timeout(run) == 1


async def test_constraints_apply_to_nested_runs() -> None:
    controlled = ControlledEngine()

    @cs.task
    async def outer() -> Any:
        return await run_nested(double(1))

    await controlled.constrain("task/double", "pause")
    run = controlled.start(outer())
    await controlled.wait_for(TaskBlocked)
    await controlled.clear("task/double", "pause")
    assert await with_timeout(run) == 2


async def test_a_capacity_is_changed_and_restored() -> None:
    controlled, counted = ControlledEngine(system_resources={"gpu": 2}), Counted()
    work = cs.task(counted, name="work").map(x=list(range(20))).with_constraints(gpu=1)
    await controlled.constrain("global", "resource", {"name": "gpu", "capacity": 1})
    await with_timeout(controlled.start(work))
    assert counted.most == 1
    assert set(controlled.reasons) == {("work", "resource")}
    await controlled.constrain("global", "resource", {"name": "gpu", "capacity": 5})
    await with_timeout(controlled.start(work))
    assert counted.most == 5
    await controlled.clear("global", "resource")
    counted.most = 0
    await with_timeout(controlled.start(work))
    assert counted.most == 2


async def test_a_task_that_needs_more_than_the_capacity_waits() -> None:
    controlled = ControlledEngine(system_resources={"gpu": 2})
    await controlled.constrain("global", "resource", {"name": "gpu", "capacity": 0})
    run = controlled.start(one().with_constraints(gpu=2))
    await controlled.wait_for(TaskBlocked)
    assert controlled.reasons == [("one", "resource")]
    await controlled.clear("global", "resource")
    assert await with_timeout(run) == 1


async def test_the_smallest_capacity_applies_and_that_of_a_run_ends_with_the_run() -> None:
    controlled, may_finish = ControlledEngine(system_resources={"gpu": 4}), asyncio.Event()
    run = controlled.start(cs.task(may_finish.wait, name="wait")())
    await controlled.wait_for(TaskExecutionStarted)
    await controlled.constrain("global", "resource", {"name": "gpu", "capacity": 3})
    await controlled.constrain(f"run/{await controlled.run_id()}", "resource", {"name": "gpu", "capacity": 2})
    other = controlled.start(one().with_constraints(gpu=3))
    await controlled.wait_for(TaskBlocked)
    may_finish.set()
    await with_timeout(run)
    assert await with_timeout(other) == 1


async def test_a_blocked_task_holds_neither_a_permit_nor_a_resource() -> None:
    controlled, may_finish = ControlledEngine(system_resources={"gpu": 1}), asyncio.Event()

    @cs.task
    async def hold() -> None:
        await may_finish.wait()

    await controlled.constrain("task/limited", "concurrency", {"limit": 1})
    holding = controlled.start(hold().with_constraints(gpu=1))
    await controlled.wait_for(TaskExecutionStarted)
    limited = cs.task(lambda: 1, name="limited")
    waiting = controlled.start(limited().with_constraints(gpu=1))
    await controlled.wait_for(TaskBlocked)
    assert await with_timeout(controlled.start(limited())) == 1, "a task that waits for the gpu holds no permit"
    await controlled.constrain("task/limited", "pause")
    may_finish.set()
    await with_timeout(holding)
    assert await with_timeout(controlled.start(one().with_constraints(gpu=1))) == 1, "a paused task holds no gpu"
    await controlled.clear("task/limited", "pause")
    assert await with_timeout(waiting) == 1


async def test_concurrent_runs_of_one_engine_are_limited_together() -> None:
    controlled, counted = ControlledEngine(), Counted()
    await controlled.constrain("task/work", "concurrency", {"limit": 2})
    work = cs.task(counted, name="work")
    await with_timeout(asyncio.gather(*(controlled.start(work.map(x=list(range(10)))) for _ in range(3))))
    assert (counted.most, counted.calls) == (2, 30)
    assert controlled.connector.connections == 0


async def test_a_cache_hit_uses_no_token_of_a_rate() -> None:
    class Hit:
        def check(self, task_id: str, inputs: dict[str, Any]) -> int:
            return 7

        def save(self, task_id: str, inputs: dict[str, Any], output: Any) -> None: ...

    controlled = ControlledEngine()
    await controlled.constrain("global", "rate_limit", {"rate": "1/h"})
    target: Any = cs.task(list, name="all")([one().with_cache(Hit()), one().with_cache(Hit())])
    assert await with_timeout(controlled.start(target)) == [7, 7]


@pytest.fixture
def without_refill(monkeypatch: pytest.MonkeyPatch) -> None:
    """The token buckets of the notifier get no new tokens: only the first decisions are published at once."""
    for name in ("PER_SECOND", "REFUSALS_PER_SECOND"):
        monkeypatch.setattr(f"cascade.runtime.control.notifier.{name}", 1 / NEVER)


def unpublished(decisions: list[ControlDecision]) -> int:
    """Return the number of unpublished decisions, from the reasons of the published ones."""
    found = (re.search(r"(\d+) earlier decisions were not published", one.reason or "") for one in decisions)
    return sum(int(match[1]) for match in found if match)


@pytest.mark.usefixtures("without_refill")
async def test_the_number_of_published_refusals_is_limited() -> None:
    controlled, may_finish = ControlledEngine(), asyncio.Event()
    run = controlled.start(cs.task(may_finish.wait, name="wait")())
    await controlled.wait_for(TaskExecutionStarted)
    for number in range(3_000):
        await controlled.send("global", f"kind-{number}", b"{")
    for number in range(2 * MAX_PATTERNS):
        await controlled.constrain(f"task/t{number}*", "concurrency", {"limit": 1})
    may_finish.set()
    await with_timeout(run)
    actions = [action for action, _, _ in controlled.decisions]
    assert actions.count("APPLIED") == MAX_PATTERNS
    assert actions.count("REFUSED") == REFUSALS_AT_ONCE
    assert len(actions) + unpublished(controlled.events_of(ControlDecision)) == 3_000 + 2 * MAX_PATTERNS


@pytest.mark.usefixtures("without_refill")
async def test_the_last_of_many_changes_is_published() -> None:
    controlled, may_finish = ControlledEngine(), asyncio.Event()
    run = controlled.start(cs.task(may_finish.wait, name="wait")())
    await controlled.wait_for(TaskExecutionStarted)
    for limit in range(1, 1_001):
        await controlled.constrain("global", "concurrency", {"limit": limit})
    may_finish.set()
    await with_timeout(run)
    decisions = controlled.events_of(ControlDecision)
    assert len(decisions) == AT_ONCE + 1
    assert decisions[-1].params == {"limit": 1_000}
    assert len(decisions) + unpublished(decisions) == 1_000


async def test_pending_decisions_are_published_during_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cascade.runtime.control.notifier.AT_ONCE", 1)
    controlled, may_finish = ControlledEngine(), asyncio.Event()
    run = controlled.start(cs.task(may_finish.wait, name="wait")())
    await controlled.wait_for(TaskExecutionStarted)
    for scope in ("global", "task/a", "task/b"):
        await controlled.constrain(scope, "pause")
    assert (await with_timeout(controlled.wait_for(ControlDecision, 3))).scope == "task/b"
    may_finish.set()
    await with_timeout(run)


async def test_a_refusal_before_the_run_is_published_as_the_run_begins() -> None:
    controlled = ControlledEngine()
    await controlled.send("global", "pause", b"nonsense", retain=True)
    assert await with_timeout(controlled.start(one())) == 1
    (refused,) = controlled.events_of(ControlDecision)
    assert (refused.action, refused.scope, refused.constraint_type) == ("REFUSED", "global", "pause")
    assert "not JSON" in refused.reason


class FaultyConnector(MemoryConnector):
    """A connector whose `subscribe` fails in one of several ways."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    async def subscribe(self, topic: str, callback: Any) -> None:
        if self.how == "raises":
            raise OSError("no connection")
        if self.how == "hangs":
            await asyncio.Event().wait()
        for payload in (None, 7, "text", [1], {"type": 3}):
            await callback(topic.replace("#", "global/pause"), payload)
            await callback("elsewhere", payload)


@pytest.mark.parametrize("how", ["raises", "hangs", "delivers invalid payloads"])
async def test_a_connector_that_cannot_subscribe_does_not_affect_the_run(
    how: str, caplog: pytest.LogCaptureFixture, limits: pytest.MonkeyPatch
) -> None:
    limits.setattr("cascade.runtime.control.controller.SUBSCRIBE_TIMEOUT", 0.05)
    controlled = ControlledEngine(FaultyConnector(how))
    assert await with_timeout(controlled.start(one())) == 1
    assert [r.getMessage() for r in caplog.records] == (
        ["FaultyConnector cannot receive constraints: OSError: no connection"] if how == "raises" else []
    )


class Endless(MemoryConnector):
    """Delivers a constraint in each turn of the event loop. It starts with the subscription and ends when the test ends it."""

    def __init__(self) -> None:
        super().__init__()
        self.ends = asyncio.Event()

    async def subscribe(self, topic: str, callback: Any) -> None:
        while not self.ends.is_set():
            await callback(topic.replace("#", "task/another/pause"), {"type": "pause"})
            await asyncio.sleep(0)
        await callback(topic.replace("#", "global/pause"), {"type": "pause"})


async def test_a_run_waits_for_retained_constraints_while_they_arrive(limits: pytest.MonkeyPatch) -> None:
    limits.setattr("cascade.runtime.control.controller.SUBSCRIBE_TIMEOUT", 0.01)
    connector = Endless()
    controlled = ControlledEngine(connector)
    asyncio.get_running_loop().call_later(0.1, connector.ends.set)  # ten times the limit
    run = controlled.start(one())
    await with_timeout(controlled.wait_for(TaskBlocked))
    assert controlled.started == []
    run.cancel()
    await with_timeout(asyncio.wait({run}))


async def test_the_wait_for_retained_constraints_is_bounded(
    caplog: pytest.LogCaptureFixture, limits: pytest.MonkeyPatch
) -> None:
    limits.setattr("cascade.runtime.control.controller.SUBSCRIBE_TIMEOUT", 0.01)
    limits.setattr("cascade.runtime.control.controller.LONGEST_SUBSCRIBE", 0.05)
    assert await with_timeout(ControlledEngine(Endless()).engine.run(one())) == 1
    assert [record.getMessage() for record in caplog.records] == [
        "Constraints still arrive after 0.05 s: the run starts; some may not apply yet"
    ]


async def test_a_message_after_the_run_is_ignored() -> None:
    controlled = ControlledEngine()
    callbacks: list[Any] = []
    subscribe = controlled.connector.subscribe

    async def keep(topic: str, callback: Any) -> None:
        callbacks.append(callback)
        await subscribe(topic, callback)

    controlled.connector.subscribe = keep  # type: ignore[method-assign]
    await with_timeout(controlled.start(one()))
    await callbacks[0]("cascade/control/local/default/constraints/global/pause", {"type": "pause"})
    assert await with_timeout(controlled.start(one())) == 1


async def test_decisions_are_printed_on_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    connector = MemoryConnector()
    topic = "cascade/control/local/default/constraints/global/"
    await connector.deliver(topic + "concurrency", {"type": "concurrency", "params": {"limit": 3}}, retain=True)
    await connector.deliver(topic + "pause", b"nonsense", retain=True)
    await cs.run_async(one(), connector=connector, log_level="WARNING")
    shown = capsys.readouterr().err
    assert "concurrency applies to global {'limit': 3}" in shown
    assert "A constraint on global was refused: it is not JSON" in shown


async def test_constraints_of_another_project_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CASCADE_PROJECT_ID", "mine")
    controlled = ControlledEngine()
    await controlled.constrain("global", "pause")  # of the project `default`
    assert await with_timeout(controlled.start(one())) == 1
    assert controlled.decisions == []


async def test_a_constraint_that_is_not_retained_ends_with_the_last_run() -> None:
    controlled, may_finish = ControlledEngine(), asyncio.Event()
    await controlled.constrain("global", "pause", retain=False)  # no run is in progress
    run = controlled.start(double(cs.task(may_finish.wait, name="wait")()))
    await controlled.wait_for(TaskExecutionStarted)
    assert controlled.decisions == []
    await controlled.constrain("global", "pause", retain=False)
    may_finish.set()
    assert (await controlled.wait_for(TaskBlocked)).task_name == "double"
    run.cancel()
    await with_timeout(asyncio.wait({run}))
    assert await with_timeout(controlled.start(one())) == 1


async def test_each_call_of_run_has_its_own_limits() -> None:
    connector, barrier = MemoryConnector(), asyncio.Barrier(2)
    topic = "cascade/control/local/default/constraints/global/concurrency"
    await connector.deliver(topic, {"type": "concurrency", "params": {"limit": 1}}, retain=True)
    waits_for_other_run = cs.task(barrier.wait, name="waits_for_other_run")
    runs = (cs.run_async(waits_for_other_run(), connector=connector, log_level="OFF") for _ in range(2))
    assert sorted(await with_timeout(asyncio.gather(*runs))) == [0, 1]
