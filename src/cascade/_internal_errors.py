"""Raises suppressed errors of Cascade itself in its tests."""

from collections.abc import Callable

check: Callable[[BaseException], None] | None = None
"""Called with each suppressed error. The tests of Cascade set it to a function that raises errors of Cascade itself."""


def raise_in_tests(error: BaseException) -> None:
    """Raise the error if the tests of Cascade run and its own code caused the error. Otherwise do nothing.

    Code that suppresses all exceptions calls it first. Errors of connectors, of telemetry and of objects of the program
    do not end a run. Without this call, a fault of Cascade would not fail its tests either.
    """
    if check is not None:
        check(error)
