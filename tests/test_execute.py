"""`cs.execute` and `RunResult`."""

import asyncio
import contextlib
import copy
import inspect
import pickle
import signal
import subprocess
import sys
import textwrap
import traceback
import weakref
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import cascade as cs
from cascade.connectors.memory import MemoryConnector
from cascade.connectors.report import ConnectorReport
from cascade.runtime.engine import run_nested
from cascade.runtime.exceptions import TelemetryLostError
from tests.lab.time_limits import subprocess_environment
from tests.lab.waiting import HANG
from tests.runtime.test_memory import no_garbage_collection


@cs.task(threaded=False)
def one() -> int:
    return 1


@cs.task
def divide(x: float) -> float:
    return 1 / x


@cs.task(threaded=False)
def echo(value: Any) -> Any:
    return value


class Value:
    """A value of which there can be a weak reference."""


class StrictConnector(MemoryConnector):
    """A strict connector that has lost telemetry."""

    async def disconnect(self) -> None:
        raise TelemetryLostError("5 messages were lost", lost=5)


def execute(target: Any, **options: Any) -> Any:
    return cs.execute(target, log_level="OFF", **options)


def test_a_run_that_succeeds() -> None:
    connector = MemoryConnector()
    result = execute([one(), echo("a")], connector=connector)
    first, last = connector.payloads[0], connector.payloads[-1]
    assert (result.value, result.error, result.status) == ([1, "a"], None, "Succeeded")
    assert (result.run_id, result.trace_id) == (first["run_id"], first["trace_id"])
    assert result.duration == pytest.approx(last["body"]["duration_ms"] / 1e3)
    assert result.failures == ()
    assert result.unwrap() == [1, "a"]


def test_none_is_a_value() -> None:
    result = execute(echo(None))
    assert (result.value, result.error, result.unwrap()) == (None, None, None)


def test_a_run_that_fails() -> None:
    connector = MemoryConnector()
    result = execute(divide(0), connector=connector)
    assert (result.value, result.status) == (None, "Failed")
    assert isinstance(result.error, ZeroDivisionError)
    assert connector.payloads[-1]["body"]["status"] == "Failed"


@pytest.mark.parametrize("threaded", [True, False])
def test_the_traceback_is_that_of_run(*, threaded: bool) -> None:
    def frames(call: Any) -> list[str]:
        with pytest.raises(ZeroDivisionError) as caught:
            call()
        names = [frame.name for frame in traceback.extract_tb(caught.tb)]
        return names[names.index("perform") :]

    fail = cs.task(threaded=threaded)(divide.func)
    options: dict[str, Any] = {"connector": MemoryConnector(), "log_level": "OFF"}
    assert frames(lambda: cs.run(fail(0), **options)) == frames(lambda: cs.execute(fail(0), **options).unwrap())


def test_unwrap_raises_the_same_exception_again_and_its_traceback_does_not_grow() -> None:
    result = execute(divide(0))
    raised = []
    for _ in range(3):
        with pytest.raises(ZeroDivisionError) as caught:
            result.unwrap()
        raised.append((caught.value, len(traceback.extract_tb(caught.tb))))
    assert raised == [(result.error, raised[0][1])] * 3


def test_notes_of_later_errors_stay() -> None:
    @cs.resource
    def broken() -> Any:
        yield 1
        raise ValueError("teardown")

    use = cs.task(lambda x=cs.inject("broken"): 1 / 0, name="use")
    result = execute(use(), resources=[broken])
    assert isinstance(result.error, ZeroDivisionError)
    assert any("teardown" in note for note in result.error.__notes__)


def test_a_task_that_exits_is_a_failure() -> None:
    result = execute(cs.task(lambda: sys.exit(3), name="leave")())
    assert isinstance(result.error, SystemExit)
    assert (result.status, result.error.code) == ("Failed", 3)


def test_a_task_that_cancels_itself_is_a_result() -> None:
    async def cancel() -> None:
        raise asyncio.CancelledError

    result = execute(cs.task(cancel)())
    assert isinstance(result.error, asyncio.CancelledError)
    assert result.status == "Cancelled"


def test_a_keyboard_interrupt_is_raised() -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        execute(cs.task(interrupt)())


