"""Warnings that do not flood the log."""

import time

from cascade._loggers import get_logger

logger = get_logger("cascade.connectors.mqtt")

PERIOD = 60.0
"""Seconds for which the same warning is not given again."""
_MOST_KNOWN = 1_000


class Warnings:
    """Gives the same warning at most once a period."""

    def __init__(self) -> None:
        self._given: dict[str, float] = {}

    def __call__(self, message: str) -> None:
        now = time.monotonic()
        if now - self._given.get(message, -PERIOD) < PERIOD:
            return
        if len(self._given) >= _MOST_KNOWN:
            self._given.clear()
        self._given[message] = now
        logger.warning("MqttConnector: %s", message)
