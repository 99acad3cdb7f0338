"""`sys.exit` and Ctrl-C in a task end the run with the exit code of the program and a complete trace."""

import asyncio
import subprocess
import sys
import textwrap
from collections.abc import Callable
from typing import Any

import pytest

import cascade as cs
from cascade.connectors.memory import MemoryConnector
from cascade.runtime.engine import run_nested
from tests.lab.waiting import HANG


class Stop(BaseException):
    """A BaseException of the user's code."""


def _threaded(function: Callable[[int], Any]) -> Any:
    return cs.task(function, name="work")


def _in_loop(function: Callable[[int], Any]) -> Any:
    return cs.task(function, name="work", threaded=False)


def _async(function: Callable[[int], Any]) -> Any:
    async def work(i: int) -> Any:
        await asyncio.sleep(0)
        return function(i)

    return cs.task(work)


def plain(make: Any, stop: Callable[[], None]) -> Any:
    return make(lambda i: stop())(0)


def fan_out(make: Any, stop: Callable[[], None]) -> Any:
    task = make(lambda i: stop() if i == 7 else i)
    return cs.task(lambda xs: xs, name="all")([task(i) for i in range(20)])


def mapped(make: Any, stop: Callable[[], None]) -> Any:
    return make(lambda i: stop() if i == 7 else i).map(i=list(range(20)))


def retried(make: Any, stop: Callable[[], None]) -> Any:
    return _fails_first(make, stop)(0).with_retry(3)


def retried_item(make: Any, stop: Callable[[], None]) -> Any:
    return _fails_first(make, stop).map(i=[1, 2]).with_retry(3)


def _fails_first(make: Any, stop: Callable[[], None]) -> Any:
    calls: list[int] = []

    def work(i: int) -> None:
        calls.append(i)
        if calls.count(i) == 1:
            raise OSError
        stop()

    return make(work)


def nested(make: Any, stop: Callable[[], None]) -> Any:
    inner = mapped(make, stop)

    @cs.task
    async def outer() -> Any:
        return await run_nested(inner)

    return outer()


def nested_in_thread(make: Any, stop: Callable[[], None]) -> Any:
    inner = mapped(make, stop)
    return cs.task(lambda: cs.run(inner, log_level="OFF"), name="outer")()


SHAPES = [plain, fan_out, mapped, retried, retried_item, nested, nested_in_thread]


def _check_trace(connector: MemoryConnector, error: str) -> None:
    bodies = [payload["body"] for payload in connector.payloads]
    runs = [body for body in bodies if body["type"] == "LifecycleEvent"]
    assert [body["event"] for body in runs].count("ENGINE_STOPPED") == [body["event"] for body in runs].count(
        "ENGINE_STARTED"
    )
    assert runs[-1] is bodies[-1]
    assert runs[-1]["status"] == "Failed"
    assert error in runs[-1]["error"]
    begun = {body["task_id"] for body in bodies if body.get("state") == "RUNNING"}
    ended = [body["task_id"] for body in bodies if body.get("state") in {"COMPLETED", "FAILED"}]
    assert begun <= set(ended)
    assert len(ended) == len(set(ended))


@pytest.mark.parametrize("make", [_threaded, _in_loop, _async])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("error", [SystemExit(7), KeyboardInterrupt(), Stop("mine")], ids=["exit", "ctrl-c", "own"])
def test_an_exit_of_the_program_ends_the_run_unchanged(make: Any, shape: Any, error: BaseException) -> None:
    def stop() -> None:
        raise error

    connector = MemoryConnector()
    with pytest.raises(type(error)) as caught:
        cs.run(shape(make, stop), connector=connector, log_level="OFF")
    assert caught.value is error
    _check_trace(connector, type(error).__name__)


@pytest.mark.parametrize("step", ["setup", "teardown"])
@pytest.mark.parametrize("is_async", [False, True])
def test_a_resource_may_end_the_program_too(step: str, is_async: bool) -> None:
    def stop(now: str) -> None:
        if now == step:
            sys.exit(7)

    @cs.resource(name="it")
    def plain_resource() -> Any:
        stop("setup")
        yield 1
        stop("teardown")

    @cs.resource(name="it")  # pyright: ignore[reportArgumentType]  # stop() does not return: the yield is not seen
    async def async_resource() -> Any:
        stop("setup")
        yield 1
        stop("teardown")

    use = cs.task(lambda it=cs.inject(async_resource if is_async else plain_resource): it, name="use")
    connector = MemoryConnector()
    with pytest.raises(SystemExit) as caught:
        cs.run(use(), connector=connector, log_level="OFF")
    assert caught.value.code == 7
    _check_trace(connector, "SystemExit")


@pytest.mark.parametrize(
    ("call", "code"), [("sys.exit(7)", 7), ("sys.exit()", 0), ("sys.exit('text')", 1), ("exit(3)", 3)]
)
def test_the_process_ends_with_the_exit_code_of_a_mapped_task(call: str, code: int) -> None:
    script = textwrap.dedent(
        f"""
        import sys
        import cascade as cs

        @cs.task
        def work(i):
            if i == 5: {call}
            return i

        cs.run(work.map(i=list(range(20))), log_level="OFF")
        """
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=False, text=True, timeout=HANG)
    assert done.returncode == code
    assert "Traceback" not in done.stderr
