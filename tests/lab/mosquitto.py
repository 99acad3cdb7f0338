"""A Mosquitto on a free port that a test can kill, freeze and restart."""

import contextlib
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from tests.lab.waiting import HANG

_SBIN = "/usr/sbin:/usr/local/sbin:/opt/homebrew/sbin"
_INTERVAL = 0.02


class MosquittoProcess:
    """Mosquitto on 127.0.0.1. Its process ends with the `with` block.

    Args:
        lines: Lines of its configuration, such as `max_queued_messages 0`.
        listener: Lines for its listener, such as those for TLS.
        anonymous: Accept clients without a user name.
        folder: The folder of its files; None for a temporary one.

    Raises:
        FileNotFoundError: Mosquitto is not installed.
    """

    def __init__(
        self, *lines: str, listener: tuple[str, ...] = (), anonymous: bool = True, folder: Path | None = None
    ) -> None:
        self._program = _program()
        self._own = tempfile.TemporaryDirectory(prefix="cascade-mosquitto-") if folder is None else None
        self.folder = folder or Path(self._own.name if self._own else "")
        self.port = free_port()
        self._config = self.folder / f"mosquitto-{self.port}.conf"
        allowed = f"allow_anonymous {str(anonymous).lower()}"
        # As root, it would switch to a user that cannot write to the folder.
        first = [f"listener {self.port} 127.0.0.1", *listener, allowed, "user root"]
        self._config.write_text("\n".join([*first, *lines, ""]), encoding="utf-8")
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        if self._own is not None:
            self._own.cleanup()

    @property
    def log(self) -> str:
        """Its output so far."""
        path = self._config.with_suffix(".log")
        return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""

    def start(self) -> None:
        """Start it and wait until it accepts connections.

        Raises:
            RuntimeError: It accepts no connection. The text has its log.
        """
        with self._config.with_suffix(".log").open("ab") as output:
            command = [self._program, "-c", str(self._config)]
            self._process = subprocess.Popen(command, stdout=output, stderr=output, cwd=self.folder)
        for _ in range(int(HANG / _INTERVAL)):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_INTERVAL)
                break
        raise RuntimeError(f"Mosquitto does not accept connections: {self.log}")

    def stop(self) -> None:
        """Send SIGTERM: it saves its state."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL: it saves nothing and closes no connection."""
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        """Kill it and start it on the same port."""
        self.kill()
        self.start()

    def freeze(self) -> None:
        """Send SIGSTOP: connections stay open without responses."""
        if self._process is not None:
            self._process.send_signal(signal.SIGSTOP)

    def unfreeze(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        self.freeze()
        try:
            yield
        finally:
            self.unfreeze()

    def _end(self, how: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(how)
            process.wait(HANG)


def free_port() -> int:
    """Return a port on which no process listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def _program() -> str:
    program = shutil.which("mosquitto") or shutil.which("mosquitto", path=_SBIN)
    if program is None:
        raise FileNotFoundError("mosquitto is not installed: apt-get install mosquitto, or brew install mosquitto")
    return program
