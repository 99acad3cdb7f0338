"""Errors of Cascade itself at places that raise no error to the program: under the tests of Cascade they are raised."""

from collections.abc import Callable

check: Callable[[BaseException], None] | None = None
"""Called with each suppressed error. The tests of Cascade set it to a function that raises errors of Cascade itself."""


def raise_in_tests(error: BaseException) -> None:
    """Raise the error under the tests of Cascade if its own code caused it; do nothing otherwise.

    Each place that catches all exceptions and does not raise them again calls it first: errors of connectors, of
    telemetry and of objects of the program do not end a run, and so a fault of Cascade would pass its tests.
    """
    if check is not None:
        check(error)
