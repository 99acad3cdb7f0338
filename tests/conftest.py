"""What every test may need: servers are required in CI, environment variables of the caller do not leak in."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import extras
from tests.progress import Progress

# gRPC reads it when it is imported, and then tells of every connection that a test cuts.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Progress())


_NOT_IMPORTABLE = extras.not_importable()


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    return True if collection_path in _NOT_IMPORTABLE else None


def pytest_report_header(config: pytest.Config) -> list[str]:
    return [
        f"skipped without the extra {', '.join(lacking)}: {path.relative_to(config.rootpath)}"
        for path, lacking in _NOT_IMPORTABLE.items()
    ]


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if (name.startswith(("CASCADE_", "OTEL_")) and name != "CASCADE_REQUIRE_SERVERS") or name == "TRACEPARENT":
            monkeypatch.delenv(name)


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
def _messages_fit_the_schema(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each message of each test is valid; of a run with very many, the first ones."""
    from jsonschema import Draft202012Validator

    from cascade.runtime.lane import Lane, Message
    from cascade.telemetry.schema import load

    validator, problems, seen, put = Draft202012Validator(load("message")), list[str](), [0], Lane.put

    def checked(lane: Lane, message: Message) -> None:
        seen[0] += 1
        if "body" in message.payload and seen[0] <= 200:
            problems.extend(f"{e.json_path}: {e.message}" for e in validator.iter_errors(message.payload))
        put(lane, message)

    monkeypatch.setattr(Lane, "put", checked)
    yield
    assert problems == []
