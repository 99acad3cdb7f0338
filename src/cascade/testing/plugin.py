"""Fixtures for pytest: `pytest_plugins = ["cascade.testing.plugin"]` in the `conftest.py` of the project."""

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Protocol

import pytest

from cascade.context import scoped
from cascade.spec.resource import ResourceDefinition
from cascade.testing.record import FixedClock, RunRecord, record_run

if TYPE_CHECKING:
    from cascade.testing.receiver import OtlpReceiver


class CascadeRun(Protocol):
    """Type of the fixture `cascade_run`. The arguments are those of `record_run`."""

    def __call__(
        self,
        target: Any,
        params: Mapping[str, Any] | None = None,
        *,
        system_resources: Mapping[str, float] | None = None,
        resources: Iterable[ResourceDefinition] = (),
        clock: FixedClock | None = None,
        spans: bool = True,
    ) -> RunRecord:
        """Run a workflow without a server and return its record. An error of the run is recorded, not raised."""
        ...


@pytest.fixture
def cascade_run() -> Iterator[CascadeRun]:
    """Run workflows and return their records. The Params that the test declares do not exist in the next test."""
    with scoped():
        yield record_run


@pytest.fixture
def otlp_receiver(monkeypatch: pytest.MonkeyPatch) -> "Iterator[OtlpReceiver]":
    """Start an OTLP receiver to which `OtelConnector()` and exporters of OpenTelemetry send by default."""
    from cascade.testing.receiver import OtlpReceiver

    with OtlpReceiver() as receiver:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.http_endpoint)
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
        yield receiver
