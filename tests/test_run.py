"""`cs.run` as users call it: what it prints, what it refuses, how signals end it."""

import asyncio
import json
import os
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
from cascade.connectors.memory import MemoryConnector
from cascade.testing import OtlpReceiver


@cs.task
def one() -> int:
    return 1


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


def test_the_runs_end_names_its_trace(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    connector = MemoryConnector()
    monkeypatch.setenv("CASCADE_TRACE_URL", "http://jaeger/trace/{trace_id}?x=1")
    cs.run(one(), connector=connector)
    trace_id = connector.payloads[0]["trace_id"]
    assert capsys.readouterr().err.splitlines()[-1].endswith(f"Trace {trace_id}  http://jaeger/trace/{trace_id}?x=1")


def test_a_failed_run_names_its_trace_too(capsys: pytest.CaptureFixture[str]) -> None:
    connector = MemoryConnector()
    with pytest.raises(ZeroDivisionError):
        cs.run(cs.task(lambda: 1 / 0, name="divide")(), connector=connector)
    assert connector.payloads[0]["trace_id"] in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("environment", "options", "message"),
    [
        ({"CASCADE_TRACE_URL": "http://jaeger"}, {"connector": MemoryConnector()}, r"CASCADE_TRACE_URL.*\{trace_id\}"),
        ({"CASCADE_CONNECTOR": "otel,kafka"}, {}, r"CASCADE_CONNECTOR='otel,kafka'.*'kafka'.*otel, mqtt, memory"),
        ({"CASCADE_ORG_ID": "a/b"}, {"connector": MemoryConnector()}, "CASCADE_ORG_ID='a/b'"),
        ({}, {"log_format": "xml"}, "log_format='xml'"),
        ({}, {"log_level": "LOUD"}, "'LOUD'"),
        ({}, {"system_resources": {"cpu": -1}}, "'cpu'"),
        ({}, {"connector": "otel"}, "'otel' is no connector"),
        ({}, {"connector": MemoryConnector}, r"is no connector.*MemoryConnector\(\)"),
        ({}, {"connector": [MemoryConnector(), 5]}, "5 is no connector"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_bad_settings_are_refused_before_anything_runs(
    environment: dict[str, str], options: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = []
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises((ValueError, TypeError), match=message):
        cs.run(cs.task(lambda: ran.append(1), name="t")(), **options)
    assert ran == []


def test_what_is_no_workflow_is_refused() -> None:
    with pytest.raises(TypeError, match="call a task"):
        cs.run(one)


async def test_inside_a_running_loop_it_says_what_to_do() -> None:
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


def test_it_runs_in_other_threads_too() -> None:
    results: list[int] = []
    thread = threading.Thread(target=lambda: results.append(cs.run(one())))
    thread.start()
    thread.join(10)
    assert results == [1]


def test_several_connectors_get_the_same_messages() -> None:
    first, second = MemoryConnector(), MemoryConnector()
    cs.run(one(), connector=[first, second])
    assert first.payloads == second.payloads != []


def test_resources_can_be_given() -> None:
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


def test_traceparent_of_the_environment_is_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACEPARENT", f"00-{'a' * 32}-{'b' * 16}-01")
    connector = MemoryConnector()
    cs.run(one(), connector=connector)
    assert (connector.payloads[0]["trace_id"], connector.payloads[0]["parent_span_id"]) == ("a" * 32, "b" * 16)


PROGRAM = """
import asyncio, os, time
import cascade as cs
from cascade.connectors.otel import OtelConnector

@cs.task
async def waits():
    os.write(1, b"running" + bytes([10]))
    await asyncio.Event().wait()

@cs.task
def blocks():
    os.write(1, b"running" + bytes([10]))
    time.sleep(SECONDS)

@cs.task
def gather(*_): ...

cs.run(gather(waits(), blocks()), connector=OtelConnector("ENDPOINT"))
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, -signal.SIGINT), (signal.SIGTERM, 128 + signal.SIGTERM)])
def test_signals_leave_a_complete_trace(number: int, code: int, tmp_path: Path) -> None:
    with OtlpReceiver() as receiver:
        script = tmp_path / "program.py"
        script.write_text(PROGRAM.replace("ENDPOINT", receiver.http_endpoint).replace("SECONDS", "0.7"))
        process = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True, env=os.environ)
        assert process.stdout is not None
        assert [process.stdout.readline() for _ in range(2)] == ["running\n"] * 2
        process.send_signal(number)
        spans = receiver.wait_for(lambda spans: any(span.name == "run gather" for span in spans))
        assert process.wait(20) == code
        process.stdout.close()
    assert {span.name for span in spans} == {"run gather", "run.started", "waits", "blocks"}
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
    process.wait(20)
    process.stdout.close()


def test_a_programs_own_sigterm_handler_is_left_alone(tmp_path: Path) -> None:
    code = textwrap.dedent("""
        import os, signal, cascade as cs
        seen = []
        signal.signal(signal.SIGTERM, lambda *_: seen.append(1))
        assert cs.run(cs.task(lambda: os.kill(os.getpid(), signal.SIGTERM), name="t")()) is None
        assert seen == [1]
    """)
    subprocess.run([sys.executable, "-c", code], check=True, stderr=subprocess.DEVNULL, timeout=30)


def test_a_programs_seeded_random_numbers_are_left_alone() -> None:
    def drawn(*, with_a_run: bool) -> list[float]:
        random.seed(7)
        if with_a_run:
            cs.run(one(), connector=MemoryConnector())
        return [random.random() for _ in range(3)]

    assert drawn(with_a_run=True) == drawn(with_a_run=False)
