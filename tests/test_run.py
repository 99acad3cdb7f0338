"""`cs.run`: its output, the errors of its arguments, and signals."""

import asyncio
import contextlib
import inspect
import json
import random
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import Any

import pytest

import cascade as cs
from cascade.connectors import by_name
from cascade.connectors.memory import MemoryConnector
from cascade.messaging.bus import MessageBus as Messages
from cascade.messaging.bus import bus as messaging_bus
from cascade.messaging.renderer import CliRenderer
from cascade.runtime.engine import run_nested
from tests.lab.extras import needs
from tests.lab.time_limits import subprocess_environment
from tests.lab.waiting import HANG


@cs.task
def one() -> int:
    return 1


@cs.task
def divide() -> float:
    return 1 / 0


def test_it_returns_the_value_and_logs_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    assert cs.run(one()) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert "▶️" in err
    assert "one" in err


def test_json_logs_are_json(capsys: pytest.CaptureFixture[str]) -> None:
    cs.run(one(), log_format="json", connector=MemoryConnector())
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [line["event_id"] for line in lines] == [
        "run.started",
        "task.started",
        "task.finished_success",
        "run.finished_success",
        "run.trace",
    ]


def test_the_end_of_a_run_names_its_trace(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    connector = MemoryConnector()
    monkeypatch.setenv("CASCADE_TRACE_URL", "http://jaeger/trace/{trace_id}?x=1")
    cs.run(one(), connector=connector)
    trace_id = connector.payloads[0]["trace_id"]
    assert capsys.readouterr().err.splitlines()[-1].endswith(f"Trace {trace_id}  http://jaeger/trace/{trace_id}?x=1")


@pytest.mark.parametrize("log_format", ["human", "json"])
@pytest.mark.parametrize(
    ("log_level", "times"), [("DEBUG", 1), ("INFO", 1), ("WARNING", 1), ("ERROR", 1), ("error", 1), ("OFF", 0)]
)
def test_a_failed_run_names_its_trace_once_at_every_level(
    log_level: str, times: int, log_format: str, capsys: pytest.CaptureFixture[str]
) -> None:
    connector = MemoryConnector()
    with pytest.raises(ZeroDivisionError):
        cs.run(divide(), connector=connector, log_level=log_level, log_format=log_format)
    lines = capsys.readouterr().err.splitlines()
    trace_id = connector.payloads[0]["trace_id"]
    if log_format == "json":
        lines = [json.dumps(json.loads(line)["data"]) for line in lines]
    assert [trace_id in line for line in lines].count(True) == times
    assert (trace_id in lines[-1]) if times else lines == []


def test_a_run_that_succeeds_names_its_trace_at_info_only(capsys: pytest.CaptureFixture[str]) -> None:
    cs.run(one(), connector=MemoryConnector(), log_level="WARNING")
    assert capsys.readouterr().err == ""


NESTED = ["the same engine", "cs.run", "cs.run_async"]


def started_by_a_task(how: str, inner: Any, **options: Any) -> Any:
    """A task that starts the run `inner`."""

    async def same_engine() -> None:
        await run_nested(inner)

    async def run_async() -> None:
        await cs.run_async(inner, **options)

    def run_in_thread() -> None:
        cs.run(inner, **options)

    function: Any = {"the same engine": same_engine, "cs.run": run_in_thread, "cs.run_async": run_async}[how]
    return function


@pytest.mark.parametrize("how", NESTED)
@pytest.mark.parametrize("caught", [True, False])
def test_a_failed_nested_run_names_the_trace_once(how: str, caught: bool, capsys: pytest.CaptureFixture[str]) -> None:
    connector = MemoryConnector()
    start = started_by_a_task(how, divide(), connector=MemoryConnector(), log_level="ERROR")

    @cs.task
    async def outer() -> None:
        with contextlib.suppress(*([ZeroDivisionError] if caught else [])):
            await (start() if inspect.iscoroutinefunction(start) else asyncio.to_thread(start))

    with contextlib.nullcontext() if caught else pytest.raises(ZeroDivisionError):
        cs.run(outer(), connector=connector, log_level="ERROR")
    err = capsys.readouterr().err
    assert err.count(connector.payloads[0]["trace_id"]) == 1
    assert err.splitlines()[-1].startswith("🔎 Trace")


@pytest.mark.parametrize("how", NESTED)
def test_nested_runs_that_succeed_name_the_trace_once(how: str, capsys: pytest.CaptureFixture[str]) -> None:
    connector = MemoryConnector()
    start = started_by_a_task(how, one(), connector=MemoryConnector())
    cs.run(cs.task(start)(), connector=connector)
    assert capsys.readouterr().err.count(connector.payloads[0]["trace_id"]) == 1


@pytest.mark.parametrize(
    "outer",
    [{"connector": None}, {"connector": MemoryConnector(), "log_level": "OFF"}],
    ids=["no connector", "log level OFF"],
)
def test_a_failed_inner_run_names_the_trace_that_the_outer_run_does_not_print(
    outer: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    inner = MemoryConnector()
    start = started_by_a_task("cs.run", divide(), connector=inner, log_level="ERROR")
    with pytest.raises(ZeroDivisionError):
        cs.run(cs.task(start)(), **outer)
    assert capsys.readouterr().err.count(inner.payloads[0]["trace_id"]) == 1


async def test_each_of_two_concurrent_runs_names_its_trace(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRACEPARENT", f"00-{'ab' * 16}-{'cd' * 8}-01")
    tasks = ConcurrentTasks()
    await asyncio.gather(*(cs.run_async(task, connector=MemoryConnector()) for task in (tasks.quiet, tasks.loud)))
    assert capsys.readouterr().err.count("ab" * 16) == 2


async def test_a_nested_run_that_ends_after_the_outer_run_names_the_trace(
    capsys: pytest.CaptureFixture[str],
) -> None:
    started, outer_is_over = asyncio.Event(), asyncio.Event()
    left: list[asyncio.Task[None]] = []

    async def fail_late() -> None:
        started.set()
        await outer_is_over.wait()
        raise ZeroDivisionError

    async def leave_behind() -> None:
        inner = cs.run_async(cs.task(fail_late)(), connector=MemoryConnector(), log_level="ERROR")
        left.append(asyncio.create_task(inner))
        await started.wait()

    connector = MemoryConnector()
    await cs.run_async(cs.task(leave_behind)(), connector=connector)
    outer_is_over.set()
    with pytest.raises(ZeroDivisionError):
        await left[0]
    assert capsys.readouterr().err.count(connector.payloads[0]["trace_id"]) == 2


@pytest.mark.parametrize(
    ("environment", "options", "message"),
    [
        ({"CASCADE_TRACE_URL": "http://jaeger"}, {"connector": MemoryConnector()}, r"CASCADE_TRACE_URL.*\{trace_id\}"),
        ({"CASCADE_CONNECTOR": "otel,kafka"}, {}, r"CASCADE_CONNECTOR='otel,kafka'.*'kafka'.*otel, mqtt, memory"),
        ({"CASCADE_ORG_ID": "a/b"}, {"connector": MemoryConnector()}, "CASCADE_ORG_ID='a/b'"),
        ({}, {"log_format": "xml"}, "log_format='xml'"),
        ({}, {"log_format": None}, "log_format=None: choose 'human', 'json' or 'logging'"),
        ({}, {"log_level": "LOUD"}, "log_level='LOUD': choose from DEBUG, INFO, WARNING, ERROR, OFF"),
        ({}, {"log_level": None}, "log_level=None: choose from DEBUG, INFO, WARNING, ERROR, OFF"),
        ({}, {"log_level": 20}, "log_level=20: choose from DEBUG, INFO, WARNING, ERROR, OFF"),
        ({}, {"system_resources": {"cpu": -1}}, "'cpu'"),
        ({}, {"connector": "otel"}, "'otel' is not a connector"),
        ({}, {"connector": MemoryConnector}, r"is not a connector.*MemoryConnector\(\)"),
        ({}, {"connector": [MemoryConnector(), 5]}, "5 is not a connector"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_invalid_settings_are_rejected_before_the_run(
    environment: dict[str, str], options: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = []
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises((ValueError, TypeError), match=message):
        cs.run(cs.task(lambda: ran.append(1), name="t")(), **options)
    assert ran == []


class ConcurrentTasks:
    """Two tasks of two runs that continue only when both have started."""

    def __init__(self) -> None:
        self._started = {"quiet": threading.Event(), "loud": threading.Event()}

    def task(self, name: str, other: str) -> Any:
        def wait_for_other() -> str:
            self._started[name].set()
            assert self._started[other].wait(HANG)
            return name

        return cs.task(wait_for_other, name=name)()

    @property
    def quiet(self) -> Any:
        return self.task("quiet", "loud")

    @property
    def loud(self) -> Any:
        return self.task("loud", "quiet")


def assert_only_loud_in_json(lines: list[str]) -> None:
    data = [json.loads(line) for line in lines]
    assert [line["event_id"] for line in data] == [
        "run.started", "task.started", "task.finished_success", "run.finished_success",
    ]  # fmt: skip
    assert "quiet" not in "".join(lines)


def test_level_and_format_belong_to_one_of_two_runs_in_threads(capsys: pytest.CaptureFixture[str]) -> None:
    tasks = ConcurrentTasks()
    threads = [
        threading.Thread(target=cs.run, args=(tasks.loud,), kwargs={"log_format": "json"}),
        threading.Thread(target=cs.run, args=(tasks.quiet,), kwargs={"log_level": "WARNING"}),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(HANG)
    assert_only_loud_in_json(capsys.readouterr().err.splitlines())


async def test_level_and_format_belong_to_one_of_two_runs_in_a_loop(capsys: pytest.CaptureFixture[str]) -> None:
    tasks = ConcurrentTasks()
    await asyncio.gather(cs.run_async(tasks.quiet, log_level="ERROR"), cs.run_async(tasks.loud, log_format="json"))
    assert_only_loud_in_json(capsys.readouterr().err.splitlines())


@pytest.mark.parametrize(("outer", "inner"), [("OFF", "INFO"), ("INFO", "off")])
def test_a_run_started_by_a_task_has_its_own_level(outer: str, inner: str, capsys: pytest.CaptureFixture[str]) -> None:
    @cs.task
    def start_another() -> int:
        return int(cs.run(one(), log_level=inner))

    assert cs.run(start_another(), log_level=outer) == 1
    err = capsys.readouterr().err
    assert (" one " in err, "start_another" in err) == (inner == "INFO", outer == "INFO")


def test_an_engine_uses_the_renderer_of_the_global_bus_which_run_does_not_change(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[str] = []
    global_bus, renderer = Messages(messaging_bus.store), CliRenderer(messaging_bus.store)
    monkeypatch.setattr(renderer, "render", lambda msg_id, _level, **_: shown.append(msg_id))
    global_bus.set_renderer(renderer)
    for module in ("cascade._run.prepared", "cascade.runtime.subscribers"):
        monkeypatch.setattr(f"{module}.messaging_bus", global_bus)
    cs.run(one(), log_level="DEBUG")
    assert shown == []
    assert "Finished one" in capsys.readouterr().err
    events = cs.MessageBus()
    cs.HumanReadableLogSubscriber(events)
    asyncio.run(cs.Engine(cs.NativeSolver(), cs.LocalExecutor(), events).run(one()))
    assert shown == ["run.started", "task.started", "task.finished_success", "run.finished_success"]
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("log_format", ["human", "json"])
@pytest.mark.parametrize("target", [one, divide, lambda: divide().with_retry(1)])
def test_off_prints_nothing(target: Any, log_format: str, capsys: pytest.CaptureFixture[str]) -> None:
    with contextlib.suppress(ZeroDivisionError):
        cs.run(target(), log_level="OFF", log_format=log_format, connector=MemoryConnector())
    assert capsys.readouterr().err == ""


def test_a_target_that_is_no_workflow_is_rejected() -> None:
    with pytest.raises(TypeError, match="call a task"):
        cs.run(one)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]


async def test_the_error_in_a_running_loop_names_run_async() -> None:
    with pytest.raises(RuntimeError, match=r"await cs\.run_async"):
        cs.run(one())
    assert await cs.run_async(one()) == 1


async def test_run_async_can_be_cancelled() -> None:
    running = asyncio.Event()

    @cs.task
    async def forever() -> None:
        running.set()
        await asyncio.Event().wait()

    connector = MemoryConnector()
    run = asyncio.create_task(cs.run_async(forever(), connector=connector))
    await running.wait()
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    assert connector.payloads[-1]["body"]["status"] == "Cancelled"


def test_run_works_in_other_threads() -> None:
    results: list[int] = []
    thread = threading.Thread(target=lambda: results.append(cs.run(one())))
    thread.start()
    thread.join(HANG)
    assert results == [1]


def test_several_connectors_receive_the_same_messages() -> None:
    first, second = MemoryConnector(), MemoryConnector()
    cs.run(one(), connector=[first, second])
    assert first.payloads == second.payloads != []


def test_resources_are_an_argument_of_run() -> None:
    @cs.resource
    def number():  # type: ignore[no-untyped-def]
        yield 5

    assert cs.run(cs.task(lambda n=cs.inject("number"): n, name="use")(), resources=[number]) == 5


def test_a_run_in_a_task_of_a_run_nests_in_its_trace() -> None:
    inner, outer = MemoryConnector(), MemoryConnector()

    @cs.task
    def start_another() -> int:
        return int(cs.run(one(), connector=inner))

    assert cs.run(start_another(), connector=outer) == 1
    (task,) = (p for p in outer.payloads if p["body"].get("state") == "COMPLETED")
    assert {p["trace_id"] for p in inner.payloads} == {task["trace_id"]}
    assert inner.payloads[0]["parent_span_id"] == task["span_id"]


def test_a_run_is_in_the_trace_of_traceparent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACEPARENT", f"00-{'a' * 32}-{'b' * 16}-01")
    connector = MemoryConnector()
    cs.run(one(), connector=connector)
    assert (connector.payloads[0]["trace_id"], connector.payloads[0]["parent_span_id"]) == ("a" * 32, "b" * 16)


PROGRAM = """
import asyncio, os, time
import cascade as cs
from cascade.connectors.otel import OtelConnector
from tests.lab.time_limits import raise_time_limits

raise_time_limits()

@cs.task
async def waits():
    os.write(1, b"running" + bytes([10]))
    await asyncio.Event().wait()

@cs.task
def blocks():
    os.write(1, b"running" + bytes([10]))
    os.read(0, 1)

@cs.task
def gather(*_): ...

cs.run(gather(waits(), blocks()), connector=OtelConnector("ENDPOINT"))
"""


@needs("otel")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, -signal.SIGINT), (signal.SIGTERM, 128 + signal.SIGTERM)])
def test_signals_leave_a_complete_trace(number: int, code: int, tmp_path: Path) -> None:
    from cascade.testing import OtlpReceiver

    with OtlpReceiver() as receiver:
        script = tmp_path / "program.py"
        script.write_text(PROGRAM.replace("ENDPOINT", receiver.http_endpoint))
        process = subprocess.Popen(
            [sys.executable, str(script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=subprocess_environment(),
        )
        assert process.stdin is not None
        assert process.stdout is not None
        assert [process.stdout.readline() for _ in range(2)] == ["running\n"] * 2
        process.send_signal(number)
        spans = receiver.wait_for(lambda spans: any(span.name == "run gather" for span in spans))
        process.stdin.close()
        assert process.wait(HANG) == code
        process.stdout.close()
    assert {span.name for span in spans} == {"run gather", "run gather started", "waits", "blocks"}
    assert spans.orphans() == []
    results = {span.name: span.attributes.get("cascade.task.result") for span in spans}
    assert (results["waits"], results["blocks"]) == ("cancellation", "cancellation")
    assert spans.one("run gather").attributes["cascade.run.result"] == "cancellation"


def test_a_second_ctrl_c_ends_the_process(tmp_path: Path) -> None:
    script = tmp_path / "program.py"
    script.write_text(
        textwrap.dedent("""
        import asyncio, os
        import cascade as cs

        @cs.task
        async def stubborn():
            os.write(1, b"running" + bytes([10]))
            try:
                await asyncio.Event().wait()
            finally:
                os.write(1, b"cleaning" + bytes([10]))
                await asyncio.Event().wait()

        cs.run(stubborn())
        """)
    )
    process = subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "running\n"
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "cleaning\n"
    process.send_signal(signal.SIGINT)
    process.wait(HANG)
    process.stdout.close()


def test_the_sigterm_handler_of_a_program_is_kept(tmp_path: Path) -> None:
    code = textwrap.dedent("""
        import os, signal, cascade as cs
        seen = []
        signal.signal(signal.SIGTERM, lambda *_: seen.append(1))
        assert cs.run(cs.task(lambda: os.kill(os.getpid(), signal.SIGTERM), name="t")()) is None
        assert seen == [1]
    """)
    subprocess.run([sys.executable, "-c", code], check=True, stderr=subprocess.DEVNULL, timeout=HANG)


def test_the_seeded_random_numbers_of_a_program_do_not_change() -> None:
    def drawn(*, with_a_run: bool) -> list[float]:
        random.seed(7)
        if with_a_run:
            cs.run(one(), connector=MemoryConnector())
        return [random.random() for _ in range(3)]

    assert drawn(with_a_run=True) == drawn(with_a_run=False)


def test_the_connectors_of_the_environment_are_used_only_without_another(monkeypatch: pytest.MonkeyPatch) -> None:
    made = list[MemoryConnector]()

    def make() -> MemoryConnector:
        made.append(MemoryConnector())
        return made[-1]

    monkeypatch.setitem(by_name.FACTORIES, "memory", make)
    monkeypatch.setenv("CASCADE_CONNECTOR", "memory,memory")
    given = MemoryConnector()
    cs.run(one(), connector=given, log_level="OFF")
    assert (made, len(given.payloads)) == ([], 4)
    cs.run(one(), log_level="OFF")
    assert [len(connector.payloads) for connector in made] == [4, 4]