async def test_the_cancellation_of_the_caller_is_raised() -> None:
    started = asyncio.Event()

    @cs.task
    async def wait() -> None:
        started.set()
        await asyncio.Event().wait()

    run = asyncio.create_task(cs.execute_async(wait(), log_level="OFF"))
    await started.wait()
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run


def test_a_run_that_exceeds_its_timeout_has_failed() -> None:
    @cs.task
    async def wait() -> None:
        await asyncio.Event().wait()

    result = execute(wait(), timeout=0.05)
    assert result.status == "Failed"
    assert isinstance(result.error, TimeoutError)


def test_a_skipped_target_is_an_error() -> None:
    result = execute(one().run_if(cs.Param("off", default=False, type=bool)))
    assert isinstance(result.error, cs.DependencyMissingError)
    assert (result.status, result.counts["skipped"]) == ("Failed", 1)


@pytest.mark.parametrize(
    ("target", "options", "kind"),
    [
        (5, {}, TypeError),
        ([one], {}, TypeError),
        (one(), {"run_id": "a/b"}, ValueError),
        (one(), {"tags": "a"}, TypeError),
        (one(), {"max_workers": 0}, ValueError),
        (one(), {"connector": 5}, TypeError),
        (one(), {"nonsense": 5}, TypeError),
        (one(), {"log_format": "xml"}, ValueError),
    ],
    ids=str,
)
def test_wrong_arguments_are_raised(target: Any, options: dict[str, Any], kind: type[Exception]) -> None:
    with pytest.raises(kind):
        execute(target, **options)


def test_a_missing_parameter_is_a_failure_of_the_run() -> None:
    result = execute(echo(cs.Param("size", type=int)))
    assert result.status == "Failed"
    assert "size" in str(result.error)


async def test_a_running_loop_needs_execute_async() -> None:
    with pytest.raises(RuntimeError, match=r"cs\.execute\(\) cannot run.*`await cs\.execute_async\(\.\.\.\)`"):
        cs.execute(one())
    result = await cs.execute_async(one(), log_level="OFF")
    assert result.unwrap() == 1


def test_execute_async_needs_a_running_loop() -> None:
    coroutine = cs.execute_async(one())
    with pytest.raises(RuntimeError, match=r"cs\.execute_async needs a running.*call cs\.execute\("):
        coroutine.send(None)


def test_the_parameters_are_those_of_run() -> None:
    expected = inspect.signature(cs.run).parameters
    assert inspect.signature(cs.execute).parameters == expected
    assert inspect.signature(cs.execute_async).parameters == expected


def test_the_counts_are_those_of_the_last_message() -> None:
    attempts: Counter[int] = Counter()

    @cs.task
    def flaky(x: int) -> int:
        attempts[x] += 1
        if x == 1 and attempts[x] == 1:
            raise ConnectionError
        return x

    class Cached:
        def check(self, task_id: str, inputs: dict[str, Any]) -> int:
            return 5

        def save(self, task_id: str, inputs: dict[str, Any], output: Any) -> None: ...

    hit = one().with_cache(Cached())
    skipped = echo(1).run_if(cs.Param("off", default=False, type=bool))
    last: Any = cs.task(lambda *_: 0, name="last")
    fail = divide(last(flaky.map(x=[1, 2, 3]).with_retry(2), hit))
    connector = MemoryConnector()
    result = execute([fail, skipped], connector=connector)
    expected = {"completed": 5, "failed": 1, "cancelled": 0, "skipped": 2, "cached": 1, "retried": 1, "held_back": 0}
    assert result.counts == expected
    assert {name: count for name, count in expected.items() if count} == connector.payloads[-1]["body"]["metadata"][
        "counts"
    ]


def test_the_counts_need_no_connector_and_no_messages() -> None:
    assert execute(divide.map(x=[1, 2, 4])).counts["completed"] == 4
    assert execute(divide.map(x=[1, 0])).counts["failed"] == 1


@pytest.mark.parametrize("how", ["the same engine", "cs.execute"])
def test_tasks_of_nested_runs_are_not_counted(how: str) -> None:
    @cs.task
    async def outer() -> Any:
        if how == "the same engine":
            return await run_nested([one(), one()])
        return (await cs.execute_async([one(), one()], log_level="OFF")).unwrap()

    result = execute(outer())
    assert (result.value, result.counts["completed"]) == ([1, 1], 1)


