"""Who steers, in a process of its own: publishes what it is told on stdin, and says when that was."""

import json
import subprocess
import sys
import time
from types import TracebackType
from typing import Self

from benchmarks._process import ROOT, environment

_MAIN = "__main__"


class Gardener:
    """The handle: starts the process, and ends it when the `with` block ends."""

    def __init__(self, port: int) -> None:
        self._process = subprocess.Popen(  # noqa: S603 - this very interpreter
            [sys.executable, "-m", "benchmarks._gardener", str(port)],
            cwd=ROOT,
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.communicate()

    def publish(self, topic: str, payload: bytes) -> None:
        """Let it be published, retained, soon."""
        assert self._process.stdin is not None  # noqa: S101 - for the type checker
        self._process.stdin.write(json.dumps([topic, payload.decode()]) + "\n")
        self._process.stdin.flush()

    def published_at(self) -> float:
        """When the next one was, in Unix seconds; blocks until it is."""
        assert self._process.stdout is not None  # noqa: S101 - for the type checker
        return float(self._process.stdout.readline())


def main() -> None:
    from paho.mqtt.client import Client
    from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

    client = Client(CallbackAPIVersion.VERSION2, protocol=MQTTProtocolVersion.MQTTv5)
    client.connect("127.0.0.1", int(sys.argv[1]))
    client.loop_start()
    for line in sys.stdin:
        topic, payload = json.loads(line)
        moment = time.time()
        client.publish(topic, payload, 1, retain=True).wait_for_publish()
        print(moment, flush=True)
    client.disconnect()
    client.loop_stop()


if __name__ == _MAIN:
    main()
