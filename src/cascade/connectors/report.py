"""`ConnectorReport`: counts of a connector's messages and the state of its connection."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable


@dataclass(frozen=True, slots=True)
class ConnectorReport:
    """Counts since the connector was made, or since a fork in a forked child.

    Every message that the connector has taken is in one of `sent`, `lost` and `queued`.

    Attributes:
        sent: Messages, or spans, that the receiver has accepted.
        lost: Messages that were dropped, refused, or not accepted in time.
        retried: Repeated transmissions.
        queued: Messages that are not yet sent or lost.
        connected: Whether the connector has a connection now.
        last_error: Reason of the latest failure of the connection or lost message; empty if there is none.
    """

    sent: int = 0
    lost: int = 0
    retried: int = 0
    queued: int = 0
    connected: bool = False
    last_error: str = ""


@runtime_checkable
class Reporting(Protocol):
    """A connector that reports its counts. Any thread may call `report`. It neither blocks nor raises."""

    def report(self) -> ConnectorReport: ...
