"""What a test does when a program it needs is not there."""

import os
from typing import NoReturn

import pytest

REQUIRED = "CASCADE_REQUIRE_SERVERS"


def is_missing(what: str) -> NoReturn:
    """Skip the test, or fail it where everything must be there: in CI."""
    if os.environ.get(REQUIRED):
        pytest.fail(f"{what} is not installed, and {REQUIRED} is set")
    pytest.skip(f"{what} is not installed")
