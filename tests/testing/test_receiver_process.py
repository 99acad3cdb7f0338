import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from cascade.testing.receiver_process import ReceiverProcess
from tests.lab.waiting import HANG
from tests.testing.clients import post, request_bytes


@pytest.fixture
def process() -> Iterator[ReceiverProcess]:
    with ReceiverProcess() as process:
        yield process


def test_another_process_receives(process: ReceiverProcess) -> None:
    assert len(process.spans()) == 0
    post(process.http_endpoint, request_bytes("one"))
    assert process.wait_for(lambda spans: len(spans) == 1).one("one").attributes == {"raw": b"\x00\xff"}
    post(process.http_endpoint, request_bytes("two", "three"))
    assert [span.name for span in process.spans()] == ["one", "two", "three"]


def test_what_does_not_come_is_an_error_that_says_what_came(process: ReceiverProcess) -> None:
    post(process.http_endpoint, request_bytes("one"))
    with pytest.raises(AssertionError, match=r"within 0\.1 s.*1 x one"):
        process.wait_for(lambda spans: len(spans) == 2, timeout=0.1)


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
def test_its_death_is_told(process: ReceiverProcess) -> None:
    os.kill(process.pid, signal.SIGKILL)
    with pytest.raises(RuntimeError, match=r"ended with code -9; its stderr: nothing"):
        process.wait_for(lambda spans: False)


def test_after_its_end_it_says_so() -> None:
    with ReceiverProcess() as process:
        pass
    with pytest.raises(RuntimeError, match="was closed"):
        process.spans()


@pytest.fixture
def talk() -> Iterator[Callable[[str], object]]:
    command = [sys.executable, "-m", "cascade.testing.receiver_process"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin
        assert process.stdout
        stdin, stdout = process.stdin, process.stdout

        def say(line: str) -> object:
            if line:
                stdin.write(f"{line}\n")
                stdin.flush()
            return json.loads(stdout.readline())

        yield say
        process.send_signal(signal.SIGTERM)
        assert process.wait(HANG) == 0


def test_its_language_is_lines_of_json(talk: Callable[[str], object]) -> None:
    endpoints = talk("")
    assert isinstance(endpoints, dict)
    assert set(endpoints) == {"http_endpoint", "grpc_endpoint"}
    assert talk("spans") == []
    assert talk("dance now") == {"error": "unknown command: dance now"}
    assert talk("spans -1") == {"error": "unknown command: spans -1"}
