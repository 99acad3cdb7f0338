"""Errors and cancellations in setups and teardowns: the first error wins, and no teardown is skipped."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

import cascade as cs
from cascade.runtime import threads
from cascade.runtime.events import ResourceAcquired, ResourceReleased, ResourceSetupFailed, RunFinished
from cascade.spec.resource import ResourceDefinition
from tests.lab.waiting import HANG
from tests.runtime.conftest import RecordedEngine

log: list[str] = []


@pytest.fixture(autouse=True)
def _empty_log() -> None:
    log.clear()


def resource(name: str, *, plain: bool, error: BaseException | None = None, **injected: Any) -> ResourceDefinition:
    """A resource whose teardown is logged and then raises `error`."""

    def plain_generator() -> Iterator[str]:
        yield name
        log.append(name)
        if error is not None:
            raise error

    async def async_generator() -> AsyncIterator[str]:
        yield name
        await asyncio.sleep(0)
        log.append(name)
        if error is not None:
            raise error

    return cs.resource(name=name)(plain_generator if plain else async_generator)


def plain_task(error: Exception, threaded: bool | None) -> Callable[..., Any]:
    def work(first: Any, second: Any) -> None:
        raise error

    return cs.task(work, threaded=threaded)


def async_task(error: Exception) -> Callable[..., Any]:
    async def work(first: Any, second: Any) -> None:
        raise error

    return cs.task(work)


def mapped(error: Exception, a: Any, b: Any) -> Any:
    def work(x: int, first: Any = a, second: Any = b) -> None:
        raise error

    return cs.task(work).map(x=[1, 2])


SHAPES: dict[str, Callable[[Exception, Any, Any], Any]] = {
    "plain": lambda error, a, b: plain_task(error, None)(a, b),
    "loop": lambda error, a, b: plain_task(error, False)(a, b),
    "async": lambda error, a, b: async_task(error)(a, b),
    "map": mapped,
    "retry": lambda error, a, b: async_task(error)(a, b).with_retry(1),
}


@pytest.mark.parametrize("plain", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
async def test_the_errors_of_teardowns_are_notes_on_the_error_of_a_task(
    shape: str, plain: bool, recorded: RecordedEngine
) -> None:
    first = cs.inject(resource("first", plain=plain, error=OSError("one")))
    second = cs.inject(resource("second", plain=not plain, error=OSError("two")))
    failure = LookupError("the disk is full")
    with pytest.raises(LookupError) as raised:
        await recorded.run(SHAPES[shape](failure, first, second))
    assert raised.value is failure
    notes = [note for note in failure.__notes__ if "teardown" in note]
    assert notes == [
        "Later, the teardown of resource 'second' failed: OSError: two",
        "Later, the teardown of resource 'first' failed: OSError: one",
    ]
    assert log == ["second", "first"]
    (finished,) = recorded.of(RunFinished)
    assert finished.exception is not None
    assert finished.exception.type == "LookupError"
    assert [later.error.message for later in finished.later_errors] == ["two", "one"]
    released = recorded.of(ResourceReleased)
    assert [(e.resource_name, e.result) for e in released] == [("second", "failure"), ("first", "failure")]


@cs.task
async def use(first: Any, second: Any) -> str:
    return "used"


async def test_after_success_the_first_error_of_a_teardown_is_raised(recorded: RecordedEngine) -> None:
    first = cs.inject(resource("first", plain=True, error=OSError("one")))
    second = cs.inject(resource("second", plain=False, error=KeyError("two")))
    with pytest.raises(KeyError, match="two") as raised:
        await recorded.run(use(first, second))
    assert raised.value.__notes__ == ["Later, the teardown of resource 'first' failed: OSError: one"]
    assert recorded.of(RunFinished)[0].status == "Failed"
    assert [later.error.message for later in recorded.of(RunFinished)[0].later_errors] == ["one"]


async def test_the_error_of_a_skipped_target_is_the_first_one(recorded: RecordedEngine) -> None:
    broken = cs.inject(resource("db", plain=True, error=OSError("rollback failed")))
    no = cs.task(lambda: False, name="no")()
    with pytest.raises(cs.DependencyMissingError) as raised:
        await recorded.run(use(broken, broken).run_if(no))
    assert raised.value.__notes__ == ["Later, the teardown of resource 'db' failed: OSError: rollback failed"]


@pytest.mark.parametrize("plain", [True, False])
async def test_the_error_of_a_setup_wins_over_the_teardown_of_an_earlier_resource(
    plain: bool, recorded: RecordedEngine
) -> None:
    earlier = resource("earlier", plain=plain, error=OSError("rollback failed"))

    @cs.resource
    def broken(earlier: str = cs.inject(earlier)) -> Iterator[str]:
        raise LookupError("no such host")
        yield ""

    with pytest.raises(LookupError) as raised:
        await recorded.run(cs.task(lambda b=cs.inject(broken): b, name="use")())
    assert raised.value.__notes__ == [
        "The setup of resource 'broken' failed.",
        "Later, the teardown of resource 'earlier' failed: OSError: rollback failed",
    ]
    assert [e.resource_name for e in recorded.of(ResourceAcquired)] == ["earlier"]
    (failed,) = recorded.of(ResourceSetupFailed)
    assert failed.exception is not None
    assert (failed.resource_name, failed.result, failed.exception.message) == ("broken", "failure", "no such host")


@pytest.mark.parametrize("plain", [True, False])
@pytest.mark.parametrize("kind", [LookupError, SystemExit])
async def test_a_setup_that_fails_names_its_resource_and_keeps_the_exception(
    kind: type[BaseException], plain: bool, recorded: RecordedEngine
) -> None:
    failure = kind("no")

    def plain_generator() -> Iterator[str]:
        raise failure
        yield ""

    async def async_generator() -> AsyncIterator[str]:
        raise failure
        yield ""

    broken = cs.resource(name="db\x1b")(plain_generator if plain else async_generator)
    with pytest.raises(kind) as raised:
        await recorded.run(cs.task(lambda b=cs.inject(broken): b, name="use")())
    assert raised.value is failure
    assert failure.__notes__ == [r"The setup of resource 'db\x1b' failed."], "Python prints notes as they are"


@pytest.mark.parametrize("plain", [True, False])
async def test_a_timeout_stays_a_timeout(plain: bool, recorded: RecordedEngine) -> None:
    started = asyncio.Event()
    broken = cs.inject(resource("db", plain=plain, error=OSError("rollback failed")))

    @cs.task
    async def hang(db: Any) -> None:
        started.set()
        await asyncio.Event().wait()

    async def timed() -> None:
        async with asyncio.timeout(None) as scope:
            run = asyncio.create_task(recorded.run(hang(broken)))
            await started.wait()
            scope.reschedule(asyncio.get_running_loop().time())
            await run

    with pytest.raises(TimeoutError) as raised:
        await timed()
    assert isinstance(raised.value.__cause__, asyncio.CancelledError)
    assert raised.value.__cause__.__notes__ == ["Later, the teardown of resource 'db' failed: OSError: rollback failed"]
    assert recorded.of(RunFinished)[0].status == "Cancelled"
    assert [later.error.message for later in recorded.of(RunFinished)[0].later_errors] == ["rollback failed"]


async def test_a_nested_run_keeps_its_own_error(recorded: RecordedEngine) -> None:
    inner = cs.inject(resource("inner", plain=True, error=OSError("inner")))
    outer = cs.inject(resource("outer", plain=True, error=OSError("outer")))

    @cs.task
    async def fail(db: Any) -> None:
        raise LookupError("not there")

    @cs.task
    async def nested(db: Any) -> Any:
        return await recorded.engine.run(fail(inner))

    with pytest.raises(LookupError, match="not there") as raised:
        await recorded.run(nested(outer))
    assert [note for note in raised.value.__notes__ if "teardown" in note] == [
        "Later, the teardown of resource 'inner' failed: OSError: inner",
        "Later, the teardown of resource 'outer' failed: OSError: outer",
    ]


async def test_a_cancellation_during_a_teardown_skips_no_other_teardown(recorded: RecordedEngine) -> None:
    tearing_down = asyncio.Event()

    @cs.resource
    async def slow() -> AsyncIterator[str]:
        yield "slow"
        tearing_down.set()
        await asyncio.Event().wait()

    run = asyncio.create_task(recorded.run(use(cs.inject(resource("first", plain=True)), cs.inject(slow))))
    await tearing_down.wait()
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    assert log == ["first"]
    assert [(e.resource_name, e.result) for e in recorded.of(ResourceReleased)] == [
        ("slow", "cancellation"),
        ("first", "success"),
    ]


@pytest.fixture
def slow_setup() -> Iterator[tuple[ResourceDefinition, threading.Event, threading.Event, threading.Event]]:
    """A plain resource whose setup blocks until `release`, with events for setup, release and teardown."""
    begun, release, torn_down = threading.Event(), threading.Event(), threading.Event()

    @cs.resource
    def slow() -> Iterator[str]:
        begun.set()
        release.wait(HANG)
        yield "slow"
        log.append("slow")
        torn_down.set()

    yield slow, begun, release, torn_down
    release.set()


async def test_a_setup_that_is_cancelled_is_awaited_and_torn_down(slow_setup: Any, recorded: RecordedEngine) -> None:
    slow, begun, release, torn_down = slow_setup
    run = asyncio.create_task(recorded.run(use(cs.inject(resource("first", plain=False)), cs.inject(slow))))
    await asyncio.to_thread(begun.wait)
    run.cancel()
    await asyncio.sleep(0)
    assert not run.done()
    release.set()
    with pytest.raises(asyncio.CancelledError):
        await run
    assert torn_down.is_set()
    assert log == ["slow", "first"]
    assert [e.resource_name for e in recorded.of(ResourceAcquired)] == ["first", "slow"]
    assert [e.resource_name for e in recorded.of(ResourceReleased)] == ["slow", "first"]


async def test_a_setup_that_does_not_end_is_torn_down_later(
    slow_setup: Any, recorded: RecordedEngine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(threads, "CANCEL_GRACE", 0)
    slow, begun, release, torn_down = slow_setup
    run = asyncio.create_task(recorded.run(use(cs.inject(resource("first", plain=True)), cs.inject(slow))))
    await asyncio.to_thread(begun.wait)
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    assert "Resource 'slow': its setup still runs" in caplog.text
    (failed,) = recorded.of(ResourceSetupFailed)
    assert (failed.resource_name, failed.result, failed.exception) == ("slow", "cancellation", None)
    assert log == []
    release.set()
    await asyncio.to_thread(torn_down.wait)
    assert log[0] == "slow"


async def test_a_setup_that_fails_after_the_cancellation_is_a_note_on_it(recorded: RecordedEngine) -> None:
    begun, release = threading.Event(), threading.Event()

    @cs.resource
    def slow() -> Iterator[str]:
        begun.set()
        release.wait(HANG)
        raise OSError("no disk")
        yield ""

    run = asyncio.create_task(recorded.run(cs.task(lambda s=cs.inject(slow): s, name="use")()))
    await asyncio.to_thread(begun.wait)
    run.cancel()
    await asyncio.sleep(0)
    release.set()
    with pytest.raises(asyncio.CancelledError) as raised:
        await run
    assert raised.value.__notes__ == ["Later, the setup of resource 'slow' failed: OSError: no disk"]
    (failed,) = recorded.of(ResourceSetupFailed)
    assert failed.exception is not None
    assert (failed.result, failed.exception.message) == ("failure", "no disk")


PROGRAM = """
import asyncio, cascade as cs

@cs.resource
{kind} db():
    yield 1
    raise RuntimeError("rollback failed")

@cs.task
async def slow(d=cs.inject(db)):
    print("up", flush=True)
    await asyncio.Event().wait()

cs.run(slow(), log_level="ERROR")
"""


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
@pytest.mark.parametrize("kind", ["def", "async def"])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_keeps_its_exit_code(kind: str, number: signal.Signals, code: int) -> None:
    program = PROGRAM.format(kind=kind)
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        process.send_signal(number)
        _, text = process.communicate()
    assert process.returncode in {code, -number}, text.decode()
