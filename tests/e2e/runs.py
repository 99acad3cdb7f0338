"""Runs in processes of their own, as a user's are."""

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
    """A workflow of `workflows.py`, or of another module, in its process.

    `with` ends it, should it still be there.
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
        """Return once it has said so."""
        assert self.process.stdout
        assert self.process.stdout.readline() == f"{expected}\n"

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """SIGSTOP, and SIGCONT afterwards."""
        self.process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.process.send_signal(signal.SIGCONT)

    def go_on(self) -> None:
        """Let it go on after the line that it is waiting at."""
        assert self.process.stdin
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def result(self) -> dict[str, Any]:
        """Its last line, once it has ended; it is told to go on before."""
        out, self.stderr = self.process.communicate("\n", timeout=NEVER)
        assert out, self.stderr
        said: dict[str, Any] = json.loads(out.splitlines()[-1])
        return said


def run(environment: Mapping[str, str], name: str, *arguments: object) -> dict[str, Any]:
    """What the run said at its end: its ids, and its value or error."""
    with Run(environment, name, *arguments) as running:
        return running.result()
