"""A fresh process for each measurement, so that none disturbs another: `call(function, …)` runs it in one."""

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
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
    command = [sys.executable, "-m", "benchmarks._process", function.__module__, function.__name__]
    done = subprocess.run(  # noqa: S603 - this very interpreter
        [*command, json.dumps(arguments)],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=_PATIENCE,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{function.__module__}.{function.__name__} ended with {done.returncode}: {done.stderr}")
    return Answer(json.loads(done.stdout.splitlines()[-1]), done.stderr.splitlines())


def environment() -> dict[str, str]:
    """Ours without what configures telemetry."""
    return {k: v for k, v in os.environ.items() if not k.startswith(("OTEL_", "CASCADE_")) and k != "TRACEPARENT"}


if __name__ == _MAIN:
    module, name, arguments = sys.argv[1:]
    print(json.dumps(getattr(importlib.import_module(module), name)(**json.loads(arguments))), flush=True)
