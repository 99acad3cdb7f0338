"""A real OTLP collector in a process of its own, which counts where it is: its spans do not cross the process's border.

It obeys lines on stdin: `spans` tells what has arrived and forgets it, `count` only how many, `fault unavailable`
makes it answer 503.
"""

import json
import subprocess
import sys
from collections import Counter
from types import TracebackType
from typing import Any, Self

from benchmarks._process import ROOT, environment

PROTOCOLS = {"HTTP": "http/protobuf", "gRPC": "grpc"}
_MAIN = "__main__"


class Collector:
    """The handle: starts the process, and ends it when the `with` block ends."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks._collector"],
            cwd=ROOT,
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._endpoints: dict[str, str] = self._read()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.communicate()

    def endpoint(self, protocol: str) -> str:
        return self._endpoints[protocol]

    def say(self, command: str) -> Any:
        """What the process answers."""
        assert self._process.stdin is not None  # noqa: S101 - for the type checker
        self._process.stdin.write(f"{command}\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> Any:
        assert self._process.stdout is not None  # noqa: S101 - for the type checker
        return json.loads(self._process.stdout.readline())


def main() -> None:
    from cascade.testing import OtlpReceiver  # here, so that the handle's process stays small

    with OtlpReceiver() as receiver:
        _say({protocol: receiver.endpoint(protocol) for protocol in PROTOCOLS.values()})
        for line in sys.stdin:
            _say(_obey(receiver, line.split()))


def _obey(receiver: Any, words: list[str]) -> Any:
    from cascade.testing import Fault

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
