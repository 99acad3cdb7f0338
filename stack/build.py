"""Build the Collector and Jaeger from their Go modules, where Docker is not at hand.

Their names in the cache tell what they were made of: a new version, or a change of the manifest, is built anew.
"""

import hashlib
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from stack import cache

ROOT = Path(__file__).parent.parent
MANIFEST = ROOT / "collector-config" / "builder.yaml"

_COMPOSE_CONFIG = Path(__file__).parent / "compose_config"

JAEGER = "2.13.0"
_JAEGER_MODULE = "github.com/jaegertracing/jaeger@v1.76.0"
"""Jaeger 2.13.0: the module's own versions go on with the 1, and each release has both numbers."""


class BuildError(Exception):
    """A program could not be built; its text ends with what the Go command said."""


def collector_version() -> str:
    """The Collector's version, as the manifest has it."""
    found = re.search(r"^  version: (\S+)$", MANIFEST.read_text(), re.MULTILINE)
    if found is None:
        raise BuildError(f"{MANIFEST} names no version")
    return found[1]


def collector_path() -> Path:
    """Where the Collector is, or will be."""
    made_of = hashlib.sha256(MANIFEST.read_bytes()).hexdigest()[:8]
    return cache.folder() / f"otelcol-cascade-{collector_version()}-{made_of}"


def jaeger_path() -> Path:
    """Where Jaeger is, or will be."""
    return cache.folder() / f"jaeger-{JAEGER}"


def compose_config_path() -> Path:
    """Where the reader of Compose files is, or will be."""
    sources = sorted(_COMPOSE_CONFIG.glob("*"))
    made_of = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:8]
    return cache.folder() / f"compose-config-{made_of}"


def collector(say: Callable[[str], None] = print) -> Path:
    """Build the Collector with the builder of its own version, from the manifest; some minutes the first time."""
    path = collector_path()
    return _built(path, f"OpenTelemetry Collector {collector_version()}", _compile_collector, say)


def jaeger(say: Callable[[str], None] = print) -> Path:
    """Build Jaeger, with a placeholder for its pages; the query API is whole. Some minutes the first time."""
    return _built(jaeger_path(), f"Jaeger {JAEGER}", _compile_jaeger, say)


def compose_config(say: Callable[[str], None] = print) -> Path:
    """Build what reads Compose files as Docker Compose does; some seconds the first time."""
    return _built(compose_config_path(), "the reader of Compose files", _compile_compose_config, say)


def _built(path: Path, title: str, compile_it: Callable[[Path, Path], None], say: Callable[[str], None]) -> Path:
    if path.exists():
        return path
    with cache.building(path) as scratch:
        if scratch is not None:
            if shutil.which("go") is None:
                raise BuildError(f"{title} is built from source, and Go (https://go.dev) is not installed")
            say(f"Building {title}, once for this machine …")
            start = time.monotonic()
            compile_it(scratch, scratch / path.name)
            say(f"Built {title} in {time.monotonic() - start:.0f} s: {path}")
    return path


def _compile_collector(scratch: Path, program: Path) -> None:
    builder = f"go.opentelemetry.io/collector/cmd/builder@v{collector_version()}"
    _go(["install", builder], scratch, GOBIN=str(scratch))
    sources = scratch / "sources"
    ocb = [str(scratch / "builder"), "--config", str(MANIFEST), "--output-path", str(sources), "--skip-compilation"]
    # Its sources are generated and their modules fetched; the compiler is called by us, without symbols for debuggers.
    _run(ocb, scratch, {})
    _go(["build", "-trimpath", "-ldflags=-s -w", "-o", str(program), "."], sources)


def _compile_jaeger(scratch: Path, program: Path) -> None:
    # `go install` refuses a module with replace directives; as another module's tool they do not apply.
    (scratch / "go.mod").write_text("module cascade.invalid/jaeger\n\ngo 1.25\n")
    package, version = _JAEGER_MODULE.split("@")
    _go(["get", "-tool", f"{package}/cmd/jaeger@{version}"], scratch)
    flags = f"-ldflags=-s -w -X {package}/internal/version.latestVersion=v{JAEGER}"
    _go(["build", "-trimpath", flags, "-o", str(program), f"{package}/cmd/jaeger"], scratch)


def _compile_compose_config(scratch: Path, program: Path) -> None:
    sources = shutil.copytree(_COMPOSE_CONFIG, scratch / "sources")
    _go(["build", "-trimpath", "-o", str(program), "."], sources)


def _go(arguments: list[str], folder: Path, **environment: str) -> None:
    # Behind other work: a build takes all cores for minutes, and the machine may be somebody's.
    _run(["nice", "-n", "19", "go", *arguments], folder, environment)


def _run(command: list[str], folder: Path, environment: Mapping[str, str]) -> None:
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "GOWORK": "off", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        raise BuildError(f"{' '.join(command)} failed:\n{done.stdout[-4000:]}")
