"""Fixtures for pytest. pytest loads this module in each project with Cascade, so it imports the rest on first use."""

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Protocol, Unpack

import pytest

if TYPE_CHECKING:
    from cascade.spec.resource import ResourceDefinition
    from cascade.spec.targets import EngineOptions
    from cascade.testing.receiver import OtlpReceiver
    from cascade.testing.record import FixedClock, RunRecord


class CascadeRun(Protocol):
    """Type of the fixture `cascade_run`. The arguments are those of `record_run`."""

    def __call__(
        self,
        target: Any,
        params: Mapping[str, Any] | None = None,
        *,
        system_resources: Mapping[str, float] | None = None,
        resources: "Iterable[ResourceDefinition]" = (),
        clock: "FixedClock | None" = None,
        spans: bool | None = None,
        **options: "Unpack[EngineOptions]",
    ) -> "RunRecord":
        """Run a workflow without a server and return its record. An error of the run is recorded, not raised."""
        ...


class CascadeRunAsync(Protocol):
    """Type of the fixture `cascade_run_async`. The arguments are those of `record_run_async`."""

    async def __call__(
        self,
        target: Any,
        params: Mapping[str, Any] | None = None,
        *,
        system_resources: Mapping[str, float] | None = None,
        resources: "Iterable[ResourceDefinition]" = (),
        clock: "FixedClock | None" = None,
        spans: bool | None = None,
        **options: "Unpack[EngineOptions]",
    ) -> "RunRecord":
        """Run a workflow in the event loop of the test and return its record."""
        ...


@pytest.fixture
def cascade_run() -> Iterator[CascadeRun]:
    """Run workflows and return their records. The Params that the test declares do not exist in the next test."""
    from cascade.context import scoped
    from cascade.testing.record import record_run

    with scoped():
        yield record_run


@pytest.fixture
def cascade_run_async() -> Iterator[CascadeRunAsync]:
    """Run workflows in async tests. The Params that the test declares do not exist in the next test."""
    from cascade.context import scoped
    from cascade.testing.record import record_run_async

    with scoped():
        yield record_run_async


@pytest.fixture
def otlp_receiver(monkeypatch: pytest.MonkeyPatch) -> "Iterator[OtlpReceiver]":
    """Start an OTLP receiver to which `OtelConnector()` and exporters of OpenTelemetry send by default."""
    from cascade.testing.receiver import OtlpReceiver

    with OtlpReceiver() as receiver:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.http_endpoint)
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
        yield receiver
