"""`ConnectorReport`: counts of a connector's messages and the state of its connection."""

from dataclasses import dataclass, replace
from typing import Protocol, Self, runtime_checkable

from cascade._internal_errors import raise_in_tests
from cascade.runtime.guard import FAULTS
from cascade.runtime.publish_queue import PublishQueue
from cascade.telemetry.sanitize import error_text


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

    def since(self, earlier: Self) -> Self:
        """Return the report with the numbers of sent, lost and retried messages since an earlier report."""
        return replace(
            self,
            sent=self.sent - earlier.sent,
            lost=self.lost - earlier.lost,
            retried=self.retried - earlier.retried,
        )


@runtime_checkable
class Reporting(Protocol):
    """A connector that reports its counts. Any thread may call `report`. It neither blocks nor raises."""

    def report(self) -> ConnectorReport: ...


def report_of(queue: PublishQueue) -> ConnectorReport:
    """Return the report of a connector and its publish queue.

    For a connector without a report, its published messages count as sent.
    """
    connector = queue.connector
    if isinstance(connector, Reporting):
        try:
            own = connector.report()
        except FAULTS as error:
            raise_in_tests(error)
            return ConnectorReport(queue.published, queue.lost, queued=queue.queued, last_error=error_text(error))
        if isinstance(own, ConnectorReport):  # another method may have the same name
            return replace(
                own,
                lost=own.lost + queue.lost,
                queued=own.queued + queue.queued,
                last_error=own.last_error or queue.last_error,
            )
    is_open = not queue.is_closed
    return ConnectorReport(
        queue.published, queue.lost, queued=queue.queued, connected=is_open, last_error=queue.last_error
    )
