"""Loggers that raise no exception."""

import logging
from typing import Any


class SafeLogger(logging.LoggerAdapter[logging.Logger]):
    """Logger of a module of Cascade. An exception of a handler, filter or stream ends no run.

    `logging` itself ignores the errors of a handler only while stderr accepts the report about them. A program may have
    closed or replaced stderr.
    """

    def log(self, level: int, msg: object, *args: object, **kwargs: Any) -> None:
        kwargs["stacklevel"] = kwargs.get("stacklevel", 1) + 1  # the caller, not this method
        try:
            super().log(level, msg, *args, **kwargs)
        except Exception:  # noqa: BLE001 - handlers are the program's
            return


def get_logger(name: str) -> SafeLogger:
    """Return the logger of a module, by its name for `logging.getLogger`."""
    return SafeLogger(logging.getLogger(name))