def test_a_nested_failure_that_the_task_handles_is_no_failure_of_the_run() -> None:
    @cs.task
    async def outer() -> str:
        return (await cs.execute_async(divide(0), log_level="OFF")).status

    assert execute(outer()).unwrap() == "Failed"


def test_the_failures_after_which_the_run_continued() -> None:
    connector = MemoryConnector()
    result = execute([divide.map(x=[1, 0]).allow_failure(), echo(1)], connector=connector)
    (failure,) = result.failures
    assert result.value == [[1.0, failure], 1]
    assert (failure.task_name, failure.map_index) == ("divide", 1)
    assert isinstance(failure.error, ZeroDivisionError)
    assert (result.status, result.error, result.counts["failed"]) == ("Succeeded", None, 1)
    assert connector.payloads[-1]["body"]["metadata"]["counts"]["failed"] == 1


def test_a_run_that_finishes_what_does_not_depend_on_a_failure() -> None:
    ended: list[int] = []
    other = cs.task(lambda: ended.append(1), name="other", threaded=False)
    result = execute([divide(0), divide(0.0), other()], fail_fast=False)
    assert (result.value, result.status, ended) == (None, "Failed", [1])
    assert isinstance(result.error, ZeroDivisionError)
    assert result.counts["failed"] == 2


