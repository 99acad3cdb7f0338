"""The latest message of each topic, in bounded memory."""

from itertools import islice
from typing import Any

from cascade.telemetry.wire import MAX_RECEIVED_BYTES, received

CAPACITY = 16 << 20
"""Bytes: some 40,000 constraints, more than anyone sets."""
ENTRY_BYTES = 200
"""Of memory that a message takes beside itself and its topic."""

Incoming = bytes | dict[str, Any]


def incoming(data: bytes) -> Incoming:
    """What is kept of a message until it is its turn: itself, or of one that is far too big what is wrong with it."""
    return data if len(data) <= MAX_RECEIVED_BYTES else received(data)


class Latest(dict[str, Incoming]):
    """By topic, the one that has waited longest first. Changed by `put` and `take` alone."""

    def __init__(self) -> None:
        super().__init__()
        self._bytes = 0

    def put(self, topic: str, message: Incoming) -> bool:
        """Take a message instead of the last of its topic; False, and nothing changes, if that is more than fits."""
        before = self.get(topic)
        growth = _size(topic, message) - (0 if before is None else _size(topic, before))
        if growth > 0 and self._bytes + growth > CAPACITY:
            return False
        self.pop(topic, None)
        self[topic] = message
        self._bytes += growth
        return True

    def first(self, count: int) -> list[tuple[str, Incoming]]:
        """Give out so many."""
        batch = list(islice(self.items(), count))
        for topic, _ in batch:
            self.take(topic)
        return batch

    def take(self, topic: str) -> Incoming | None:
        """Give out what is there of a topic."""
        message = self.pop(topic, None)
        if message is not None:
            self._bytes -= _size(topic, message)
        return message


def _size(topic: str, message: Incoming) -> int:
    return ENTRY_BYTES + len(topic) + (len(message) if isinstance(message, bytes) else ENTRY_BYTES)
