"""An OTLP receiver in a process of its own, and the handle that starts it and asks it.

The process reads commands from stdin, one a line, and answers each with one line of JSON: `spans` with all spans,
`spans 120` with those from the 120th on, `spans 120 2.5` the same once there are any, or after 2.5 seconds.
It ends with its stdin, or on SIGTERM.
"""

import contextlib
import json
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import IO, Any, Self

from cascade.testing._patience import PATIENCE
from cascade.testing.received import ReceivedSpan, Spans
from cascade.testing.receiver import OtlpReceiver

_PATIENCE = 5.0
"""Seconds for the process to end by itself."""


class ReceiverProcess:
    """Starts the receiver as a process, and ends it when the `with` block ends.

    What it has received survives whatever happens to this process's threads, event loop and sockets: it is what a
    test of a killed or blocked process wants.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._spans: list[ReceivedSpan] = []
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        command = [sys.executable, "-m", "cascade.testing.receiver_process"]
        self._process = subprocess.Popen(  # noqa: S603 - this very interpreter
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True, encoding="utf-8"
        )
        try:
            endpoints = self._read()
        except BaseException:
            self.close()
            raise
        self.http_endpoint: str = endpoints["http_endpoint"]
        self.grpc_endpoint: str = endpoints["grpc_endpoint"]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def pid(self) -> int:
        return self._process.pid

    def spans(self) -> Spans:
        """The spans so far, in the order in which they arrived.

        Raises:
            RuntimeError: The process has ended; it says how, and what it wrote to stderr.
        """
        return self._fetch(0.0)

    def wait_for(self, predicate: Callable[[Spans], bool], timeout: float = PATIENCE) -> Spans:
        """The spans, as soon as the predicate holds for them; it is asked again whenever spans arrive.

        Raises:
            AssertionError: It did not hold in time; it says what was there.
            RuntimeError: The process has ended.
        """
        deadline = time.monotonic() + timeout
        spans = self._fetch(0.0)
        while not predicate(spans):
            left = deadline - time.monotonic()
            if left <= 0:
                raise AssertionError(f"not received within {timeout:g} s; there are {spans.summary()}")
            spans = self._fetch(left)
        return spans

    def close(self) -> None:
        """End the process, at once if it does not end by itself."""
        for pipe in (self._process.stdin, self._process.stdout):
            _close(pipe)
        try:
            self._process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._errors.close()

    def _fetch(self, patience: float) -> Spans:
        with self._lock:
            new = self._ask(f"spans {len(self._spans)} {patience:.3f}")
            self._spans += [ReceivedSpan.from_dict(plain) for plain in new]
            return Spans(self._spans)

    def _ask(self, command: str) -> Any:
        try:
            self._stdin.write(f"{command}\n")
            self._stdin.flush()
        except (OSError, ValueError) as error:
            raise self._ended() from error
        return self._read()

    def _read(self) -> Any:
        line = self._stdout.readline() if not self._stdout.closed else ""
        if not line:
            raise self._ended()
        return json.loads(line)

    @property
    def _stdin(self) -> IO[str]:
        assert self._process.stdin is not None  # noqa: S101 - for the type checker
        return self._process.stdin

    @property
    def _stdout(self) -> IO[str]:
        assert self._process.stdout is not None  # noqa: S101 - for the type checker
        return self._process.stdout

    def _ended(self) -> RuntimeError:
        if self._errors.closed:
            return RuntimeError("the receiver process was closed")
        code = self._process.wait(_PATIENCE)
        self._errors.seek(0)
        said = self._errors.read().decode(errors="replace").strip()
        return RuntimeError(f"the receiver process ended with code {code}; its stderr: {said or 'nothing'}")


def main() -> None:
    """Serve until stdin ends or SIGTERM comes."""
    signal.signal(signal.SIGTERM, _leave)
    # Ctrl-C goes to the whole group; when to end is for the process that started this one to say.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with OtlpReceiver() as receiver:
        _say({"http_endpoint": receiver.http_endpoint, "grpc_endpoint": receiver.grpc_endpoint})
        for line in sys.stdin:
            _say(_obey(receiver, line.split()))


def _obey(receiver: OtlpReceiver, words: list[str]) -> Any:
    match words:
        case ["spans"]:
            return _new_spans(receiver, 0, 0.0)
        case ["spans", first] if first.isdecimal():
            return _new_spans(receiver, int(first), 0.0)
        case ["spans", first, seconds] if first.isdecimal() and seconds.replace(".", "", 1).isdecimal():
            return _new_spans(receiver, int(first), float(seconds))
        case _:
            return {"error": f"unknown command: {' '.join(words)}"}


def _new_spans(receiver: OtlpReceiver, first: int, seconds: float) -> list[dict[str, Any]]:
    with contextlib.suppress(AssertionError):
        receiver.wait_for(lambda spans: len(spans) > first, seconds)
    return [span.to_dict() for span in receiver.spans[first:]]


def _say(answer: Any) -> None:
    sys.stdout.write(f"{json.dumps(answer)}\n")
    sys.stdout.flush()


def _leave(*_: object) -> None:
    raise SystemExit(0)


def _close(pipe: IO[str] | None) -> None:
    try:
        if pipe is not None:
            pipe.close()
    except OSError:
        """It had ended before: what was left to write has nobody to read it."""


if __name__ == "__main__":
    main()
