"""What every test may need: servers are required in CI, environment variables of the caller do not leak in."""

import os
from collections.abc import Iterator

import pytest

# gRPC reads it when it is imported, and then tells of every connection that a test cuts.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")


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
