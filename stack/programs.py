"""The programs that the tests and the stack use: where each comes from, and which tests are skipped without it."""

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from stack import cache

ROOT = Path(__file__).parent.parent

REQUIRED = "CASCADE_REQUIRE_SERVERS"
"""With this variable a program that is missing is a failure, not a skipped test."""

GO = "1.26.6"
"""The version of Go that is installed where the machine has none that is new enough."""

WHERE_ROOT_LOOKS = "/usr/sbin:/usr/local/sbin:/opt/homebrew/sbin"


@dataclass(frozen=True, slots=True)
class Package:
    """A package of Debian.

    Attributes:
        name: Its name for apt-get.
        programs: Programs of it that are used.
        tests: Files and folders whose tests are skipped, in part or as a whole, where these programs are missing.
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
    """The path of an installed program; Debian has some in folders that only root searches."""
    return shutil.which(name) or shutil.which(name, path=WHERE_ROOT_LOOKS)


def missing() -> list[Package]:
    """The packages of which a program is not installed."""
    return [package for package in PACKAGES if not all(map(find, package.programs))]


def go() -> str | None:
    """The path of a Go that builds the stack: the machine's, or else the one that `make test` installed."""
    return next((path for path in (shutil.which("go"), str(own_go())) if path and _builds(path)), None)


def own_go() -> Path:
    """Where `make test` installs Go, which needs its folder beside it."""
    return cache.folder().parent / f"go-{GO}" / "go" / "bin" / "go"


def _builds(go: str) -> bool:
    """Whether this Go is new enough for the modules. Where `GOTOOLCHAIN` allows it, Go fetches a newer one itself."""
    module = ROOT / "stack" / "compose_config"
    try:
        # Go 1.21 and later print their version, and fail for a module that needs a newer one; earlier ones always fail.
        done = subprocess.run(
            [go, "list", "-m", "go"], cwd=module, env={**os.environ, "GOWORK": "off"}, capture_output=True, check=False
        )
    except OSError:
        return False
    return done.returncode == 0
