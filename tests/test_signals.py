"""Ctrl-C and SIGTERM during `cs.run`: output, exit codes, traces."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import cascade as cs
from tests.lab.extras import needs
from tests.lab.time_limits import subprocess_environment

pytestmark = pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")

INT, TERM = signal.SIGINT, signal.SIGTERM
SIGNALS = pytest.mark.parametrize("first", [INT, TERM], ids=["SIGINT", "SIGTERM"])
STILL = "⏳ Still running, cannot be interrupted: {}. A second signal ends the process\n"

HEAD = """
import asyncio, os, signal, sys, threading
import cascade as cs

def up():
    os.write(1, b"up" + bytes([10]))

@cs.task
async def waits():
    up()
    await asyncio.Event().wait()

@cs.task
def blocks(x=0):
    up()
    threading.Event().wait()

@cs.task
def ends():
    up()
    sys.stdin.readline()

@cs.task(threaded=False)
def occupies():
    up()
    threading.Event().wait()
    occupies  # a bytecode in which a signal is handled

@cs.task
async def nests():
    return await cs.run_async(blocks(), log_level="ERROR")

@cs.resource
def slow_to_close():
    yield 1
    os.write(1, b"closing" + bytes([10]))
    threading.Event().wait()

@cs.task
async def uses(r=cs.inject(slow_to_close)):
    up()
    await asyncio.Event().wait()

@cs.task
def gather(*_): ...

@cs.task
async def fails():
    up()
    raise LookupError("first")
"""


@contextmanager
def program(tmp_path: Path, code: str) -> Iterator[subprocess.Popen[str]]:
    """A program whose task has started."""
    script = tmp_path / "program.py"
    script.write_text(HEAD + code)
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [sys.executable, str(script)], stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=subprocess_environment()
    ) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "up\n"
            yield process
        finally:
            process.kill()


def lines_until(process: subprocess.Popen[str], last: str) -> list[str]:
    assert process.stderr is not None
    lines = [""]
    while lines[-1] != last:
        lines.append(process.stderr.readline())
        assert lines[-1], f"no line {last!r} in {lines}"
    return lines[1:]


def code_of(number: signal.Signals) -> int:
    return 143 if number is TERM else -signal.SIGINT


@SIGNALS
@pytest.mark.parametrize("level", ["ERROR", "OFF"])
def test_a_cancelled_run_is_one_line(tmp_path: Path, first: signal.Signals, level: str) -> None:
    with program(tmp_path, f"cs.run(gather(waits()), log_level={level!r})") as process:
        process.send_signal(first)
        _, errors = process.communicate()
    assert process.returncode == code_of(first)
    assert [line.split(" after ")[0] for line in errors.splitlines()] == ["🛑 Run cancelled"] * (level == "ERROR")


EARLY = "🛑 Run cancelled before its start\n"
LATE = "🛑 Cancelled after the end of the run, while its telemetry was sent\n"


@SIGNALS
@pytest.mark.parametrize(("step", "line"), [("connect", EARLY), ("disconnect", LATE)])
@pytest.mark.parametrize("level", ["ERROR", "OFF"])
def test_a_signal_while_the_connector_connects_or_disconnects_is_one_line(
    tmp_path: Path, first: signal.Signals, step: str, line: str, level: str
) -> None:
    code = f"""
from cascade.testing import MemoryConnector

class Slow(MemoryConnector):
    async def {step}(self):
        up()
        await asyncio.Event().wait()

cs.run(cs.task(lambda: 1, name="one")(), connector=Slow(), log_level={level!r})
"""
    with program(tmp_path, code) as process:
        process.send_signal(first)
        _, errors = process.communicate()
    assert (process.returncode, errors) == (code_of(first), line * (level == "ERROR"))


def test_the_caller_can_catch_ctrl_c_and_run_again(tmp_path: Path) -> None:
    code = """
try:
    cs.run(waits(), log_level="OFF")
except KeyboardInterrupt as error:
    assert error.__context__ is None
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    print("caught", cs.run(cs.task(lambda: 7, name="t")(), log_level="OFF"), flush=True)
try:
    cs.run(waits(), log_level="OFF")
except KeyboardInterrupt:
    raise KeyboardInterrupt("mine")
