"""Duration of `make demo` in an environment that is already installed."""

import subprocess
import time
from collections.abc import Iterator
from shutil import which

from benchmarks._measure import Goal, Row, absolute
from benchmarks._process import ROOT, environment
from benchmarks._scale import Scale

WHAT = "make demo, warm"
GOAL = Goal(10, unit=" s")
READY = ".make/ready"
"""The target of the installed environment. If it is out of date, `make demo` would install packages first."""


def rows(scale: Scale) -> Iterator[Row]:
    if which("make") is None or _make("--question", READY):
        yield Row(f"{WHAT}: not measured, because make is missing or {READY} is out of date", "", "", "", str(GOAL))
        return
    yield absolute(WHAT, [_seconds() for _ in range(scale.rounds + 1)][1:], "s", GOAL)  # the first one fills the caches


def _seconds() -> float:
    start = time.perf_counter()
    if code := _make("demo"):
        raise RuntimeError(f"make demo ended with exit code {code}")
    return time.perf_counter() - start


def _make(*arguments: str) -> int:
    """Return the exit code of make. The variables of the make that runs the benchmarks do not apply."""
    variables = {
        name: value for name, value in environment().items() if name not in {"MAKEFLAGS", "MAKELEVEL", "MFLAGS"}
    }
    done = subprocess.run(["make", *arguments], cwd=ROOT, env=variables, capture_output=True, check=False)  # noqa: S603, S607 - make of the PATH
    return done.returncode
