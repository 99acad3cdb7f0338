"""A fresh process for each measurement, so that none disturbs another: `call(function, …)` runs it in one."""

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
_PATIENCE = 300.0
_MAIN = "__main__"


@dataclass(frozen=True, slots=True)
class Answer:
    """What the function returned, and what its process has written to stderr."""

    value: Any
    stderr: list[str]


def call(function: Callable[..., Any], *, tree: Path | None = None, **arguments: Any) -> Any:
    """Calls a function of a module in a process of its own and returns its value, which JSON must be able to carry.

    The process imports `cascade` from the source tree `tree`, a checkout of another revision, if there is one.

    Raises:
        RuntimeError: The process has failed; the text has its exit status and its stderr.
    """
    return ask(function, tree=tree, **arguments).value


def ask(function: Callable[..., Any], *, tree: Path | None = None, **arguments: Any) -> Answer:
    """Like `call`, with the lines that the process has written to stderr."""
    with background(function, tree=tree, **arguments) as answer:
        return answer()


@contextmanager
def background(
    function: Callable[..., Any], *, tree: Path | None = None, **arguments: Any
) -> Iterator[Callable[[], Answer]]:
    """Starts the process of `ask`. The function that it yields waits for the answer."""
    command = [sys.executable, "-m", "benchmarks._process", function.__module__, function.__name__]
    with subprocess.Popen(  # noqa: S603 - this very interpreter
        [*command, json.dumps(arguments)],
        cwd=ROOT,
        env=environment(tree),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
    ) as process:

        def answer() -> Answer:
            out, err = process.communicate(timeout=_PATIENCE)
            if process.returncode:
                name = f"{function.__module__}.{function.__name__}"
                raise RuntimeError(f"{name} ended with {process.returncode}: {err}")
            return Answer(json.loads(out.splitlines()[-1]), err.splitlines())

        try:
            yield answer
        finally:
            process.kill()


def environment(tree: Path | None = None) -> dict[str, str]:
    """The environment of this process without telemetry's variables; with a tree, `cascade` is imported from there."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("OTEL_", "CASCADE_")) and k != "TRACEPARENT"}
    return kept if tree is None else {**kept, "PYTHONPATH": str(tree / "src")}


if __name__ == _MAIN:
    module, name, arguments = sys.argv[1:]
    print(json.dumps(getattr(importlib.import_module(module), name)(**json.loads(arguments))), flush=True)