"""
    with program(tmp_path, code) as process:
        assert process.stdout is not None
        process.send_signal(INT)
        assert [process.stdout.readline() for _ in range(2)] == ["caught 7\n", "up\n"]
        process.send_signal(INT)
        _, errors = process.communicate()
    assert process.returncode == -INT
    assert errors.splitlines()[-1] == "KeyboardInterrupt: mine"


@SIGNALS
def test_a_plain_function_in_a_thread_is_named(tmp_path: Path, first: signal.Signals) -> None:
    with program(tmp_path, 'cs.run(gather(ends()), log_level="ERROR")') as process:
        process.send_signal(first)
        lines = lines_until(process, STILL.format("ends"))
        _, errors = process.communicate("\n")
    assert [line.split(" after ")[0] for line in lines[:-1]] == ["🛑 Run cancelled"]
    assert (process.returncode, errors) == (code_of(first), "")


@pytest.mark.parametrize(
    ("target", "named", "first", "second"),
    [
        ("blocks()", "blocks", INT, INT),
        ("blocks()", "blocks", INT, TERM),
        ("blocks()", "blocks", TERM, INT),
        ("blocks()", "blocks", TERM, TERM),
        ("occupies()", "occupies", INT, INT),
        ("occupies()", "occupies", TERM, TERM),
        ("nests()", "blocks", INT, INT),
        ("blocks.map(x=[1])", "blocks", TERM, TERM),
    ],
)
def test_a_second_signal_ends_the_process(
    tmp_path: Path, target: str, named: str, first: signal.Signals, second: signal.Signals
) -> None:
    with program(tmp_path, f'cs.run({target}, log_level="ERROR")') as process:
        process.send_signal(first)
        lines_until(process, STILL.format(named))
        process.send_signal(second)
        _, errors = process.communicate()
    assert process.returncode == 128 + second
    assert "Traceback" not in errors


IN_C = """
import ctypes

def occupy():
    mutex, lock = ctypes.create_string_buffer(256), ctypes.CDLL(None).pthread_mutex_lock
    lock(mutex)
    up()
    lock(mutex)  # a mutex that this thread has locked: for ever, and no signal interrupts it
"""
IN_A_TASK = """
@cs.task(threaded=False)
def ends():
    up()
    sys.stdin.readline()
    occupy()

cs.run(ends(), log_level="ERROR")
"""
AFTER_THE_RUN = """
@cs.task
def ends():
    up()
    threading.Event().wait()

try:
    cs.run(ends(), log_level="ERROR")
finally:
    sys.stdin.readline()
    occupy()
"""


@SIGNALS
@pytest.mark.parametrize("code", [IN_A_TASK, AFTER_THE_RUN], ids=["in a task", "after the run"])
def test_a_second_signal_ends_a_process_whose_main_thread_is_in_c(
    tmp_path: Path, code: str, first: signal.Signals
) -> None:
    """The interpreter calls no handler while a function in C does not return."""
    with program(tmp_path, IN_C + code) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.send_signal(first)
        lines_until(process, STILL.format("ends"))
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline() == "up\n"
        process.send_signal(first)
        process.communicate()
    assert process.returncode == 128 + first


def test_a_signal_for_a_forked_child_is_no_second_signal_of_its_parent(tmp_path: Path) -> None:
    code = """
@cs.task(threaded=False)
def ends():
    up()
    sys.stdin.readline()
    for _ in range(20):
        if (child := os.fork()) == 0:
            os.kill(os.getpid(), signal.SIGTERM)
            threading.Event().wait()
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 143
    os.write(1, b"parent" + bytes([10]))

cs.run(ends(), log_level="ERROR")
"""
    with program(tmp_path, code) as process:
        assert process.stdout is not None
        process.send_signal(INT)
        lines_until(process, STILL.format("ends"))
        output, _ = process.communicate("\n")
    assert output == "parent\n"
    assert process.returncode == -INT


@pytest.mark.parametrize(("first", "second"), [(INT, INT), (TERM, TERM)])
def test_a_teardown_that_blocks_is_named_and_a_second_signal_ends_the_process(
    tmp_path: Path, first: signal.Signals, second: signal.Signals
) -> None:
    with program(tmp_path, 'cs.run(uses(), log_level="ERROR")') as process:
        assert process.stdout is not None
        process.send_signal(first)
        assert process.stdout.readline() == "closing\n"
        lines_until(process, STILL.format("teardown of resource 'slow_to_close'"))
        process.send_signal(second)
        process.communicate()
    assert process.returncode == 128 + second


@pytest.mark.parametrize(("first", "second"), [(INT, INT), (TERM, TERM)])
def test_a_second_signal_ends_the_process_while_a_teardown_outlives_its_run(
    tmp_path: Path, first: signal.Signals, second: signal.Signals
) -> None:
    code = """
import cascade.runtime.threads
cascade.runtime.threads.CANCEL_GRACE = 0.01

@cs.resource
def never_closes():
    yield 1
    up()
    threading.Event().wait()

@cs.task
def takes(r=cs.inject(never_closes)): ...

try:
    cs.run(takes(), log_level="OFF")
