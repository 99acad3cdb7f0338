"""Very many retained constraints: those for the run apply, and the number of messages about the others is bounded."""

import asyncio
import gc
import re
import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import pytest

import cascade as cs
from cascade.runtime.control import controller
from cascade.runtime.control.constraint import Constraint
from cascade.runtime.control.notifier import AT_ONCE, MAX_PENDING
from cascade.runtime.engine import run_nested
from cascade.runtime.events import ControlDecision, RunStarted, TaskBlocked, TaskExecutionStarted
from tests.lab.waiting import with_timeout
from tests.runtime.control.controlled_engine import ControlledEngine

MANY = 5_000


@cs.task
async def mine() -> int:
    return 1


def count_constraints() -> int:
    gc.collect()
    return sum(issubclass(type(one), Constraint) for one in gc.get_objects())


@pytest.fixture(autouse=True)
def count_added() -> Iterator[Callable[[], int]]:
    """Return a function that counts the constraints in memory that the test has added. None is left after a test."""
    before = count_constraints()
    yield lambda: count_constraints() - before
    assert count_constraints() <= before


def more_than_listed(controlled: ControlledEngine) -> int:
    """Return the number of unlisted constraints, from the reason of the last listed one."""
    listed = controlled.events_of(ControlDecision)
    assert len(listed) == controller.MAX_LISTED
    found = re.fullmatch(r"([\d,]+) more constraints are not listed", listed[-1].reason)
    assert found
    return int(found[1].replace(",", ""))


async def _run_without_constraints(controlled: ControlledEngine, count_added: Callable[[], int]) -> None:
    may_finish = asyncio.Event()
    run = controlled.start(cs.task(may_finish.wait, name="wait")())
    await controlled.wait_for(TaskExecutionStarted)
    assert count_added() <= 0
    assert controlled.decisions == []
    may_finish.set()
    await with_timeout(run)


async def test_constraints_of_other_runs_are_neither_kept_nor_published(count_added: Callable[[], int]) -> None:
    controlled = ControlledEngine()
    for number in range(MANY):
        await controlled.constrain(f"run/{number}", "concurrency", {"limit": 1})
    await _run_without_constraints(controlled, count_added)


async def test_constraints_that_have_expired_are_neither_kept_nor_published(count_added: Callable[[], int]) -> None:
    controlled = ControlledEngine()
    for number in range(MANY):
        await controlled.constrain(f"task/t{number}", "pause", expires_at=1)
    await _run_without_constraints(controlled, count_added)


