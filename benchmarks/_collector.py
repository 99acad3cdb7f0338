"""A real OTLP collector in a process of its own, which counts where it is: its spans do not cross the process's border.

It obeys lines on stdin: `spans` tells what has arrived and forgets it, `count` only how many, `fault unavailable`
makes it answer 503.
"""

import json
import sys
from collections import Counter
from typing import Any

from benchmarks._beside import Beside

PROTOCOLS = {"HTTP": "http/protobuf", "gRPC": "grpc"}
_MAIN = "__main__"


class Collector(Beside):
    """The handle of the process."""

    def __init__(self) -> None:
        super().__init__("benchmarks._collector")
        self._endpoints: dict[str, str] = json.loads(self.hear())

    def endpoint(self, protocol: str) -> str:
        return self._endpoints[protocol]

    def say(self, command: str) -> Any:
        """What the process answers."""
        self.tell(command)
        return json.loads(self.hear())


def main() -> None:
    from tests.lab.receiver import FaultyReceiver  # here, so that the handle's process stays small

    with FaultyReceiver() as receiver:
        _say({protocol: receiver.endpoint(protocol) for protocol in PROTOCOLS.values()})
        for line in sys.stdin:
            _say(_obey(receiver, line.split()))


def _obey(receiver: Any, words: list[str]) -> Any:
    from tests.lab.receiver import Fault

    answer: Any = None
    match words:
        case ["spans"]:
            spans = receiver.spans
            counts = Counter(span.name for span in spans)
            samples = {span.name: span.attributes for span in spans}
            answer = {"counts": counts, "orphans": len(spans.orphans()), "samples": samples}
            receiver.clear()
        case ["count"]:
            answer = receiver.span_count
            receiver.clear()
        case ["fault", "unavailable"]:
            receiver.fault = Fault.unavailable()
        case _:
            raise ValueError(f"unknown command: {words}")
    return answer


def _say(answer: Any) -> None:
    print(json.dumps(answer), flush=True)


if __name__ == _MAIN:
    main()
