"""Runs that export to a real receiver, and their traces."""

import asyncio
import logging
from collections.abc import Iterator
from typing import Any

import pytest

import cascade as cs
from cascade.connectors.otel import OtelConnector
from cascade.connectors.otel.options import ExportOptions
from cascade.connectors.otel.provider import CascadeTracerProvider, cascade_tracer
from cascade.testing import Spans
from tests.lab.receiver import FaultyReceiver


class Collector:
    """A receiver with one of its protocols."""

    def __init__(self, receiver: FaultyReceiver, protocol: str) -> None:
        self.receiver = receiver
        self.protocol = protocol

    @property
    def endpoint(self) -> str:
        return self.receiver.grpc_endpoint if self.protocol == "grpc" else self.receiver.http_endpoint

    def connector(self, **options: Any) -> OtelConnector:
        return OtelConnector(self.endpoint, protocol=self.protocol, **options)

    def trace_of(self, target: Any, *, connector: Any = None, fails: Any = (), **options: Any) -> Spans:
        """Run to the end, and return the received spans. The flush has delivered all of them."""
        self.receiver.clear()
        moved_by = connector or self.connector()
        if fails:
            with pytest.raises(fails):
                cs.run(target, connector=moved_by, log_level="ERROR", **options)
        else:
            cs.run(target, connector=moved_by, log_level="ERROR", **options)
        spans = self.receiver.spans
        assert spans.orphans() == []
        return spans


def provider_for(endpoint: str, protocol: str | None = None) -> CascadeTracerProvider:
    """Return the provider that connectors of this destination share. It is the global one if there is no other."""
    tracer = cascade_tracer(ExportOptions.from_environment(endpoint=endpoint, protocol=protocol))
    assert tracer is not None
    assert tracer.own is not None
    return tracer.own


def replay(connector: OtelConnector, payloads: list[dict[str, Any]]) -> None:
    """Publish the messages of a run, as a bridge does. The flush delivers their spans."""

    async def publish() -> None:
        await connector.connect()
        for payload in payloads:
            await connector.publish("topic", payload)
        await connector.disconnect()

    asyncio.run(publish())


def collectors(protocol: str) -> Iterator[Collector]:
    with FaultyReceiver() as receiver:
        yield Collector(receiver, protocol)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the warnings of Cascade. The debug mode of asyncio logs warnings too, on a slow machine."""
    ours = (record for record in caplog.records if record.name.startswith("cascade"))
    return [record.getMessage() for record in ours if record.levelno >= logging.WARNING]
