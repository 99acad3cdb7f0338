"""A server as a child process: started, waited for, killed and started again at the same address."""

import contextlib
import os
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

PATIENCE = 120.0
"""Seconds for a server to be ready, or to end: a machine that is busy building takes its time."""


class ServerError(Exception):
    """A server did not start or did not become ready; its text ends with the last lines of its log."""


def until(condition: Callable[[], bool], what: str, timeout: float = PATIENCE) -> None:
    """Ask again and again, for other processes' states have no event to wait for.

    Raises:
        ServerError: It did not hold in time.
    """
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise ServerError(f"{what}: not after {timeout:.0f} s")
        time.sleep(0.02)


def answers(url: str, timeout: float = 2.0) -> bool:
    """Whether the URL has an answer with a status from 200 to 299 within so many seconds."""
    with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=timeout):
        return True
    return False


@dataclass
class Server:
    """A program with its environment, and how to see that it is ready.

    Attributes:
        detached: It outlives us, and Ctrl-C in our terminal is not its business.
    """

    name: str
    command: list[str]
    log: Path
    ready: Callable[[], bool]
    environment: Mapping[str, str] = field(default_factory=dict)
    detached: bool = False
    process: subprocess.Popen[bytes] | None = field(default=None, init=False)

    def start(self) -> None:
        """Start it and return once it is ready."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command,
                env={**os.environ, **self.environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=self.detached,
            )
        try:
            until(self._is_ready, f"{self.name} is ready")
        except ServerError as error:
            self.kill()
            raise ServerError(f"{error}\n{self.tail()}") from None

    def stop(self) -> None:
        """End it as an administrator would, by SIGTERM."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it as a power cut would."""
        self._end(signal.SIGKILL)

    def tail(self, lines: int = 20) -> str:
        """The end of its log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def _is_ready(self) -> bool:
        if self.process is not None and (code := self.process.poll()) is not None:
            raise ServerError(f"{self.name} ended with {code}")
        return self.ready()

    def _end(self, how: signal.Signals) -> None:
        if self.process is None:
            return
        self.process.send_signal(how)
        try:
            self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process = None
