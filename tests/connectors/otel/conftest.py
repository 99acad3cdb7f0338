import itertools
import subprocess
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanContext, TraceFlags
from opentelemetry.util.types import Attributes

from cascade.connectors.otel import environment, grpc
from cascade.connectors.otel.export_queue import ExportQueue
from tests.connectors.otel.tracing import Collector, collectors
from tests.lab.programs import program

MakeSpan = Callable[..., ReadableSpan]


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "GRPC_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.fixture(autouse=True)
def no_earlier_warnings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "reported", set())
    # An earlier test may have forked this process while a channel was open.
    monkeypatch.setattr(grpc.fork_state, "was_forked", False)


@pytest.fixture(scope="session", autouse=True)
def export_queues() -> Iterator["weakref.WeakSet[ExportQueue]"]:
    """Return the queues of all tests. The global provider keeps the queue of an earlier test."""
    queues: weakref.WeakSet[ExportQueue] = weakref.WeakSet()
    initialize = ExportQueue.__init__

    def initialize_and_keep(queue: ExportQueue, *arguments: Any, **options: Any) -> None:
        initialize(queue, *arguments, **options)
        queues.add(queue)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ExportQueue, "__init__", initialize_and_keep)
        yield queues


@pytest.fixture(autouse=True)
def no_undelivered_items(export_queues: "weakref.WeakSet[ExportQueue]") -> Iterator[None]:
    """Discard undelivered items, so that no later receiver on the same port gets them."""
    yield
    for queue in list(export_queues):
        queue.discard("the test is over")


@pytest.fixture(scope="session")
def make_span() -> MakeSpan:
    numbers = itertools.count(1)
    resource = Resource({"service.name": "tests"})

    def make(name: str = "span", attributes: Attributes = None) -> ReadableSpan:
        number = next(numbers)
        context = SpanContext(number, number, is_remote=False, trace_flags=TraceFlags(1))
        return ReadableSpan(name, context, resource=resource, attributes=attributes, start_time=1, end_time=2)

    return make


@pytest.fixture(scope="module", params=["http/protobuf", "grpc"])
def collector(request: pytest.FixtureRequest) -> Iterator[Collector]:
    yield from collectors(request.param)


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    openssl = program("openssl")
    pem = tmp_path_factory.mktemp("tls") / "localhost.pem"
    command = "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -addext subjectAltName=DNS:localhost"
    files = ["-keyout", str(pem), "-out", str(pem.with_suffix(".crt"))]
    subprocess.run([openssl, *command.split(), *files], check=True, capture_output=True)
    pem.write_text(pem.read_text() + pem.with_suffix(".crt").read_text())
    return pem
