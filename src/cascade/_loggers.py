"""Loggers that raise no exception and print neither a secret nor a control character."""

import logging
import math
import time
from typing import Any

from cascade._internal_errors import raise_in_tests
from cascade.messaging.renderer import printable
from cascade.telemetry.redact import redact_text
from cascade.telemetry.sanitize import stack_text

_MAX_STORED = 1_000
"""Number of different warnings that `LimitedWarnings` stores."""


class SafeLogger(logging.LoggerAdapter[logging.Logger]):
    """Logger that suppresses the exceptions of handlers, filters and streams, so that they cannot fail a run.

    `logging` reports the error of a handler on stderr, and may raise if the program has closed or replaced stderr.
    """

    def log(self, level: int, msg: object, *args: object, **kwargs: Any) -> None:
        kwargs["stacklevel"] = kwargs.get("stacklevel", 1) + 1  # the caller, not this method
        try:
            super().log(level, msg, *args, **kwargs)
        except Exception as error:  # noqa: BLE001 - handlers are the program's
            raise_in_tests(error)


def get_logger(name: str) -> SafeLogger:
    """Return the logger with a name, as `logging.getLogger` does."""
    logger = logging.getLogger(name)
    if make_safe not in logger.filters:
        logger.addFilter(make_safe)
    return SafeLogger(logger)


def make_safe(record: logging.LogRecord) -> bool:
    """Filter that masks secrets and escapes control characters, which texts of brokers, collectors and tasks may contain."""
    if isinstance(record.args, tuple) and record.args:
        # Each argument is masked alone, so that the text before it does not count as its key.
        record.args = tuple(arg if isinstance(arg, (int, float)) else redact_text(str(arg)) for arg in record.args)
        record.msg = record.getMessage()
    else:
        record.msg = redact_text(record.getMessage())
    record.msg, record.args = printable(record.msg), ()
    if record.exc_info and record.exc_info[1] is not None:
        # Formatters print this text in place of their own.
        record.exc_text = "\n".join(map(printable, stack_text(record.exc_info[1], indent=True).rstrip().split("\n")))
    return True


class LimitedWarnings:
    """Logs each warning at most once in `period` seconds, with a prefix."""

    def __init__(self, logger: SafeLogger, prefix: str = "", period: float = 60.0) -> None:
        self._logger = logger
        self._prefix = prefix
        self._period = period
        self._logged: dict[str, float] = {}

    def __call__(self, message: str) -> None:
        now = time.monotonic()
        if now - self._logged.get(message, -math.inf) < self._period:
            return
        if len(self._logged) >= _MAX_STORED:
            self._logged.clear()
        self._logged[message] = now
        self._logger.warning("%s%s", self._prefix, message)
