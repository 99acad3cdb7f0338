"""Fixtures of the three stacks. Slow servers are started once for all tests that do not disturb them."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from cascade.testing import OtlpReceiver
from stack import build
from tests.e2e import stacks
from tests.lab.programs import is_missing, program

_COMPOSE = "CASCADE_E2E_COMPOSE"
_compose_is_up = bool(os.environ.get(_COMPOSE))  # read at import: tests run without the caller's variables


@pytest.fixture
def receiver() -> Iterator[OtlpReceiver]:
    with OtlpReceiver() as found:
        yield found


@pytest.fixture(scope="session")
def embedded() -> Iterator[stacks.Embedded]:
    with stacks.embedded() as found:
        yield found


@pytest.fixture(scope="session")
def installed_servers() -> None:
    """Skip the test if a server is missing, or fail if servers are required."""
    for path, name in ((build.collector_path(), "the Collector"), (build.jaeger_path(), "Jaeger")):
        if not path.exists():
            is_missing(f"{name} (`make stack-build`)")
    for name in ("prometheus", "mosquitto"):
        program(name)


@pytest.fixture(scope="session")
def processes(installed_servers: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[stacks.Processes]:
    """Return the shared servers. A test that kills a server must start it again."""
    with stacks.processes(tmp_path_factory.mktemp("stack")) as found:
        yield found


@pytest.fixture
def own_processes(installed_servers: None, tmp_path: Path) -> Iterator[stacks.Processes]:
    """Start separate servers for the test."""
    with stacks.processes(tmp_path) as found:
        yield found


@pytest.fixture(scope="session")
def compose() -> stacks.Servers:
    """Return the servers that `docker compose up -d` has started. The tests do not start or stop them."""
    if not _compose_is_up:
        pytest.skip(f"{_COMPOSE}=1 runs these tests over a stack that `docker compose up -d --wait` has started")
    return stacks.Servers("http://127.0.0.1:16686", "http://127.0.0.1:4318")


@pytest.fixture(params=["embedded", "processes", "compose"])
def stack(request: pytest.FixtureRequest) -> stacks.Stack:
    """Return each of the three stacks in turn."""
    found: stacks.Stack = request.getfixturevalue(request.param)
    return found