@pytest.mark.parametrize("scope", ["task/mine", "task/mi*", "global"])
@pytest.mark.parametrize("position", [0, MANY // 2, MANY])
async def test_a_constraint_for_the_run_applies_among_many_others(scope: str, position: int) -> None:
    controlled = ControlledEngine()
    for number in range(MANY + 1):
        if number == position:
            await controlled.constrain(scope, "pause")
        await controlled.constrain(f"task/t{number}", "pause")
    run = controlled.start(mine())
    await controlled.wait_for(TaskBlocked)
    listed = [constraint_scope for _, constraint_scope, _ in controlled.decisions]
    assert scope in listed
    assert more_than_listed(controlled) == MANY + 2 - len(listed)
    await controlled.clear(scope, "pause")
    assert await with_timeout(run) == 1


async def test_a_nested_run_publishes_no_constraints_for_other_tasks() -> None:
    controlled, may_finish = ControlledEngine(), asyncio.Event()
    inner = cs.task(may_finish.wait, name="inner")

    @cs.task
    async def outer() -> Any:
        return await run_nested(inner())

    for scope in ("global", "task/inner", "task/in*"):
        await controlled.constrain(scope, "concurrency", {"limit": 5})
    for number in range(MANY):
        await controlled.constrain(f"task/t{number}", "pause")
    run = controlled.start(outer())
    await controlled.wait_for(TaskExecutionStarted, 2)
    outer_run, inner_run = (one.run_id for one in controlled.events_of(RunStarted))
    listed = [(one.run_id, one.scope) for one in controlled.events_of(ControlDecision)]
    assert [run_id for run_id, _ in listed[: controller.MAX_LISTED]] == [outer_run] * controller.MAX_LISTED
    assert listed[controller.MAX_LISTED :] == [(inner_run, "global"), (inner_run, "task/inner")]
    may_finish.set()
    assert await with_timeout(run)


async def test_the_beginning_of_a_run_does_not_read_all_constraints() -> None:
    controlled, may_finish, calls = ControlledEngine(), asyncio.Event(), 0

    def count(frame: FrameType, event: str, _: Any) -> None:
        nonlocal calls
        calls += event == "call" and frame.f_code.co_filename == controller.__file__  # also each step of a generator

    for number in range(MANY):
        await controlled.constrain(f"task/t{number}", "pause")
    await controlled.constrain("task/mine", "concurrency", {"limit": 1})
    first = controlled.start(cs.task(may_finish.wait, name="wait")())
    await controlled.wait_for(TaskExecutionStarted)
    controlled.events.clear()
    sys.setprofile(count)
    try:
        assert await with_timeout(controlled.start(mine())) == 1
    finally:
        sys.setprofile(None)
    assert controlled.decisions[0] == ("APPLIED", "task/mine", "concurrency")
    assert controller.MAX_LISTED <= calls < MANY
    may_finish.set()
    await with_timeout(first)


async def test_the_number_of_patterns_is_limited_but_not_that_of_other_scopes() -> None:
    controlled, may_finish = ControlledEngine(), asyncio.Event()
    for number in range(2 * controller.MAX_PATTERNS):
        await controlled.constrain(f"task/t{number}*", "pause")
    await controlled.constrain("task/mine", "pause")
    await controlled.constrain("global", "concurrency", {"limit": 2})
    run = controlled.start(cs.task(list, name="all")([cs.task(may_finish.wait, name="wait")(), mine()]))
    await controlled.wait_for(TaskBlocked)
    listed = controlled.events_of(ControlDecision)[: controller.MAX_LISTED]
    assert [one.scope for one in listed[:3]] == ["global", "task/mine", "task/t0*"]
    assert listed[-1].reason == "2 more constraints are not listed"
    await controlled.constrain(f"run/{await controlled.run_id()}", "rate_limit", {"rate": "1000/s"})
    assert controlled.decisions[-1] == ("APPLIED", f"run/{await controlled.run_id()}", "rate_limit")
    refused = [one.reason for one in controlled.events_of(ControlDecision) if one.action == "REFUSED"]
    assert refused[0] == "256 constraints with patterns apply already; clear some, or use full names"
    await controlled.clear("task/mine", "pause")
    may_finish.set()
    assert await with_timeout(run) == [True, 1]


async def test_the_number_of_constraints_for_single_tasks_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(controller, "MAX_CONSTRAINTS", 10)
    controlled = ControlledEngine()
    for number in range(12):
        await controlled.constrain(f"task/t{number}", "pause")
    assert await with_timeout(controlled.start(mine())) == 1
    applied = [scope for action, scope, _ in controlled.decisions if action == "APPLIED"]
    refused = [(one.scope, one.reason) for one in controlled.events_of(ControlDecision) if one.action == "REFUSED"]
    assert applied == [f"task/t{number}" for number in range(10)]
    assert refused == [
        (f"task/t{number}", "10 constraints for single tasks apply already; clear some") for number in (10, 11)
    ]


async def test_many_constraints_during_a_run_cause_a_bounded_number_of_messages() -> None:
    controlled, may_finish = ControlledEngine(), asyncio.Event()
    run = controlled.start(cs.task(may_finish.wait, name="wait")())
    await controlled.wait_for(TaskExecutionStarted)
    before = len(controlled.connector.messages)
    for number in range(MANY):
        await controlled.constrain(f"task/t{number}", "pause")
    during = len(controlled.connector.messages) - before
    may_finish.set()
    await with_timeout(run)
    assert during < 2 * AT_ONCE
    assert len(controlled.bodies("ControlEvent")) <= 2 * AT_ONCE + MAX_PENDING


async def test_many_constraints_with_an_end_start_few_timers(monkeypatch: pytest.MonkeyPatch) -> None:
    controlled, delays, loop = ControlledEngine(), list[float](), asyncio.get_running_loop()
    call_later = loop.call_later

    def counted(delay: float, *args: Any, **options: Any) -> asyncio.TimerHandle:
        delays.append(delay)
        return call_later(delay, *args, **options)

    monkeypatch.setattr(loop, "call_later", counted)
    for number in range(MANY):
        await controlled.constrain(f"task/t{number}", "pause", expires_at=4e9 + number)
    run = controlled.start(mine())
    assert await with_timeout(run) == 1
    assert len(delays) < 20
