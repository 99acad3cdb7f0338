"""Raises errors of the product that its guards suppress."""

import traceback
from pathlib import Path

import pytest

from cascade import _internal_errors
from cascade.runtime.exceptions import TelemetryLostError

_PRODUCT = str(Path(_internal_errors.__file__).parent)
_TESTS = str(Path(__file__).parent.parent)
_EXPECTED = (OSError, TelemetryLostError)
"""Errors that the product raises on purpose: a server is unreachable, messages are lost."""


class InternalErrors:
    """Raises the internal errors of one test in the guards that suppress them.

    `found` lists them for the end of the test, since another handler may suppress a raised error.
    """

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.found: list[str] = []
        patch.setattr(_internal_errors, "check", self._check)

    def _check(self, error: BaseException) -> None:
        if isinstance(error, Exception) and not isinstance(error, _EXPECTED) and _is_internal(error):
            self.found.append("".join(traceback.format_exception(error)))
            raise error


def _is_internal(error: Exception) -> bool:
    """Return whether the innermost frame outside of libraries belongs to the product, and not to a test."""
    frames = [frame.f_code.co_filename for frame, _ in traceback.walk_tb(error.__traceback__)]
    own = [name for name in frames if name.startswith((_PRODUCT, _TESTS))]
    return bool(own) and own[-1].startswith(_PRODUCT)
