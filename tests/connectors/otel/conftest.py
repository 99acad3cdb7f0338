import itertools
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanContext, TraceFlags
from opentelemetry.util.types import Attributes

from cascade.connectors.otel import environment, grpc
from cascade.connectors.otel.export_queue import ExportQueue
from cascade.connectors.otel.routing import clear_registries
from tests.connectors.otel.tracing import Collector, collectors
from tests.lab.programs import program

MakeSpan = Callable[..., ReadableSpan]


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "GRPC_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.fixture(autouse=True)
def no_warnings_of_tests_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "reported", set())
    # A test that forked in this process while another's channel was open.
    monkeypatch.setattr(grpc.fork_state, "was_forked", False)


@pytest.fixture(autouse=True)
def nothing_left_to_deliver() -> Iterator[None]:
    """Discard undelivered items, so that no later receiver on the same port gets them."""
    yield
    for one in clear_registries():
        if isinstance(one, ExportQueue):
            one.discard("the test is over")


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
