"""A program in a pseudo-terminal, whose screen a test reads."""

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import Self

import pyte
import pytest

from tests.lab.waiting import HANG

_READ_SECONDS = 0.05
_OPEN = "import os; os.close(os.open(os.ttyname(0), os.O_RDWR))\n"
"""Makes the terminal that of the session, so that Ctrl-C reaches the program."""
_EMOJI_VARIANT = "\ufe0f".encode()
"""Variation selector, after which pyte ignores the rest of the line."""
_VARIABLES = ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "CI", "CASCADE_CONNECTOR", "PYTHONWARNINGS")


class Terminal:
    """Runs a Python program in a terminal of that size. `output` has all its bytes so far.

    With `stdout` or `stderr`, that stream is a file or a pipe and not the terminal.
    """

    def __init__(
        self,
        program: str,
        arguments: Iterable[str] = (),
        *,
        columns: int = 100,
        lines: int = 30,
        environment: Mapping[str, str] | None = None,
        stdout: int | None = None,
        stderr: int | None = None,
    ) -> None:
        try:
            self._ours, theirs = pty.openpty()
        except OSError as error:  # a chroot without /dev/pts
            pytest.skip(f"no terminal can be opened: {error}")
        self.screen = pyte.HistoryScreen(columns, lines, history=100_000, ratio=0.5)
        self._stream = pyte.ByteStream(self.screen)
        self.output = b""
        self._resize(theirs, columns, lines)
        environ = {name: value for name, value in os.environ.items() if name not in _VARIABLES}
        environ |= {"TERM": "xterm", "PYTHONUTF8": "1", **(environment or {})}
        self.process = subprocess.Popen(
            [sys.executable, "-c", _OPEN + program, *arguments],
            stdin=theirs,
            stdout=theirs if stdout is None else stdout,
            stderr=theirs if stderr is None else stderr,
            env=environ,
            start_new_session=True,
        )
        os.close(theirs)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(HANG)
        os.close(self._ours)

    @property
    def shown(self) -> list[str]:
        """The lines on the screen, without the empty ones at the end."""
        lines = [line.rstrip() for line in self.screen.display]
        while lines and not lines[-1]:
            lines.pop()
        return lines

    @property
    def scrolled(self) -> list[str]:
        """The lines that have left the screen, and those on it."""
        history = ["".join(line[x].data for x in range(self.screen.columns)) for line in self.screen.history.top]
        return [line.rstrip() for line in history] + self.shown

    def until(self, condition: Callable[[list[str]], object]) -> list[str]:
        """Read the output until a condition holds for the lines on the screen. Return these lines.

        Raises:
            AssertionError: The program has ended, or `HANG` seconds are over.
        """
        deadline = time.monotonic() + HANG
        while not condition(self.shown) or self._has_output(0):  # the rest of a frame may follow
            assert time.monotonic() < deadline, "\n".join(self.shown)
            assert self._read(), "the program has ended:\n" + "\n".join(self.scrolled)
        return self.shown

    def finish(self) -> int:
        """Read the rest of the output. Return the exit code of the program."""
        deadline = time.monotonic() + HANG
        while self._read():
            assert time.monotonic() < deadline, "\n".join(self.shown)
        return self.process.wait(HANG)

    def send(self, text: str) -> None:
        """Type a text: "\\x03" is Ctrl-C."""
        os.write(self._ours, text.encode())

    def resize(self, columns: int, lines: int) -> None:
        self._resize(self._ours, columns, lines)
        self.screen.resize(lines, columns)
        self.process.send_signal(signal.SIGWINCH)

    def _resize(self, terminal: int, columns: int, lines: int) -> None:
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def _has_output(self, seconds: float) -> bool:
        return bool(select.select([self._ours], [], [], seconds)[0])

    def _read(self) -> bool:
        """Read what is there, for at most `_READ_SECONDS`. Return False after the end of the output."""
        if not self._has_output(_READ_SECONDS):
            return True
        try:
            data = os.read(self._ours, 65_536)
        except OSError:  # Linux: no process has the terminal any more
            return False
        self.output += data
        self._stream.feed(data.replace(_EMOJI_VARIANT, b""))
        return bool(data)
