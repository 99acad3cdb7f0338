"""The three stacks. What runs slowly is started once for all tests that do not disturb it."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from stack import build
from tests.e2e import stacks
from tests.lab.programs import is_missing, program

_COMPOSE = "CASCADE_E2E_COMPOSE"
_compose_is_up = bool(os.environ.get(_COMPOSE))  # read now: tests do not see the caller's variables


@pytest.fixture(scope="session")
def embedded() -> Iterator[stacks.Embedded]:
    with stacks.embedded() as found:
        yield found


@pytest.fixture(scope="session")
def servers_are_there() -> None:
    """Else the test is skipped, or fails where they must be."""
    for path, name in ((build.collector_path(), "the Collector"), (build.jaeger_path(), "Jaeger")):
        if not path.exists():
            is_missing(f"{name} (`make stack-build`)")
    for name in ("prometheus", "mosquitto"):
        program(name)


@pytest.fixture(scope="session")
def processes(servers_are_there: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[stacks.Processes]:
    """Shared: whoever kills a server starts it again."""
    with stacks.processes(tmp_path_factory.mktemp("stack")) as found:
        yield found


@pytest.fixture
def own_processes(servers_are_there: None, tmp_path: Path) -> Iterator[stacks.Processes]:
    """A stack of the test's own."""
    with stacks.processes(tmp_path) as found:
        yield found


@pytest.fixture(scope="session")
def compose() -> stacks.Servers:
    """What `docker compose up -d` has started; it is not ours to start, nor to stop."""
    if not _compose_is_up:
        pytest.skip(f"{_COMPOSE}=1 runs these tests over a stack that `docker compose up -d --wait` has started")
    return stacks.Servers("http://127.0.0.1:16686", "http://127.0.0.1:4318")


@pytest.fixture(params=["embedded", "processes", "compose"])
def stack(request: pytest.FixtureRequest) -> stacks.Stack:
    """Each of the three in turn."""
    found: stacks.Stack = request.getfixturevalue(request.param)
    return found
