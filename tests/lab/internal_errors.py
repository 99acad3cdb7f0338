"""Errors that the product suppresses: those that its own code caused are raised."""

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
    """The internal errors of one test, raised where the product would suppress them.

    The list is checked at the end of the test too, since another handler may have suppressed an error again.
    """

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.found: list[str] = []
        patch.setattr(_internal_errors, "check", self._check)

    def _check(self, error: BaseException) -> None:
        if isinstance(error, Exception) and not isinstance(error, _EXPECTED) and _is_internal(error):
            self.found.append("".join(traceback.format_exception(error)))
            raise error


def _is_internal(error: Exception) -> bool:
    """Whether the product made the call that failed: the innermost frame that is not of a library is its own."""
    frames = [frame.f_code.co_filename for frame, _ in traceback.walk_tb(error.__traceback__)]
    own = [name for name in frames if name.startswith((_PRODUCT, _TESTS))]
    return bool(own) and own[-1].startswith(_PRODUCT)
