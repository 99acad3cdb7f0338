import asyncio
import math
from collections.abc import Callable
from typing import Any

import pytest

import cascade as cs
from cascade.runtime.events import RunFinished, TaskExecutionFinished, TaskRetrying
from cascade.runtime.exceptions import MAX_HISTORY
from cascade.spec.retry import RetryPolicy
from tests.runtime.conftest import RecordedEngine


class OwnPolicy(RetryPolicy):
    """A retry policy of the user that raises an error."""

    def __init__(self, delay_before: Callable[[int], Any]) -> None:
        super().__init__(3)
        object.__setattr__(self, "delay_before", delay_before)


def broken(retry: int) -> float:
    raise ZeroDivisionError("my policy")


@pytest.mark.parametrize("delay_before", [broken, lambda _: math.nan, lambda _: -1, lambda _: "1", lambda _: None])
async def test_the_error_of_a_policy_hides_neither_the_error_of_the_task_nor_its_end(
    recorded: RecordedEngine, delay_before: Callable[[int], Any]
) -> None:
    error = ConnectionError("refused")

    @cs.task(threaded=False)
    def connect() -> None:
        raise error

    target = connect()
    target._retry_policy = OwnPolicy(delay_before)
    with pytest.raises(ConnectionError) as caught:
        await recorded.run(target)
    assert caught.value is error
    assert error.__notes__[0].startswith("Later, the retry policy of task 'connect', attempt 1 of 4 failed: ")
    (finished,) = recorded.of(TaskExecutionFinished)
    assert (finished.status, finished.error) == ("Failed", "ConnectionError: refused")
    assert recorded.of(RunFinished)[0].error == "ConnectionError: refused"
    assert recorded.of(TaskRetrying) == []