finally:
    os.write(1, b"left" + bytes([10]))
"""
    with program(tmp_path, code) as process:
        assert process.stdout is not None
        process.send_signal(first)
        assert process.stdout.readline() == "left\n"
        process.send_signal(second)
        _, errors = process.communicate()
    assert process.returncode == 128 + second
    assert "Traceback" not in errors


@SIGNALS
def test_a_signal_ends_the_wait_of_a_failed_run(tmp_path: Path, first: signal.Signals) -> None:
    with program(tmp_path, 'cs.run(gather(fails(), blocks()), log_level="ERROR")') as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        assert process.stderr is not None
        assert process.stderr.readline().startswith("❌ Failed fails after ")
        process.send_signal(first)
        lines = lines_until(process, STILL.format("blocks"))
        process.send_signal(TERM)
        process.communicate()
    assert [line.split(" after ")[0] for line in lines[:-1]] == ["❌ Run failed"]
    assert process.returncode == 143


@needs("otel")
@SIGNALS
@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_the_trace_is_complete_and_names_the_signal(tmp_path: Path, first: signal.Signals, protocol: str) -> None:
    from tests.lab.receiver import FaultyReceiver

    with FaultyReceiver() as receiver:
        endpoint = receiver.grpc_endpoint if protocol == "grpc" else receiver.http_endpoint
        connector = f"cs.OtelConnector({endpoint!r}, protocol={protocol!r})"
        code = f"""
from tests.lab.time_limits import raise_time_limits
raise_time_limits()
cs.run(gather(waits(), blocks.map(x=[1])), connector={connector}, log_level="OFF")
"""
        with program(tmp_path, code) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "up\n"
            process.send_signal(first)
            spans = receiver.wait_for(lambda spans: bool(spans.named("run gather")))
    reason = f"cancelled by {first.name}"
    for name in ("waits", "blocks", "map(blocks)"):
        span = spans.one(name)
        assert (span.status, span.status_message, span.events) == ("UNSET", "", ())
        assert span.attributes["cascade.task.result"] == "cancellation"
        assert span.attributes["cascade.task.cancellation.reason"] == reason
    root = spans.one("run gather")
    assert (root.status, root.status_message, root.events) == ("ERROR", reason, ())
    assert root.attributes["cascade.run.result"] == "cancellation"
    assert spans.orphans() == []


def test_handlers_of_the_program_stay_and_are_restored() -> None:
    seen: list[int] = []

    @cs.task
    def signals() -> None:
        done = threading.Event()
        handlers.append(signal.getsignal(TERM))
        os.kill(os.getpid(), TERM)
        while not seen:
            done.wait(0.01)

    def own(number: int, frame: object) -> None:
        seen.append(number)

    handlers: list[object] = []
    before = signal.signal(TERM, own)
    try:
        cs.run(signals(), log_level="OFF")
        assert (handlers, seen, signal.getsignal(TERM)) == ([own], [TERM], own)
    finally:
        signal.signal(TERM, before)


def test_a_run_restores_the_signal_handlers() -> None:
    before = [signal.getsignal(number) for number in (INT, TERM)]
    seen: list[object] = []

    @cs.task
    def look() -> None:
        seen.extend(signal.getsignal(number) for number in (INT, TERM))

    cs.run(look(), log_level="OFF")
    assert [signal.getsignal(number) for number in (INT, TERM)] == before
    assert all(during != earlier for during, earlier in zip(seen, before, strict=True))


def test_the_next_run_restores_the_handlers_after_a_function_that_outlived_its_run(tmp_path: Path) -> None:
    code = """
def handlers():
    return [signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)]

before = handlers()
try:
    cs.run(ends(), log_level="OFF")
except KeyboardInterrupt:
    pass
assert not set(handlers()) & set(before)
os.write(1, b"again" + bytes([10]))
while any(thread.name.startswith("cascade-task") and thread.is_alive() for thread in threading.enumerate()):
    pass
cs.run(cs.task(lambda: 7, name="t")(), log_level="OFF")
assert handlers() == before
"""
    with program(tmp_path, code) as process:
        assert process.stdout is not None
        process.send_signal(INT)
        assert process.stdout.readline() == "again\n"
        _, errors = process.communicate("\n")
    assert (process.returncode, errors) == (0, "")


def test_run_async_does_not_change_handlers() -> None:
    before = signal.getsignal(TERM)
    seen: list[object] = []

    @cs.task
    def look() -> None:
        seen.append(signal.getsignal(TERM))

    asyncio.run(cs.run_async(look(), log_level="OFF"))
    thread = threading.Thread(target=lambda: cs.run(look(), log_level="OFF"))
    thread.start()
    thread.join()
    assert seen == [before, before]
