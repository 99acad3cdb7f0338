"""Runs in uvloop's event loop, with an eager task factory, and below trio and anyio."""

import os
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from cascade.testing import OtlpReceiver
from stack.build import ROOT
from tests.connectors.mqtt.broker import Listener
from tests.connectors.mqtt.messages import events
from tests.lab.mosquitto import MosquittoProcess
from tests.lab.programs import is_missing, program
from tests.lab.time_limits import subprocess_environment
from tests.lab.waiting import HANG

HEAD = """
import asyncio, os, signal, sys, warnings
import anyio, trio, uvloop
import cascade as cs
from tests.e2e.workflows import report
from tests.lab.time_limits import raise_time_limits
from tests.runtime.test_task_group import eager_factory

raise_time_limits()

@cs.task
async def loop():
    return type(asyncio.get_running_loop()).__module__

both = cs.task(lambda *values: values, name="both")
target = both(report(), loop())

def set_policy():
    warnings.simplefilter("ignore", DeprecationWarning)  # policies end with Python 3.16
    asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())

def with_factory(new_loop, work):
    with asyncio.Runner(loop_factory=new_loop) as runner:
        return runner.run(work)

async def eager(work, factory=getattr(asyncio, "eager_task_factory", eager_factory)):
    asyncio.get_running_loop().set_task_factory(factory)
    return await work

@cs.task
async def wait():
    print("up", flush=True)
    await asyncio.Event().wait()
"""
# uvloop calls a task factory with an argument that asyncio's own one does not have in Python 3.12 and 3.13.0.
WAYS = {
    "uvloop.run": ("uvloop", "uvloop.run(cs.run_async(target))"),
    "loop factory": ("uvloop", "with_factory(uvloop.new_event_loop, cs.run_async(target))"),
    "policy": ("uvloop", "set_policy() or cs.run(target)"),
    "uvloop with an eager factory": ("uvloop", "uvloop.run(eager(cs.run_async(target), eager_factory))"),
    "eager factory": ("asyncio.unix_events", "asyncio.run(eager(cs.run_async(target)))"),
    "thread of trio": ("asyncio.unix_events", "trio.run(trio.to_thread.run_sync, cs.run, target)"),
    "anyio": ("asyncio.unix_events", "anyio.run(cs.run_async, target)"),
    "anyio with uvloop": ("uvloop", "anyio.run(cs.run_async, target, backend_options={'use_uvloop': True})"),
}
SITE = """
import asyncio, warnings
import uvloop

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
"""
ENGINE_TESTS = (
    "tests/runtime/test_engine.py",
    "tests/runtime/test_cancellation.py",
    "tests/runtime/test_map_execution.py",
    "tests/runtime/test_scheduler.py",
    "tests/providers/test_shell.py",
)


@pytest.fixture(autouse=True)
def loops() -> None:
    """Skip the test without the packages of the dependency group `hosts`, and where uvloop does not exist."""
    if absent := [name for name in ("anyio", "trio", "uvloop") if find_spec(name) is None]:
        is_missing(", ".join(absent))


@pytest.fixture
def environment(receiver: OtlpReceiver) -> dict[str, str]:
    exporting = {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.http_endpoint, "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}
    return {**subprocess_environment(), **exporting, "CASCADE_CONNECTOR": "otel"}


@pytest.mark.parametrize("way", WAYS)
def test_the_trace_and_the_messages_of_a_run(way: str, receiver: OtlpReceiver, environment: dict[str, str]) -> None:
    program("mosquitto")
    loop, call = WAYS[way]
    code = f"{HEAD}\nprint({call})"
    with MosquittoProcess() as broker, Listener(broker.port, "cascade/telemetry/#") as listener:
        both = {**environment, "CASCADE_CONNECTOR": "otel,mqtt", "CASCADE_MQTT_URL": f"mqtt://127.0.0.1:{broker.port}"}
        done = subprocess.run(
            [sys.executable, "-c", code], env=both, capture_output=True, text=True, timeout=HANG, check=False
        )
        assert done.returncode == 0, done.stderr
        received = events(listener.wait_for(lambda messages: any(b"ENGINE_STOPPED" in m.payload for m in messages)))
    assert f"'{loop}'" in done.stdout
    spans = receiver.spans
    assert len(spans.traces()) == 1
    assert spans.orphans() == []
    completed = [one for one in received if one["body"].get("state") == "COMPLETED"]
    assert len(completed) == 13
    for one in completed:
        assert spans.by_id(one["span_id"]).trace_id == one["trace_id"]
    assert f"v1: 12 brief {spans.one('shell').trace_id}" in done.stdout, "the subprocess has the trace id"


@pytest.mark.parametrize(
    ("call", "number", "code"),
    [
        ("set_policy() or cs.run(wait())", signal.SIGINT, -signal.SIGINT),
        ("set_policy() or cs.run(wait())", signal.SIGTERM, 143),
        ("uvloop.run(cs.run_async(wait()))", signal.SIGINT, -signal.SIGINT),
        ("anyio.run(cs.run_async, wait())", signal.SIGINT, -signal.SIGINT),
    ],
)
def test_a_signal_cancels_the_run(
    call: str, number: signal.Signals, code: int, receiver: OtlpReceiver, environment: dict[str, str]
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", f"{HEAD}\n{call}"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout
        assert process.stdout.readline() == "up\n"
        process.send_signal(number)
        _, errors = process.communicate(timeout=HANG)
    assert "Run cancelled" in errors
    assert process.returncode == code, errors
    assert receiver.spans.one("wait").attributes["cascade.task.result"] == "cancellation"
    assert receiver.spans.one("run wait").attributes["cascade.run.result"] == "cancellation"


@pytest.mark.parametrize("tests", [ENGINE_TESTS, pytest.param(("tests/test_signals.py",), marks=pytest.mark.large)])
def test_tests_of_the_engine_pass_with_uvloop(tests: tuple[str, ...], tmp_path: Path) -> None:
    """The policy applies to the tests and to the programs that they start."""
    (tmp_path / "sitecustomize.py").write_text(SITE)
    environ = subprocess_environment()
    environ["PYTHONPATH"] = os.pathsep.join([str(tmp_path), environ["PYTHONPATH"]])
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests]
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=5 * HANG, check=False)
    assert done.returncode == 0, done.stdout[-5_000:] + done.stderr
