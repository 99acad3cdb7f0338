"""A real Mosquitto on a free port, which a test may kill, freeze and start again."""

import contextlib
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from cascade.testing._patience import PATIENCE

_PLACES = "/usr/sbin:/usr/local/sbin:/opt/homebrew/sbin"
_LOOK = 0.02


class MosquittoProcess:
    """Mosquitto on 127.0.0.1, in a process that ends with the `with` block.

    Args:
        lines: Further lines of its configuration, such as `max_queued_messages 0`.
        listener: Lines about its listener, such as those for TLS.
        anonymous: Whether clients need no user name.
        folder: Where its files go; one of its own, removed afterwards, if there is none.

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
        # Started as root, it would become a user who may not write what it is to keep.
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
        """What it has written to stdout and stderr."""
        path = self._config.with_suffix(".log")
        return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""

    def start(self) -> None:
        """Start it, and return once it accepts connections.

        Raises:
            RuntimeError: It does not; the text is its log.
        """
        with self._config.with_suffix(".log").open("ab") as output:
            command = [self._program, "-c", str(self._config)]
            self._process = subprocess.Popen(command, stdout=output, stderr=output, cwd=self.folder)  # noqa: S603
        for _ in range(int(PATIENCE / _LOOK)):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_LOOK)
                break
        raise RuntimeError(f"Mosquitto does not accept connections: {self.log}")

    def stop(self) -> None:
        """SIGTERM: it saves what it is configured to keep."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL: it saves nothing, and says goodbye to nobody."""
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        """Kill it and start it again, on the same port."""
        self.kill()
        self.start()

    def freeze(self) -> None:
        """SIGSTOP: connections stay, and nothing is answered any more."""
        if self._process is not None:
            self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        self.freeze()
        try:
            yield
        finally:
            self.thaw()

    def _end(self, how: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(how)
            process.wait(PATIENCE)


def free_port() -> int:
    """A port on which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def _program() -> str:
    program = shutil.which("mosquitto") or shutil.which("mosquitto", path=_PLACES)
    if program is None:
        raise FileNotFoundError("mosquitto is not installed: apt-get install mosquitto, or brew install mosquitto")
    return program