async def test_the_published_delay_is_the_actual_delay(
    recorded: RecordedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []
    real = asyncio.sleep

    async def sleep(delay: float) -> None:
        slept.append(delay)
        await real(0)

    monkeypatch.setattr("cascade.runtime._task_execution.asyncio.sleep", sleep)

    @cs.task(threaded=False)
    def fail() -> None:
        raise LookupError

    with pytest.raises(LookupError):
        await recorded.run(fail().with_retry(5, delay=1, backoff=4, max_delay=10, jitter=0.5))
    published = [event.delay for event in recorded.of(TaskRetrying)]
    assert slept == published
    assert all(most / 2 <= delay <= most for delay, most in zip(published, [1, 4, 10, 10, 10], strict=True))


async def test_a_delay_of_centuries_is_waited_for(recorded: RecordedEngine) -> None:
    @cs.task(threaded=False)
    def fail() -> None:
        raise LookupError

    waiting = asyncio.Event()
    recorded.bus.subscribe(TaskRetrying, lambda _: waiting.set())
    run = asyncio.ensure_future(recorded.run(fail().with_retry(1, delay=1e10, max_delay=1e300)))
    await waiting.wait()
    done, _ = await asyncio.wait({run}, timeout=0.05)
    assert not done
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run


SHARED = ConnectionError("shared")


def raise_shared() -> None:
    raise SHARED


def raise_from_shared() -> None:
    try:
        raise_shared()
    except ConnectionError as error:
        raise LookupError("wrapped") from error


def raise_group_of_shared() -> None:
    raise ExceptionGroup("group", [SHARED])


@pytest.mark.parametrize("threaded", [True, False])
@pytest.mark.parametrize("function", [raise_shared, raise_from_shared, raise_group_of_shared], ids=lambda f: f.__name__)
async def test_the_traceback_of_one_exception_object_does_not_grow(
    recorded: RecordedEngine, function: Any, *, threaded: bool
) -> None:
    SHARED.__traceback__ = None
    with pytest.raises((ConnectionError, LookupError, ExceptionGroup)):
        await recorded.run(cs.task(function, threaded=threaded)().with_retry(40))
    traces = [event.exception.stacktrace for event in recorded.of(TaskRetrying) if event.exception]
    assert len(traces) == 40
    assert {len(trace) for trace in traces[1:]} == {len(traces[1])}
    assert all(function.__name__ in trace for trace in traces)
    length, trace = 0, SHARED.__traceback__
    while trace is not None:
        length, trace = length + 1, trace.tb_next
    assert length < 40


async def test_the_first_traceback_of_a_shared_exception_stays(recorded: RecordedEngine) -> None:
    def origin() -> None:
        raise LookupError("cached")

    with pytest.raises(LookupError) as cached:
        origin()

    @cs.task(threaded=False)
    def again() -> None:
        raise cached.value

    with pytest.raises(LookupError):
        await recorded.run(again().with_retry(3))
    (finished,) = recorded.of(TaskExecutionFinished)
    assert [a.error is not None and "in origin" in a.error.stacktrace for a in finished.attempts] == [True] * 4


async def test_the_history_of_a_task_is_bounded_and_its_count_is_exact(recorded: RecordedEngine) -> None:
    @cs.task(threaded=False)
    def fail() -> None:
        raise LookupError

    with pytest.raises(LookupError):
        await recorded.run(fail().with_retry(1_000))
    (finished,) = recorded.of(TaskExecutionFinished)
    numbers = [attempt.number for attempt in finished.attempts]
    assert numbers == [*range(1, 65), *range(1_001 - 63, 1_002)]
    assert (len(finished.waits), finished.attempt_count, finished.max_attempts) == (MAX_HISTORY, 1_001, 1_000)
    assert len(recorded.of(TaskRetrying)) == 1_000


class UnreachableError(ConnectionError):
    pass


def fails_with(*errors: BaseException) -> tuple[Callable[[], str], list[BaseException]]:
    """Return a function that raises the errors, one at each call, and the list of the errors that it has raised."""
    raised: list[BaseException] = []

    def connect() -> str:
        if len(raised) < len(errors):
            raised.append(errors[len(raised)])
            raise raised[-1]
        return "done"

    return connect, raised


async def as_coroutine(function: Callable[[], str]) -> str:
    return function()


KINDS = pytest.mark.parametrize("kind", ["threaded", "inline", "coroutine", "map"])


def retried(function: Callable[[], str], kind: str, **options: Any) -> Any:
    """Return a call, or a map of one item, with three retries."""
    if kind == "coroutine":
        return cs.task(as_coroutine, name="connect")(function).with_retry(3, **options)
    task = cs.task(lambda _: function(), name="connect", threaded=None if kind == "threaded" else False)
    return (task.map(_=[0]) if kind == "map" else task(0)).with_retry(3, **options)


@KINDS
async def test_an_error_that_matches_is_retried(recorded: RecordedEngine, kind: str) -> None:
    function, raised = fails_with(UnreachableError("a"), ValueError("busy"), ConnectionError("c"))
    target = retried(function, kind, retry_on=(ConnectionError, lambda error: "busy" in str(error)))
    assert await recorded.run(target) in ("done", ["done"])
    assert [str(error) for error in raised] == ["a", "busy", "c"]
    assert [(e.attempt, e.max_attempts) for e in recorded.of(TaskRetrying)] == [(1, 3), (2, 3), (3, 3)]


@KINDS
async def test_an_error_that_does_not_match_ends_the_task(recorded: RecordedEngine, kind: str) -> None:
    error = ValueError("wrong input")
    function, raised = fails_with(UnreachableError("a"), error)
    with pytest.raises(ValueError, match="wrong input") as caught:
        await recorded.run(retried(function, kind, retry_on=ConnectionError))
    assert caught.value is error
    assert len(raised) == 2
    finished = recorded.of(TaskExecutionFinished, "connect")[0]
    assert (finished.attempt_count, finished.max_attempts) == (2, 3)
    assert [attempt.result for attempt in finished.attempts] == ["failure", "failure"]


def broken_condition(error: Exception) -> bool:
    raise ZeroDivisionError("my condition")


async def forgotten_await(error: Exception) -> bool:
    return True


@KINDS
@pytest.mark.parametrize(
    ("condition", "reason"),
    [
        (broken_condition, "ZeroDivisionError: my condition"),
        (lambda error: forgotten_await(error=error), "TypeError: a function"),
    ],
)
async def test_a_condition_that_raises_ends_the_task_with_its_own_error_and_a_note(
    recorded: RecordedEngine, kind: str, condition: Callable[[Exception], bool], reason: str
) -> None:
    function, raised = fails_with(ConnectionError("refused"))
    with pytest.raises(ConnectionError, match="refused") as caught:
        await recorded.run(retried(function, kind, retry_on=condition))
    assert raised == [caught.value]
    assert f"attempt 1 of 4 failed: {reason}" in caught.value.__notes__[0]
    assert recorded.of(TaskRetrying) == []


@KINDS
@pytest.mark.parametrize("error", [asyncio.CancelledError("own"), SystemExit(3)], ids=repr)
async def test_what_is_no_exception_is_never_retried(recorded: RecordedEngine, kind: str, error: BaseException) -> None:
    asked: list[BaseException] = []

    def ask(error: Exception) -> bool:
        asked.append(error)
        return True

    function, raised = fails_with(error)
    with pytest.raises(BaseException) as caught:  # noqa: PT011 - of the two types above
        await recorded.run(retried(function, kind, retry_on=ask))
    assert isinstance(caught.value, type(error))
    assert (len(raised), asked) == (1, [])


def test_the_terminal_prints_the_number_of_the_next_attempt(capsys: pytest.CaptureFixture[str]) -> None:
    function, _ = fails_with(ConnectionError("a"), ConnectionError("b"))
    assert cs.run(cs.task(function, name="connect")().with_retry(3, delay=0.001)) == "done"
    printed = capsys.readouterr().err.splitlines()
    assert printed[2:4] == [
        "⚠️  Retrying connect (attempt 2 of 4, retry 1 of 3) in 0.00s: ConnectionError: a",
        "⚠️  Retrying connect (attempt 3 of 4, retry 2 of 3) in 0.00s: ConnectionError: b",
    ]
