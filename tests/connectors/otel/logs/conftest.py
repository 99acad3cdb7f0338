import contextlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord
from opentelemetry.sdk.resources import Resource

from cascade.connectors.otel.export_queue import ExportQueue
from cascade.connectors.otel.logs import RunLogs
from cascade.connectors.otel.options import ExportOptions
from cascade.connectors.otel.routing import Share
from cascade.runtime import task_context
from cascade.runtime.task_context import TaskContext
from cascade.telemetry.identity import place_run
from cascade.testing import OtlpReceiver
from tests.lab.receiver import FaultyReceiver

RUN = "0f8fad5b-d9cb-469f-a165-70867728950e"
TASK = TaskContext(RUN, "t", "work", place_run(RUN), attempt=2, map_index=0)
part = logging.getLogger("tests.app.part")

LogsTo = Callable[..., RunLogs]


@dataclass(frozen=True)
class Line:
    """A received log record."""

    scope: str
    record: LogRecord

    @property
    def body(self) -> str:
        return self.record.body.string_value

    @property
    def ids(self) -> tuple[str, str, int]:
        return self.record.trace_id.hex(), self.record.span_id.hex(), self.record.flags

    @property
    def attributes(self) -> dict[str, Any]:
        pairs = ((pair.key, pair.value) for pair in self.record.attributes)
        return {key: getattr(value, value.WhichOneof("value") or "") for key, value in pairs}


def lines(requests: list[Any]) -> list[Line]:
    """Return all records of some `ExportLogsServiceRequest`s."""
    resources = [resource for request in requests for resource in request.resource_logs]
    scopes = [scope for resource in resources for scope in resource.scope_logs]
    return [Line(scope.scope.name, record) for scope in scopes for record in scope.log_records]


@contextlib.contextmanager
def inside(task: TaskContext = TASK) -> Iterator[None]:
    token = task_context.CURRENT_TASK.set(task)
    try:
        yield
    finally:
        task_context.CURRENT_TASK.reset(token)


@pytest.fixture(scope="module")
def _served() -> Iterator[FaultyReceiver]:
    with FaultyReceiver() as made:
        yield made


@pytest.fixture
def receiver(_served: FaultyReceiver) -> FaultyReceiver:
    _served.fault = None
    _served.clear()
    return _served


@pytest.fixture
def logs_to() -> Iterator[LogsTo]:
    """Return a factory of `RunLogs` for an endpoint, with RUN attached."""
    made: list[RunLogs] = []

    def make(
        endpoint: str, protocol: str = "http/protobuf", share: Share[ExportQueue] = lambda make_queue: make_queue()
    ) -> RunLogs:
        resource = Resource({"service.name": "tests", "ports": (1, 2)})
        options = ExportOptions.from_environment(endpoint=endpoint, protocol=protocol, signal="logs", environ={})
        logs = RunLogs(lambda: resource, options, logging.NOTSET, share)
        made.append(logs)
        logs.attach(RUN)
        return logs

    yield make
    for logs in made:
        logs.detach(RUN)
        logs.queue.close(0)


@pytest.fixture
def app() -> Iterator[logging.Logger]:
    """Return a logger of the user that passes all levels."""
    logger = logging.getLogger("tests.app")
    logger.setLevel(1)
    yield logger
    logger.setLevel(logging.NOTSET)


@pytest.fixture
def restored() -> Iterator[None]:
    """Restore the logging configuration after the test."""
    root, names = logging.root, ("tests.app", part.name)
    handlers, level, known = list(root.handlers), root.level, dict(logging.root.manager.loggerDict)
    disabled = {name: each.disabled for name, each in known.items() if isinstance(each, logging.Logger)}
    part.setLevel(logging.INFO)
    yield
    root.handlers[:] = handlers
    root.propagate = True
    root.setLevel(level)
    for name, was in disabled.items():
        logging.getLogger(name).disabled = was
    for name in names:
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.setLevel(logging.NOTSET)
        logger.propagate = True


@pytest.fixture
def collector_in_environment(receiver: FaultyReceiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.http_endpoint)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")


def bodies(receiver: OtlpReceiver) -> list[str]:
    return sorted(line.body for line in lines(receiver.logs) if line.scope == part.name)
