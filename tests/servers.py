"""Paths of the programs that tests use; a test is skipped where its program is missing, and fails in CI."""

import os
from typing import NoReturn

import pytest

from stack import programs

_PROGRAMS = {name for package in programs.PACKAGES for name in package.programs}


def program(name: str) -> str:
    """The path of a program that `stack.programs` lists; without it the test is skipped, or fails in CI."""
    assert name in _PROGRAMS, f"{name} is not in stack.programs.PACKAGES, from which `make test` installs"
    return programs.find(name) or is_missing(name)


def go() -> str:
    """The path of a Go that is new enough for the stack; without it the test is skipped, or fails in CI."""
    return programs.go() or is_missing("Go")


def is_missing(what: str) -> NoReturn:
    """Skip the test, or fail it where everything must be there: in CI."""
    if os.environ.get(programs.REQUIRED):
        pytest.fail(f"{what} is not installed, and {programs.REQUIRED} is set")
    pytest.skip(f"{what} is not installed")
