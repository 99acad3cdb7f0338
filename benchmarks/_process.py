"""Processes of the measurements: each measurement runs in a fresh process, so that none affects another."""

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

ROOT = Path(__file__).parent.parent
_TIMEOUT = 900.0
"""Seconds for one measurement."""
_MAIN = "__main__"


@dataclass(frozen=True, slots=True)
class Result:
    """The return value of a function that ran in its own process, and the lines that the process wrote to stderr."""

    value: Any
    stderr: list[str]


def call(function: Callable[..., Any], *, tree: Path | None = None, **arguments: Any) -> Any:
    """Call a module's function in its own process and return its value, which must be serializable as JSON.

    Args:
        function: A function at the top level of a module.
        tree: A checkout of another revision. The process imports `cascade` from it.
        arguments: Keyword arguments of the function, serializable as JSON.

    Raises:
        RuntimeError: The process failed. The text has its exit code and its stderr.
    """
    return run(function, tree=tree, **arguments).value


def run(function: Callable[..., Any], *, tree: Path | None = None, **arguments: Any) -> Result:
    """Call a function like `call`, and return its value with the lines on stderr."""
    with background(function, tree=tree, **arguments) as result:
        return result()


@contextmanager
def background(
    function: Callable[..., Any], *, tree: Path | None = None, **arguments: Any
) -> Iterator[Callable[[], Result]]:
    """Start the process of `run`. The yielded function waits for the result."""
    command = [sys.executable, "-m", "benchmarks._process", function.__module__, function.__name__]
    with subprocess.Popen(  # noqa: S603 - this interpreter
        [*command, json.dumps(arguments)],
        cwd=ROOT,
        env=environment(tree),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
    ) as process:

        def result() -> Result:
            out, err = process.communicate(timeout=_TIMEOUT)
            if process.returncode:
                name = f"{function.__module__}.{function.__name__}"
                raise RuntimeError(f"{name} ended with exit code {process.returncode}: {err}")
            return Result(json.loads(out.splitlines()[-1]), err.splitlines())

        try:
            yield result
        finally:
            process.kill()


class LineProcess:
    """A module that runs in its own process, reads lines from stdin and writes lines to stdout."""

    def __init__(self, module: str, *arguments: str) -> None:
        self._process = subprocess.Popen(  # noqa: S603 - this interpreter
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

    def write_line(self, line: str) -> None:
        assert self._process.stdin is not None  # noqa: S101 - for the type checker
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()

    def read_line(self) -> str:
        """Return the next line of its stdout; blocks until the process has written it."""
        assert self._process.stdout is not None  # noqa: S101 - for the type checker
        return self._process.stdout.readline()


def environment(tree: Path | None = None) -> dict[str, str]:
    """Return the environment without telemetry variables. With a tree, `cascade` is imported from there.

    Python may write byte code, which an installed package has: without it, each import would compile Cascade, but not the
    packages with which it is compared.
    """
    left_out = {"TRACEPARENT", "PYTHONDONTWRITEBYTECODE"}
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("OTEL_", "CASCADE_")) and k not in left_out}
    return kept if tree is None else {**kept, "PYTHONPATH": str(tree / "src")}


if __name__ == _MAIN:
    module, name, arguments = sys.argv[1:]
    print(json.dumps(getattr(importlib.import_module(module), name)(**json.loads(arguments))), flush=True)
