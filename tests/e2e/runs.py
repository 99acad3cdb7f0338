"""Starts workflows in separate processes."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

from stack.build import ROOT
from tests.lab.waiting import NEVER


class Run:
    """A workflow of `workflows.py`, or of another module, in a separate process.

    The end of the `with` block kills the process if it is still running.
    """

    def __init__(
        self, environment: Mapping[str, str], name: str, *arguments: object, module: str = "tests.e2e.workflows"
    ) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", module, name, *map(str, arguments)],
            cwd=ROOT,
            env={**os.environ, **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.kill()
        self.process.communicate()

    def wait_for_line(self, expected: str) -> None:
        """Read the next line, which must be the expected one."""
        assert self.process.stdout
        assert self.process.stdout.readline() == f"{expected}\n"

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Stop the process with SIGSTOP, and continue it at the end of the block."""
        self.process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.process.send_signal(signal.SIGCONT)

    def resume(self) -> None:
        """Resume the workflow, which waits for a line."""
        assert self.process.stdin
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def result(self) -> dict[str, Any]:
        """Resume the workflow, wait for its end, and return the result in its last line."""
        out, self.stderr = self.process.communicate("\n", timeout=NEVER)
        assert out, self.stderr
        result: dict[str, Any] = json.loads(out.splitlines()[-1])
        return result


def run(environment: Mapping[str, str], name: str, *arguments: object) -> dict[str, Any]:
    """Run a workflow; return its ids, and its value or error."""
    with Run(environment, name, *arguments) as running:
        return running.result()
