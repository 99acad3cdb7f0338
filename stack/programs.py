"""The programs of the tests and the stack, their Debian packages, and the tests that need them."""

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from stack import cache

ROOT = Path(__file__).parent.parent

REQUIRED = "CASCADE_REQUIRE_SERVERS"
"""If this variable is set, a missing program is a failure instead of a skipped test."""

GO = "1.26.6"
"""The version of Go that is installed if the machine has none that is new enough."""

ROOT_PATH = "/usr/sbin:/usr/local/sbin:/opt/homebrew/sbin"
"""Folders that only root has on its PATH. Debian installs some servers there."""


@dataclass(frozen=True, slots=True)
class Package:
    """A Debian package.

    Attributes:
        name: The name for apt-get.
        programs: The required programs of the package.
        tests: Files and folders with tests that are skipped without these programs.
    """

    name: str
    programs: tuple[str, ...]
    tests: tuple[str, ...]


PACKAGES = (
    Package(
        "mosquitto",
        ("mosquitto", "mosquitto_passwd"),
        ("tests/benchmarks", "tests/connectors/mqtt", "tests/e2e"),
    ),
    Package(
        "mosquitto-clients",
        ("mosquitto_pub", "mosquitto_sub"),
        ("tests/connectors/mqtt/test_acl.py", "tests/connectors/mqtt/test_documentation.py"),
    ),
    Package(
        "openssl",
        ("openssl",),
        ("tests/connectors/mqtt/test_tls.py", "tests/connectors/otel/test_transport.py", "tests/e2e/test_tls.py"),
    ),
    Package("jq", ("jq",), ("tests/connectors/mqtt/test_documentation.py",)),
    Package("prometheus", ("prometheus", "promtool"), ("tests/e2e", "tests/stack/test_configuration.py")),
    Package("graphviz", ("dot",), ("tests/tools/test_visualize.py",)),
    Package("docker-compose", ("docker-compose",), ("tests/stack/test_compose.py",)),
)

NEEDS_GO = (
    "tests/connectors/mqtt/test_brokers.py",
    "tests/e2e",
    "tests/stack/test_compose.py",
    "tests/stack/test_configuration.py",
    "tests/stack/test_workflows.py",
)
"""Tests of the Collector, Jaeger, Mochi, the reader of Compose files and actionlint, which are built with Go."""


def find(name: str) -> str | None:
    """Return the path of an installed program, or None."""
    return shutil.which(name) or shutil.which(name, path=ROOT_PATH)


def missing() -> list[Package]:
    """Return the packages with a missing program."""
    return [package for package in PACKAGES if not all(map(find, package.programs))]


def go() -> str | None:
    """Return the path of a Go that can build the stack: that of the machine, else the one that `make test` installed."""
    return next((path for path in (shutil.which("go"), str(own_go())) if path and _builds(path)), None)


def own_go() -> Path:
    """Return the path of the Go that `make test` installs."""
    return cache.folder().parent / f"go-{GO}" / "go" / "bin" / "go"


def _builds(go: str) -> bool:
    """Whether this Go is new enough for the modules. If `GOTOOLCHAIN` allows it, Go downloads a newer version."""
    module = ROOT / "stack" / "compose_config"
    try:
        # Go 1.21 and later fail for a module that needs a newer version. Earlier versions always fail.
        done = subprocess.run(
            [go, "list", "-m", "go"], cwd=module, env={**os.environ, "GOWORK": "off"}, capture_output=True, check=False
        )
    except OSError:
        return False
    return done.returncode == 0
