"""Fixtures of all tests. Environment variables of the caller and the speed of the machine have no effect."""

import logging
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.lab import extras
from tests.lab.blocking import blocking_calls_raise
from tests.lab.internal_errors import InternalErrors
from tests.lab.progress import Progress
from tests.lab.time_limits import raise_time_limits

_SUPPRESSED = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
"""Health checks that depend on the speed of the machine or on random examples."""
settings.register_profile("any machine", deadline=None, suppress_health_check=_SUPPRESSED)
settings.load_profile("any machine")

# In debug mode, asyncio logs a warning for each callback that takes 0.1 s, and tests count warnings.
logging.getLogger("asyncio").addFilter(lambda record: not str(record.msg).startswith("Executing "))

# A background job of a shell ignores SIGINT. Programs that tests start and interrupt would inherit this.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# gRPC reads this variable at its import. Without it, gRPC logs each connection that a test closes.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):  # a worker of pytest-xdist has no terminal
        config.pluginmanager.register(Progress())


_NOT_IMPORTABLE = extras.not_importable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Refuse names with addresses: they differ between the workers of pytest-xdist, which must collect the same tests."""
    for item in items:
        if " at 0x" in item.nodeid:
            raise pytest.UsageError(f"the name of a test contains an address; give it another with ids=: {item.nodeid}")


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    return True if collection_path in _NOT_IMPORTABLE else None


def pytest_report_header(config: pytest.Config) -> list[str]:
    return [
        f"skipped without the extra {', '.join(lacking)}: {path.relative_to(config.rootpath)}"
        for path, lacking in _NOT_IMPORTABLE.items()
    ]


@pytest.fixture(autouse=True)
def limits() -> Iterator[pytest.MonkeyPatch]:
    """Raise the time limits of the product, so that no live server counts as unreachable on a loaded machine.

    A test whose server stops responding calls `limits.undo()` at that time, or sets a limit by `limits.setattr`.
    """
    with pytest.MonkeyPatch.context() as patch:
        raise_time_limits(patch)
        yield patch


@pytest.fixture
def real_limits(limits: pytest.MonkeyPatch) -> None:
    """Use the time limits of the product, for a test whose server never responds."""
    limits.undo()


# `limits` is set up first, so that `monkeypatch` is undone before it.
@pytest.fixture(autouse=True)
def _clean_environment(limits: pytest.MonkeyPatch, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if (name.startswith(("CASCADE_", "OTEL_")) and name != "CASCADE_REQUIRE_SERVERS") or name == "TRACEPARENT":
            monkeypatch.delenv(name)
    # Output for a terminal does not depend on the terminal of the test run.
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.delenv("FORCE_COLOR", raising=False)


@pytest.fixture(autouse=True)
def _fresh_workflow_context() -> Iterator[None]:
    """Hide the Params of the modules of tests from the test, and remove those that it has registered."""
    from cascade.context import get_current_context

    specs = get_current_context().input_specs
    before = dict(specs)
    specs.clear()
    yield
    specs.clear()
    specs.update(before)


@pytest.fixture(autouse=True)
def _fresh_export_state() -> Iterator[None]:
    """Remove the queues and totals that the connectors of the test have shared. Their receiver is closed."""
    yield
    sharing = sys.modules.get("cascade.connectors.otel.routing")
    if sharing is not None:
        sharing.clear_registries()


@pytest.fixture(autouse=True)
def _internal_errors_fail(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fail the test if the product suppresses an error of its own, unless the test injects the error."""
    if request.node.get_closest_marker("injects_errors"):
        yield
        return
    errors = InternalErrors(monkeypatch)
    yield
    if errors.found:
        pytest.fail("the product has suppressed an error of its own:\n" + "\n".join(errors.found), pytrace=False)


@pytest.fixture(scope="session", autouse=True)
def _blocking_calls() -> Iterator[list[str]]:
    with blocking_calls_raise() as found:
        yield found


@pytest.fixture(autouse=True)
def _no_blocking_call_in_an_event_loop(_blocking_calls: list[str]) -> Iterator[None]:
    """Fail the test if the product blocks an event loop, even if the product suppresses the BlockingError."""
    _blocking_calls.clear()
    yield
    if _blocking_calls:
        pytest.fail("the product has blocked an event loop:\n" + "\n".join(_blocking_calls), pytrace=False)


@pytest.fixture(autouse=True)
def _messages_fit_the_schema(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Validate the first 200 messages of the test against the schema without unknown keys."""
    from cascade.runtime.publish_queue import Message, PublishQueue
    from tests.lab.schemas import closed_validator

    validator, problems, seen, put = closed_validator(), list[str](), [0], PublishQueue.put

    def checked(queue: PublishQueue, message: Message) -> None:
        seen[0] += 1
        if "body" in message.payload and seen[0] <= 200:
            problems.extend(f"{e.json_path}: {e.message}" for e in validator.iter_errors(message.payload))
        put(queue, message)

    monkeypatch.setattr(PublishQueue, "put", checked)
    yield
    assert problems == []