def test_the_trace_url(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CASCADE_TRACE_URL", "http://jaeger/trace/{trace_id}")
    result = execute(one(), connector=MemoryConnector())
    assert result.trace_url == f"http://jaeger/trace/{result.trace_id}"
    assert execute(one()).trace_url is None
    monkeypatch.delenv("CASCADE_TRACE_URL")
    assert execute(one(), connector=MemoryConnector()).trace_url is None


def test_the_trace_is_that_of_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACEPARENT", f"00-{'ab' * 16}-{'cd' * 8}-01")
    assert execute(one()).trace_id == "ab" * 16


class Plain:
    """A connector without a report. It refuses the messages of tasks."""

    def __init__(self, *, refuses: bool = False) -> None:
        self.refuses = refuses

    async def connect(self) -> None: ...

    async def disconnect(self) -> None: ...

    async def publish(self, topic: str, payload: dict[str, Any], qos: int = 0) -> None:
        if self.refuses and "task_id" in payload["body"]:
            raise ConnectionError("refused")

    async def subscribe(self, topic: str, callback: Any) -> None: ...


@pytest.mark.injects_errors
def test_the_telemetry_has_the_numbers_of_each_connector() -> None:
    result = execute(one(), connector=[MemoryConnector(), MemoryConnector(), Plain(), Plain(refuses=True)])
    assert {name: (report.sent, report.lost) for name, report in result.telemetry.items()} == {
        "memory": (4, 0),
        "memory 2": (4, 0),
        "plain": (4, 0),
        "plain 2": (2, 2),
    }
    assert "refused" in result.telemetry["plain 2"].last_error


def test_the_telemetry_is_that_of_the_run_alone() -> None:
    connector = MemoryConnector()
    for _ in range(2):
        result = execute(one(), connector=connector)
        assert result.telemetry["memory"].sent == 4
    assert execute(one()).telemetry == {}


def test_a_report_that_raises_is_no_failure(caplog: pytest.LogCaptureFixture) -> None:
    class Counting(Plain):
        sent = 10

        def report(self) -> ConnectorReport:
            self.sent += 1
            return ConnectorReport(sent=self.sent)

    assert execute(one(), connector=Counting()).telemetry["counting"].sent == 1
    assert caplog.records == []


def test_a_loss_of_a_strict_connector_keeps_the_value() -> None:
    result = execute(one(), connector=StrictConnector())
    assert (result.value, result.status) == (1, "Succeeded")
    assert isinstance(result.error, TelemetryLostError)
    with pytest.raises(TelemetryLostError):
        result.unwrap()


def test_the_loss_of_a_nested_run_is_a_failure_of_the_task() -> None:
    @cs.task
    async def outer() -> Any:
        return await cs.run_async(one(), connector=StrictConnector(), log_level="OFF")

    result = execute(outer())
    assert (result.value, result.status) == (None, "Failed")


def test_a_result_has_no_truth_value() -> None:
    with pytest.raises(TypeError, match=r"compare result\.status"):
        bool(execute(one()))


def test_a_result_is_frozen_and_compares_by_identity() -> None:
    result = execute(one())
    with pytest.raises(AttributeError):
        result.value = 2
    assert result == result  # noqa: PLR0124
    assert result != execute(one())
    assert len({result, result}) == 1


def test_the_repr_is_short_and_masked() -> None:
    @cs.task
    def fail() -> None:
        raise ValueError("password=hunter2 " + "x" * 10_000)

    result = execute(fail(), run_id="nightly")
    assert repr(result).startswith("<RunResult nightly Failed in 0.")
    assert "ValueError" in repr(result)
    assert "hunter2" not in repr(result)
    assert len(repr(result)) < 2_200
    assert "secret value" not in repr(execute(echo("secret value")))


@pytest.mark.parametrize("copied", [lambda result: pickle.loads(pickle.dumps(result)), copy.copy, copy.deepcopy])  # noqa: S301
def test_a_result_can_be_copied(copied: Any) -> None:
    result = copied(execute(divide.map(x=[1, 2]), connector=MemoryConnector()))
    assert (result.value, result.counts["completed"], result.telemetry["memory"].lost) == ([1.0, 0.5], 3, 0)
    failed = copied(execute(divide(0)))
    with pytest.raises(ZeroDivisionError):
        failed.unwrap()


def test_a_result_keeps_only_its_value_alive() -> None:
    kept: list[weakref.ref[Value]] = []

    @cs.task
    def make() -> Value:
        kept.append(weakref.ref(value := Value()))
        return value

    @cs.task
    def other(_: Value) -> Any:
        return make.func()

    argument = make()
    target = other(argument)
    lazy = weakref.ref(target)
    with no_garbage_collection():
        result = execute(target)
        del target
        assert [reference() is not None for reference in kept] == [False, True]
        assert lazy() is None
        assert isinstance(result.value, Value)
        del result
        assert kept[1]() is None


def test_a_failed_result_frees_the_values_and_itself() -> None:
    kept: list[weakref.ref[Value]] = []

    @cs.task
    def make() -> Value:
        kept.append(weakref.ref(value := Value()))
        return value

    class OwnError(Exception):
        """An exception of which there can be a weak reference."""

    @cs.task(threaded=False)
    def fail(_: Value) -> None:
        raise OwnError

    with no_garbage_collection():
        after: Any = cs.task(lambda _, x: x, name="after")
        result = execute(after(fail(make()), make()))
        error = weakref.ref(result.error)
        for _ in range(2):
            with contextlib.suppress(OwnError):
                result.unwrap()
        del result
        assert error() is None
        assert [reference() for reference in kept] == [None] * len(kept)


@pytest.mark.parametrize("ends", ["dropped", "raised"])
def test_a_run_that_continued_after_failures_frees_its_values(ends: str) -> None:
    kept: list[weakref.ref[Value]] = []

    @cs.task
    def make() -> Value:
        kept.append(weakref.ref(value := Value()))
        return value

    @cs.task
    def fail(_: Value) -> None:
        raise ValueError("no")

    targets = [fail(make()), fail(make()).allow_failure()]
    with no_garbage_collection():
        if ends == "dropped":
            result = execute(targets, fail_fast=False)
            assert len(result.failures) == 2
            del result
        else:
            with contextlib.suppress(ValueError):
                cs.run(targets, fail_fast=False, log_level="OFF")
        assert [reference() for reference in kept] == [None, None]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, -signal.SIGINT), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_program(number: signal.Signals, code: int, tmp_path: Path) -> None:
    script = tmp_path / "flow.py"
    script.write_text(
        textwrap.dedent(
            f"""
            import asyncio, os
            import cascade as cs

            @cs.task
            async def wait():
                os.kill(os.getpid(), {int(number)})
                await asyncio.Event().wait()

            cs.execute(wait(), log_level="OFF")
            print("continued")
            """
        )
    )
    command = [sys.executable, str(script)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=HANG, check=False, env=subprocess_environment()
    )
    assert (done.returncode, done.stdout) == (code, "")
