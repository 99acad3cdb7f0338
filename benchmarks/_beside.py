"""A module of ours in a process beside, which is told something a line at a time, and answers in lines."""

import subprocess
import sys
from types import TracebackType
from typing import Self

from benchmarks._process import ROOT, environment


class Beside:
    """The handle: starts the process, and ends it when the `with` block ends."""

    def __init__(self, module: str, *arguments: str) -> None:
        self._process = subprocess.Popen(  # noqa: S603 - this very interpreter
            [sys.executable, "-m", module, *arguments],
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

    def tell(self, line: str) -> None:
        assert self._process.stdin is not None  # noqa: S101 - for the type checker
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()

    def hear(self) -> str:
        """The next line of its answers; blocks until it is there."""
        assert self._process.stdout is not None  # noqa: S101 - for the type checker
        return self._process.stdout.readline()
