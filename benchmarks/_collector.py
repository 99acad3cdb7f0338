"""A real OTLP collector in its own process. It counts spans there, so that they are not copied between processes.

Each line on stdin is a command with one reply: `spans` returns what has arrived and clears it, `count` returns the number
of spans and clears them, `fault unavailable` makes the collector respond with 503.
"""

import json
import sys
from collections import Counter
from typing import Any

from benchmarks._process import LineProcess

PROTOCOLS = {"HTTP": "http/protobuf", "gRPC": "grpc"}
_MAIN = "__main__"


class Collector(LineProcess):
    """The handle of the collector's process."""

    def __init__(self) -> None:
        super().__init__("benchmarks._collector")
        self._endpoints: dict[str, str] = json.loads(self.read_line())

    def endpoint(self, protocol: str) -> str:
        return self._endpoints[protocol]

    def command(self, command: str) -> Any:
        """Send a command and return the reply."""
        self.write_line(command)
        return json.loads(self.read_line())


def main() -> None:
    from tests.lab.receiver import FaultyReceiver  # here, so that the process of the handle stays small

    with FaultyReceiver() as receiver:
        _reply({protocol: receiver.endpoint(protocol) for protocol in PROTOCOLS.values()})
        for line in sys.stdin:
            _reply(_run(receiver, line.split()))


def _run(receiver: Any, command: list[str]) -> Any:
    from tests.lab.receiver import Fault

    reply: Any = None
    match command:
        case ["spans"]:
            spans = receiver.spans
            counts = Counter(span.name for span in spans)
            samples = {span.name: span.attributes for span in spans}
            reply = {"counts": counts, "orphans": len(spans.orphans()), "samples": samples}
            receiver.clear()
        case ["count"]:
            reply = receiver.span_count
            receiver.clear()
        case ["fault", "unavailable"]:
            receiver.fault = Fault.unavailable()
        case _:
            raise ValueError(f"unknown command: {command}")
    return reply


def _reply(reply: Any) -> None:
    print(json.dumps(reply), flush=True)


if __name__ == _MAIN:
    main()
