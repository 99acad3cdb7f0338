"""Extras that tests need. Tests are skipped if their extra is not installed (`make test-extras`)."""

from importlib.util import find_spec
from pathlib import Path

import pytest

MODULES = {"otel": "opentelemetry.sdk", "mqtt": "aiomqtt", "cli": "typer"}
"""A module of each extra. The extra is installed if its module is."""

NEEDS = {
    "benchmarks": ("otel", "mqtt"),
    "connectors/console": ("cli",),
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
    "tools/test_cli_command.py": ("cli",),
    "tools/test_cli_run_options.py": ("cli",),
    "tools/test_trace_tree.py": ("cli",),
}
"""Files and folders of tests that cannot be imported without these extras. Single tests have the mark `needs`."""

_TESTS = Path(__file__).parents[1]


def installed(extra: str) -> bool:
    package, _, module = MODULES[extra].partition(".")
    return find_spec(package) is not None and (not module or find_spec(MODULES[extra]) is not None)


def needs(*extras: str) -> pytest.MarkDecorator:
    """Return a mark that skips a test if one of these extras is not installed."""
    absent = [extra for extra in extras if not installed(extra)]
    return pytest.mark.skipif(bool(absent), reason=f"without the extra {', '.join(absent)}")


def not_importable() -> dict[Path, list[str]]:
    """Return the files and folders of tests that cannot be imported here, with their missing extras."""
    lacking = {_TESTS / path: [extra for extra in extras if not installed(extra)] for path, extras in NEEDS.items()}
    return {path: extras for path, extras in lacking.items() if extras}
