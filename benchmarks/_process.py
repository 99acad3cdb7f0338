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


def call(function: Callable[..., Any], **arguments: Any) -> Any:
    """What a module's function returns, as JSON can carry it, when it is called in a process of its own."""
    return ask(function, **arguments).value


def ask(function: Callable[..., Any], **arguments: Any) -> Answer:
    """The same with what was written to stderr.

    Raises:
        RuntimeError: The process has failed; it says how.
    """
    with background(function, **arguments) as answer:
        return answer()


@contextmanager
def background(function: Callable[..., Any], **arguments: Any) -> Iterator[Callable[[], Answer]]:
    """The same while something else is done; what it gives waits for the answer."""
    command = [sys.executable, "-m", "benchmarks._process", function.__module__, function.__name__]
    with subprocess.Popen(  # noqa: S603 - this very interpreter
        [*command, json.dumps(arguments)],
        cwd=ROOT,
        env=environment(),
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


def environment() -> dict[str, str]:
    """Ours without what configures telemetry."""
    return {k: v for k, v in os.environ.items() if not k.startswith(("OTEL_", "CASCADE_")) and k != "TRACEPARENT"}


if __name__ == _MAIN:
    module, name, arguments = sys.argv[1:]
    print(json.dumps(getattr(importlib.import_module(module), name)(**json.loads(arguments))), flush=True)
