"""Numbers of messages that the connectors have sent and lost during a run."""

from cascade.connectors.fanout import FanoutConnector
from cascade.connectors.report import ConnectorReport, report_of
from cascade.runtime.publish_queue import PublishQueue
from cascade.runtime.subscribers import TelemetrySubscriber


class Delivery:
    """Compares the reports of the connectors with those at the start of the run. Without a subscriber, there is none."""

    def __init__(self, subscriber: TelemetrySubscriber | None) -> None:
        self._queues = {} if subscriber is None else _queues_by_name(subscriber.queue)
        self._before = self._reports()

    def reports(self) -> dict[str, ConnectorReport]:
        """Return the report of each connector by its name, since the start."""
        return {name: report.since(self._before[name]) for name, report in self._reports().items()}

    def _reports(self) -> dict[str, ConnectorReport]:
        return {name: report_of(queue) for name, queue in self._queues.items()}


def _queues_by_name(queue: PublishQueue) -> dict[str, PublishQueue]:
    """Return the queue of each connector. The second connector of a name has the suffix " 2"."""
    connector = queue.connector
    found: dict[str, PublishQueue] = {}
    for each in connector.queues if isinstance(connector, FanoutConnector) else [queue]:
        kind = type(each.connector).__name__
        name = (kind.removesuffix("Connector") or kind).lower()
        count = sum(known.rpartition(" ")[0] == name or known == name for known in found)
        found[f"{name} {count + 1}" if count else name] = each
    return found
