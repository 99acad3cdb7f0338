"""Which tests need which extra of the package; where it is not installed they are skipped (`make test-extras`)."""

from importlib.util import find_spec
from pathlib import Path

import pytest

MODULES = {"otel": "opentelemetry.sdk", "mqtt": "aiomqtt", "cli": "typer"}
"""A module of each extra, by which it is recognised."""

NEEDS = {
    "benchmarks": ("otel", "mqtt"),
    "connectors/mqtt": ("mqtt",),
    "connectors/mqtt/test_with_otlp.py": ("otel",),
    "connectors/mqtt/test_broken_logging.py": ("otel",),
    "connectors/otel": ("otel",),
    "e2e": ("otel", "mqtt"),
    "stack/test_picture.py": ("otel",),
    "test_docs.py": ("otel", "mqtt", "cli"),
    "test_documented_facts.py": ("otel", "mqtt"),
    "lab/test_receiver.py": ("otel",),
    "tools/test_cli.py": ("cli",),
    "tools/test_trace_tree.py": ("cli",),
}
"""Files and folders of tests that cannot be imported without an extra; single tests are marked with `needs`."""

_TESTS = Path(__file__).parents[1]


def installed(extra: str) -> bool:
    package, _, module = MODULES[extra].partition(".")
    return find_spec(package) is not None and (not module or find_spec(MODULES[extra]) is not None)


def needs(*extras: str) -> pytest.MarkDecorator:
    """Skip a test where one of these extras is not installed."""
    absent = [extra for extra in extras if not installed(extra)]
    return pytest.mark.skipif(bool(absent), reason=f"without the extra {', '.join(absent)}")


def not_importable() -> dict[Path, list[str]]:
    """Files and folders of tests that cannot be imported here, with the extras that they lack."""
    lacking = {_TESTS / path: [extra for extra in extras if not installed(extra)] for path, extras in NEEDS.items()}
    return {path: extras for path, extras in lacking.items() if extras}
