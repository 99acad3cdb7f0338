import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

import cascade as cs
from cascade.runtime.events import (
    ResourceAcquired,
    ResourceReleased,
    RunFinished,
    TaskBlocked,
    TaskExecutionFinished,
    TaskExecutionStarted,
)
from tests.runtime.conftest import RecordedEngine

log: list[str] = []


@pytest.fixture(autouse=True)
def _empty_log() -> None:
    log.clear()


@cs.resource
def config() -> Iterator[str]:
    log.append("config up")
    yield "cfg"
    log.append("config down")


@cs.resource
async def database(config: str = cs.inject("config")) -> AsyncIterator[str]:
    log.append("database up")
    yield f"db of {config}"
    log.append("database down")


@cs.task
def query(sql: str, db: str = cs.inject("database")) -> str:
    log.append("query")
    return f"{sql} in {db}"


def engine_with_resources(**options: Any) -> RecordedEngine:
    recorded = RecordedEngine(**options)
    recorded.engine.register(config)
    recorded.engine.register(database)
    return recorded


async def test_resources_are_set_up_in_order_and_torn_down_in_reverse() -> None:
    recorded = engine_with_resources()
    assert await recorded.run(query("q")) == "q in db of cfg"
    assert log == ["config up", "database up", "query", "database down", "config down"]
    assert [e.resource_name for e in recorded.of(ResourceAcquired)] == ["config", "database"]
    assert [e.resource_name for e in recorded.of(ResourceReleased)] == ["database", "config"]


async def test_literal_injects_and_maps_get_resources() -> None:
    assert await engine_with_resources().run(query("q", cs.inject("config"))) == "q in cfg"
    assert await engine_with_resources().run(query.map(sql=["a", "b"])) == ["a in db of cfg", "b in db of cfg"]


async def test_a_definition_needs_no_registration() -> None:
    @cs.task
    def use(c: str = cs.inject(config)) -> str:
        return c

    assert await RecordedEngine().run(use()) == "cfg"


@pytest.mark.parametrize("how", ["fail", "cancel"])
async def test_a_teardown_runs_after_success_failure_and_cancellation(how: str) -> None:
    running = asyncio.Event()

    @cs.task
    async def use(c: str = cs.inject("config")) -> None:
        running.set()
        if how == "fail":
            raise ValueError("no")
        await asyncio.Event().wait()

    run = asyncio.create_task(engine_with_resources().run(use()))
    await running.wait()
    if how == "cancel":
        run.cancel()
    with pytest.raises((ValueError, asyncio.CancelledError)):
        await run
    assert log[-1] == "config down"


async def test_an_unregistered_resource_is_named_before_anything_runs(recorded: RecordedEngine) -> None:
    with pytest.raises(NameError, match="'database' is not registered"):
        await recorded.run(query("q"))
    assert recorded.of(TaskExecutionStarted) == []
    assert recorded.of(RunFinished)[0].status == "Failed"


async def test_a_failed_setup_tears_down_the_earlier_resources() -> None:
    @cs.resource
    def broken(config: str = cs.inject("config")) -> Iterator[str]:
        raise OSError("no disk")
        yield ""

    recorded = engine_with_resources()
    recorded.engine.register(broken)
    with pytest.raises(OSError, match="no disk"):
        await recorded.run(cs.task(lambda b=cs.inject("broken"): b, name="use")())
    assert log == ["config up", "config down"]


async def test_a_circle_of_resources_is_named(recorded: RecordedEngine) -> None:
    @cs.resource
    def a(b: str = cs.inject("b")) -> Iterator[str]:
        yield ""

    @cs.resource
    def b(a: str = cs.inject("a")) -> Iterator[str]:
        yield ""

    recorded.engine.register(a)
    recorded.engine.register(b)
    with pytest.raises(ValueError, match="a -> b -> a"):
        await recorded.run(cs.task(lambda x=cs.inject("a"): x, name="use")())


async def test_overrides_hold_for_the_block() -> None:
    recorded = engine_with_resources()

    def other() -> Iterator[str]:
        yield "other"

    with cs.override_resource(recorded.engine, "database", other):
        assert await recorded.run(query("q")) == "q in other"
    assert await recorded.run(query("q")) == "q in db of cfg"
    with pytest.raises(KeyError), cs.override_resource(recorded.engine, "nope", other):
        pass
    with pytest.raises(TypeError, match="Cannot override"), cs.override_resource(recorded.engine, "database", 5):
        pass


async def test_a_blocked_task_publishes_its_reason() -> None:
    recorded = RecordedEngine(system_resources={"cpu": 4})
    active, most, two_wait = 0, 0, asyncio.Event()

    def count(_: TaskBlocked) -> None:
        if len(recorded.of(TaskBlocked)) == 2:
            two_wait.set()

    @cs.task
    async def work(x: int) -> int:
        nonlocal active, most
        active += 1
        most = max(most, active)
        await two_wait.wait()
        active -= 1
        return x

    recorded.bus.subscribe(TaskBlocked, count)
    lazy_amount = cs.task(lambda: 2, name="amount")()
    assert await recorded.run(work.map(x=[1, 2, 3, 4]).with_constraints(cpu=lazy_amount)) == [1, 2, 3, 4]
    assert most == 2
    assert [e.reason for e in recorded.of(TaskBlocked)] == ["resource", "resource"]
    waits = [wait for e in recorded.of(TaskExecutionFinished, "work") for wait in e.waits]
    assert len(waits) == 2
    assert all(wait.end_ns > wait.start_ns for wait in waits)


async def test_an_impossible_constraint_is_an_error_before_anything_runs() -> None:
    recorded = RecordedEngine(system_resources={"cpu": 1})
    with pytest.raises(ValueError, match="'cpu': 2 exceeds total system capacity of 1"):
        await recorded.run(cs.task(lambda x: x, name="t")(cs.task(lambda: 1, name="u")()).with_constraints(cpu=2))
    assert recorded.of(TaskExecutionStarted) == []


async def test_a_lazy_amount_above_the_capacity_fails_its_task() -> None:
    recorded = RecordedEngine(system_resources={"cpu": 1})
    amount = cs.task(lambda: 9, name="amount")()
    with pytest.raises(ValueError, match="exceeds total system capacity"):
        await recorded.run(cs.task(lambda: 1, name="t")().with_constraints(cpu=amount))
    assert recorded.of(TaskExecutionFinished, "t")[0].status == "Failed"
