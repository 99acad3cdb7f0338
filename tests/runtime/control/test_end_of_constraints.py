"""The end of a constraint: it expires, a message replaces it, or an empty message clears it."""

import asyncio
from typing import Any

import pytest

import cascade as cs
from cascade.runtime.control.controller import EXPIRY_TOLERANCE
from cascade.runtime.events import ControlDecision, TaskBlocked, TaskExecutionStarted
from cascade.telemetry.topics import control_topic
from cascade.telemetry.wire import decode_incoming, with_expiry
from tests.lab.waiting import with_timeout
from tests.runtime.control.controlled_engine import ControlledEngine


@cs.task
async def one() -> int:
    return 1


class PausedRun:
    """A run whose only task is paused, with a wall clock that the test sets."""

    def __init__(self) -> None:
        self.now = 1_000.0
        self.controlled = ControlledEngine(clock=lambda: self.now)
        self._passed = 0

    async def start(self, **pause: Any) -> "asyncio.Future[Any]":
        await self.controlled.constrain("global", "pause", **pause)
        run = self.controlled.start(one())
        await self.controlled.wait_for(TaskBlocked)
        return run

    async def pass_time(self, seconds: float) -> None:
        """Return when all constraints that end within these seconds have ended."""
        self._passed += 1
        scope = f"task/clock-{self._passed}"
        await self.controlled.constrain(
            scope, "pause", expires_at=self.now + 1e-3, retain=False
        )  # due first: starts the timer
        self.now += seconds
        count = 0
        while ("EXPIRED", scope, "pause") not in self.controlled.decisions:
            count += 1
            await with_timeout(self.controlled.wait_for(ControlDecision, count))

    @property
    def decisions(self) -> list[str]:
        return [action for action, scope, _ in self.controlled.decisions if scope == "global"]


async def test_a_constraint_that_is_replaced_by_one_without_an_end_does_not_expire() -> None:
    paused = PausedRun()
    run = await paused.start(expires_at=1_010)
    await paused.controlled.constrain("global", "pause")
    await paused.pass_time(20)
    assert (paused.controlled.started, paused.decisions) == ([], ["APPLIED", "APPLIED"])
    await paused.controlled.clear("global", "pause")
    assert await with_timeout(run) == 1
    assert paused.decisions == ["APPLIED", "APPLIED", "CLEARED"]


@pytest.mark.parametrize(("before", "after"), [(1_010, 1_005.0), (None, 1_005.0), (1_005, 1_050.0), (1_005.0, 1_006.0)])
async def test_the_end_of_the_last_message_applies(before: float | None, after: float) -> None:
    paused = PausedRun()
    run = await paused.start(expires_at=before)
    await paused.controlled.constrain("global", "pause", expires_at=after)
    await paused.pass_time(after - paused.now - 0.5)
    assert paused.controlled.started == []
    await paused.pass_time(1)
    assert await with_timeout(run) == 1
    assert paused.decisions[-1] == "EXPIRED"


async def test_a_pause_that_is_extended_often_is_published_once() -> None:
    paused = PausedRun()
    run = await paused.start(expires_at=paused.now + 4)
    for _ in range(20):
        await paused.pass_time(EXPIRY_TOLERANCE - 0.5)
        await paused.controlled.constrain("global", "pause", expires_at=paused.now + 4)
    assert (paused.controlled.started, paused.decisions) == ([], ["APPLIED"])
    await paused.controlled.constrain("global", "pause", expires_at=paused.now + 100)
    assert paused.decisions == ["APPLIED", "APPLIED"]
    await paused.pass_time(101)
    assert await with_timeout(run) == 1
    assert paused.decisions == ["APPLIED", "APPLIED", "EXPIRED"]


async def test_an_end_in_the_past_ends_the_constraint() -> None:
    paused = PausedRun()
    run = await paused.start(expires_at=1_010)
    await paused.controlled.constrain("global", "pause", expires_at=paused.now)
    assert await with_timeout(run) == 1
    assert paused.decisions == ["APPLIED", "EXPIRED"]


async def test_the_message_expiry_of_a_constraint_ends_it() -> None:
    paused = PausedRun()
    topic = control_topic("local", "default", "global", "pause")
    pause = decode_incoming(b'{"type": "pause"}')
    await paused.controlled.connector.deliver(topic, with_expiry(pause, 4, paused.now), retain=True)
    run = paused.controlled.start(one())
    await paused.controlled.wait_for(TaskBlocked)
    await paused.pass_time(2.25)
    # After a reconnection, the broker sends it again with the rest of the interval, in whole seconds.
    await paused.controlled.connector.deliver(topic, with_expiry(pause, 2, paused.now))
    assert (paused.controlled.started, paused.decisions) == ([], ["APPLIED"])
    await paused.pass_time(2.0)
    assert await with_timeout(run) == 1
    assert paused.decisions == ["APPLIED", "EXPIRED"]


async def test_an_extended_rate_gives_no_new_tokens() -> None:
    controlled = ControlledEngine()
    await controlled.constrain("global", "rate_limit", {"rate": "1/h", "burst": 2}, expires_at=4e9)
    work = cs.task(lambda x: x, name="work")
    run = controlled.start(work.map(x=[1, 2, 3]))
    await controlled.wait_for(TaskBlocked)
    for more in range(10):
        await controlled.constrain("global", "rate_limit", {"rate": "1/h", "burst": 2}, expires_at=4e9 + 100 * more)
    for _ in range(20):  # turns of the loop in which a start would happen
        await asyncio.sleep(0)
    assert controlled.started.count("work") == 2
    await controlled.clear("global", "rate_limit")
    assert await with_timeout(run) == [1, 2, 3]


@pytest.mark.parametrize("retained", [True, False], ids=["retained", "live"])
@pytest.mark.parametrize("retained_clear", [True, False], ids=["by a retained message", "by a live message"])
@pytest.mark.parametrize(
    ("scope", "kind", "params"),
    [
        ("global", "pause", {}),
        ("run/{run_id}", "pause", {}),
        ("task/held", "pause", {}),
        ("task/he*", "pause", {}),
        ("task/held", "concurrency", {"limit": 1}),
        ("global", "rate_limit", {"rate": "1/h"}),
        ("global", "resource", {"name": "gpu", "capacity": 0}),
    ],
    ids=str,
)
async def test_an_empty_message_clears_a_constraint(
    scope: str, kind: str, params: dict[str, Any], *, retained: bool, retained_clear: bool
) -> None:
    controlled, may_finish = ControlledEngine(system_resources={"gpu": 2}), asyncio.Event()

    async def held(x: int) -> int:
        await may_finish.wait()
        return x

    work = cs.task(held, name="held")
    first = cs.task(may_finish.wait, name="first")
    run = controlled.start(cs.task(list, name="all")([first(), *(work(x).with_constraints(gpu=1) for x in range(3))]))
    await controlled.wait_for(TaskExecutionStarted)
    where = scope.format(run_id=await controlled.run_id())
    await controlled.constrain(where, kind, params, retain=retained)
    late = controlled.start(cs.task(list, name="late")([work(x).with_constraints(gpu=1) for x in range(2)]))
    if not scope.startswith("run"):
        await controlled.wait_for(TaskBlocked)
    await controlled.send(where, kind, b"", retain=retained_clear)
    may_finish.set()
    assert await with_timeout(run) == [True, 0, 1, 2]
    assert await with_timeout(late) == [0, 1]
    assert [action for action, _, constraint_type in controlled.decisions if constraint_type == kind][-1] == "CLEARED"
