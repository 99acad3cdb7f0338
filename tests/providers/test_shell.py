import asyncio
import contextlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import cascade as cs
from tests.runtime.conftest import RecordedEngine


def test_it_returns_the_stripped_output() -> None:
    assert cs.run(cs.shell("echo ' hello '")) == "hello"
    assert cs.run(cs.shell(["printf", "%s", "a b"])) == "a b"
    assert cs.run(cs.shell.map(command=["echo 1", "echo 2"])) == ["1", "2"]


def test_a_nonzero_exit_code_is_an_error_with_the_end_of_stderr() -> None:
    with pytest.raises(RuntimeError, match=r"'echo no >&2; exit 1' failed with exit code 1.*no"):
        cs.run(cs.shell("echo no >&2; exit 1"))
    assert cs.run(cs.shell("echo out; exit 3", check=False)) == "out"


async def test_a_cancellation_kills_the_command_and_its_child_processes(tmp_path: Path) -> None:
    """The child processes hold the pipe open: it closes when all have ended."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    run = asyncio.create_task(RecordedEngine().run(cs.shell(f"exec 3>{pipe}; sleep 3600 & echo started >&3; wait")))
    reader = await asyncio.to_thread(pipe.open)
    with reader:
        assert await asyncio.to_thread(reader.readline) == "started\n"
        run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await run
        assert await asyncio.to_thread(reader.read) == ""


def test_the_end_of_a_command_at_its_timeout_logs_no_warning(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command has ended when its pipes are closed. asyncio reaps it in a thread or in the event loop."""
    kill = os.killpg

    def kill_and_wait(group: int, number: int) -> None:
        kill(group, number)
        with contextlib.suppress(ChildProcessError):  # reaped
            os.waitid(os.P_PID, group, os.WEXITED | os.WNOWAIT)

    monkeypatch.setattr(os, "killpg", kill_and_wait)
    for _ in range(12):
        failure = cs.run(cs.shell("sleep 3600; echo done").with_timeout(0.05).allow_failure(), log_level="OFF")
        assert isinstance(failure, cs.Failure)
    assert caplog.messages == []


PROGRAM = """
import sys
sys.modules["opentelemetry"] = None  # as if it was not installed
import cascade as cs
print(cs.run(cs.shell(["sh", "-c", "echo $TRACEPARENT+$TRACESTATE+$BAGGAGE"]), log_level="OFF"))
"""


@pytest.mark.parametrize(
    ("state", "seen"), [("acme=1, ot=th:c", "acme=1,ot=th:c"), ("acme", ""), ("a=1,a=2", ""), ("", "")]
)
def test_without_opentelemetry_a_command_gets_the_context_of_this_process(state: str, seen: str) -> None:
    inbound = {"TRACEPARENT": f"00-{'a' * 32}-{'b' * 16}-01", "TRACESTATE": state, "BAGGAGE": "tenant=blue"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env={**os.environ, **inbound}, capture_output=True, text=True, check=True
    )
    parent, given, baggage = done.stdout.strip().split("+")
    assert re.fullmatch(f"00-{'a' * 32}-(?!{'b' * 16})[0-9a-f]{{16}}-01", parent)
    assert (given, baggage) == (seen, "tenant=blue")


def test_a_command_runs_again_in_a_run_with_a_cache(tmp_path: Path) -> None:
    target = cs.shell(f"echo x >> '{tmp_path / 'out'}'; wc -l < '{tmp_path / 'out'}'")
    cache = cs.DiskCache(tmp_path / "cache")
    assert [cs.run(target, cache=cache, log_level="OFF").strip() for _ in range(2)] == ["1", "2"]
