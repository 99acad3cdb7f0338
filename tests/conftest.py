"""Fixtures of all tests: no variable of the caller leaks in, and the speed of the machine decides nothing."""

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

_BY_CHANCE = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
"""Health checks that depend on the speed of the machine, or on the examples that chance draws."""
settings.register_profile("any machine", deadline=None, suppress_health_check=_BY_CHANCE)
settings.load_profile("any machine")

# asyncio's debug mode warns of a callback that took 0.1 s, and tests count warnings.
logging.getLogger("asyncio").addFilter(lambda record: not str(record.msg).startswith("Executing "))

# A shell ignores SIGINT for the jobs in its background, and so would the programs that tests start and interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# gRPC reads this variable at its import; without it gRPC logs each connection that a test cuts.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):  # a worker of pytest-xdist: it has no terminal
        config.pluginmanager.register(Progress())


_NOT_IMPORTABLE = extras.not_importable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Refuse names with addresses: they differ between the workers of pytest-xdist, which must collect the same."""
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
    """The product's limits of time are out of reach, so that a live peer stays alive on a loaded machine.

    A test with a peer that falls silent calls `limits.undo()` when it does, or sets a limit by `limits.setattr`.
    """
    with pytest.MonkeyPatch.context() as patch:
        raise_time_limits(patch)
        yield patch


@pytest.fixture
def real_limits(limits: pytest.MonkeyPatch) -> None:
    """The product's own limits of time, for a test whose peer never answers."""
    limits.undo()


# `limits` first: what a test sets by `monkeypatch` must be restored before it.
@pytest.fixture(autouse=True)
def _clean_environment(limits: pytest.MonkeyPatch, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if (name.startswith(("CASCADE_", "OTEL_")) and name != "CASCADE_REQUIRE_SERVERS") or name == "TRACEPARENT":
            monkeypatch.delenv(name)
    # What is drawn for a terminal does not depend on the terminal of the test run.
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.delenv("FORCE_COLOR", raising=False)


@pytest.fixture(autouse=True)
def _fresh_workflow_context() -> Iterator[None]:
    """Params registered by one test are not the next one's."""
    from cascade.context import get_current_context

    specs = get_current_context().input_specs
    before = dict(specs)
    yield
    specs.clear()
    specs.update(before)


@pytest.fixture(autouse=True)
def _fresh_export_state() -> Iterator[None]:
    """The connectors of one test share no queue and no totals with those of another, whose receiver has gone."""
    yield
    sharing = sys.modules.get("cascade.connectors.otel.routing")
    if sharing is not None:
        sharing.clear_registries()


@pytest.fixture(autouse=True)
def _internal_errors_fail(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An error of the product that a guard suppresses fails the test, unless the test injects it."""
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
    """A blocking call of the product in an event loop fails the test, even if its error is suppressed."""
    _blocking_calls.clear()
    yield
    if _blocking_calls:
        pytest.fail("the product has blocked an event loop:\n" + "\n".join(_blocking_calls), pytrace=False)


@pytest.fixture(autouse=True)
def _messages_fit_the_schema(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each message of each test has only keys of the schema, and valid ones; of a run with very many, the first ones."""
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
