"""Servers as child processes that are started, stopped, killed and restarted."""

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

TIMEOUT = 120.0
"""Seconds for the start or the end of a server, on a loaded machine."""


class ServerError(Exception):
    """A server did not start, or was not ready in time. The text ends with the last lines of its log."""


def until(condition: Callable[[], bool], what: str, timeout: float = TIMEOUT) -> None:
    """Poll a condition until it is true.

    Raises:
        ServerError: The condition was not true in time.
    """
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise ServerError(f"{what}: not after {timeout:.0f} s")
        time.sleep(0.02)


def responds(url: str, timeout: float = 2.0) -> bool:
    """Whether the URL responds with a status from 200 to 299 within `timeout` seconds."""
    with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=timeout):
        return True
    return False


@dataclass
class Server:
    """A server with its command, its environment and its readiness check.

    Attributes:
        detached: The server continues after the end of this process and ignores Ctrl-C in its terminal.
    """

    name: str
    command: list[str]
    log: Path
    ready: Callable[[], bool]
    environment: Mapping[str, str] = field(default_factory=dict)
    detached: bool = False
    process: subprocess.Popen[bytes] | None = field(default=None, init=False)

    def start(self) -> None:
        """Start the server; return when it is ready."""
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
        """Stop the server with SIGTERM."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """Kill the server with SIGKILL."""
        self._end(signal.SIGKILL)

    def tail(self, lines: int = 20) -> str:
        """Return the last lines of the log."""
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
            self.process.wait(TIMEOUT)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process = None
