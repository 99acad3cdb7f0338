"""Where snapshots go: to a collector, to standard output, or to both."""

import sys
from collections.abc import Callable
from typing import Protocol

from opentelemetry.sdk.resources import Resource

from cascade._forks import no_fork
from cascade._loggers import get_logger
from cascade.connectors.otel._transport import Reply, Transport, opened, takes_no_such_signal
from cascade.connectors.otel.metrics._ledger import Snapshot

logger = get_logger("cascade.connectors.otel")


class Destination(Protocol):
    """Used by the exporting thread alone, which makes it and closes it."""

    def send(self, snapshot: Snapshot, time_left: Callable[[], float]) -> Reply | None:
        """Make one attempt; None from a peer that will never take metrics.

        `time_left`, in seconds, is asked when the request goes out: what we do before is not the peer's fault.
        """
        ...

    def close(self) -> None: ...


class Collector:
    """Sends OTLP."""

    def __init__(self, resource: Callable[[], Resource], open_transport: Callable[[], Transport]) -> None:
        self._resource = resource
        self._open_transport = open_transport
        self._transport: Transport | None = None

    def send(self, snapshot: Snapshot, time_left: Callable[[], float]) -> Reply | None:
        body = _encoded(snapshot, self._resource())
        self._transport = self._transport or opened(self._open_transport)
        reply = self._transport.send(body, time_left())
        if reply.outcome == "refused" and takes_no_such_signal(reply.reason):
            logger.debug("OtelConnector: no metrics are sent, the collector does not take them: %s", reply.reason)
            return None
        return reply

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()


class Console:
    """Prints JSON, and passes on to the next destination if there is one."""

    def __init__(self, resource: Callable[[], Resource], following: Destination | None) -> None:
        self._resource = resource
        self._next = following

    def send(self, snapshot: Snapshot, time_left: Callable[[], float]) -> Reply | None:
        self._print(snapshot)
        reply = self._next.send(snapshot, time_left) if self._next else None
        if reply is None and self._next:
            self._next.close()
            self._next = None
        return reply or Reply("accepted")

    def close(self) -> None:
        if self._next:
            self._next.close()

    def _print(self, snapshot: Snapshot) -> None:
        with no_fork:
            from opentelemetry.sdk.metrics.export import ConsoleMetricExporter

            from cascade.connectors.otel.metrics._points import metrics_data

        try:
            ConsoleMetricExporter(out=sys.stdout).export(metrics_data(snapshot, self._resource()))
        except Exception:
            logger.debug("OtelConnector: metrics cannot be printed", exc_info=True)


def _encoded(snapshot: Snapshot, resource: Resource) -> bytes:
    with no_fork:
        from opentelemetry.exporter.otlp.proto.common.metrics_encoder import encode_metrics

        from cascade.connectors.otel.metrics._points import metrics_data

    return encode_metrics(metrics_data(snapshot, resource)).SerializeToString()
