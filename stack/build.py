"""Builds the Collector, Jaeger and three smaller programs from their Go modules.

The file names in the cache contain the version and a digest of the sources. A change of either causes a new build.
"""

import hashlib
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from stack import cache, programs, progress

ROOT = programs.ROOT

MANIFEST = ROOT / "collector-config" / "builder.yaml"

_COMPOSE_CONFIG = Path(__file__).parent / "compose_config"
_MOCHI = Path(__file__).parent / "mochi"

JAEGER = "2.13.0"
_JAEGER_MODULE = "github.com/jaegertracing/jaeger@v1.76.0"
"""The module version of Jaeger 2.13.0. Each release of Jaeger 2 has a version 1 for its Go module."""

ACTIONLINT = "1.7.12"
_ACTIONLINT_PACKAGE = "github.com/rhysd/actionlint/cmd/actionlint"


class BuildError(Exception):
    """A program could not be built; the text ends with the output of the Go command."""


def collector_version() -> str:
    """Return the Collector's version in the manifest."""
    found = re.search(r"^  version: (\S+)$", MANIFEST.read_text(), re.MULTILINE)
    if found is None:
        raise BuildError(f"{MANIFEST} has no version")
    return found[1]


def collector_path() -> Path:
    """Return the path of the Collector, which need not exist yet."""
    digest = hashlib.sha256(MANIFEST.read_bytes()).hexdigest()[:8]
    return cache.folder() / f"otelcol-cascade-{collector_version()}-{digest}"


def jaeger_path() -> Path:
    """Return the path of Jaeger, which need not exist yet."""
    return cache.folder() / f"jaeger-{JAEGER}"


def compose_config_path() -> Path:
    """Return the path of the reader of Compose files, which need not exist yet."""
    return cache.path_of_sources("compose-config", _COMPOSE_CONFIG)


def mochi_path() -> Path:
    """Return the path of the MQTT broker Mochi, which need not exist yet."""
    return cache.path_of_sources("mochi", _MOCHI)


def actionlint_path() -> Path:
    """Return the path of actionlint, which need not exist yet."""
    return cache.folder() / f"actionlint-{ACTIONLINT}"


def collector(log: Callable[[str], None] = progress.log) -> Path:
    """Build the Collector from the manifest, with the builder of the same version. The first build takes minutes."""
    path = collector_path()
    return _built(path, f"OpenTelemetry Collector {collector_version()}", _compile_collector, log)


def jaeger(log: Callable[[str], None] = progress.log) -> Path:
    """Build Jaeger with its query API and without its pages. The first build takes minutes."""
    return _built(jaeger_path(), f"Jaeger {JAEGER}", _compile_jaeger, log)


def compose_config(log: Callable[[str], None] = progress.log) -> Path:
    """Build the reader of Compose files, which uses Docker Compose's library. The first build takes seconds."""
    compile_it = partial(_compile_sources, _COMPOSE_CONFIG)
    return _built(compose_config_path(), "the reader of Compose files", compile_it, log)


def mochi(log: Callable[[str], None] = progress.log) -> Path:
    """Build the MQTT broker Mochi, which the tests use in addition to Mosquitto. The first build takes seconds."""
    return _built(mochi_path(), "the MQTT broker Mochi", partial(_compile_sources, _MOCHI), log)


def actionlint(log: Callable[[str], None] = progress.log) -> Path:
    """Build actionlint, which checks GitHub workflows. The first build takes seconds."""
    return _built(actionlint_path(), f"actionlint {ACTIONLINT}", _compile_actionlint, log)


@dataclass(frozen=True, slots=True)
class _Commands:
    """Runs commands of a build and shows their progress.

    Attributes:
        title: The name of the program.
        go: The path of Go.
        folder: The default working directory of the commands.
        log: Receives the lines of progress.
    """

    title: str
    go: str
    folder: Path
    log: Callable[[str], None]

    def run_go(self, *arguments: str, folder: Path | None = None, **environment: str) -> None:
        self.run([self.go, *arguments], folder, **environment)

    def run(self, command: Sequence[str], folder: Path | None = None, **environment: str) -> None:
        # The Collector's builder finds Go on the PATH.
        path = f"{Path(self.go).parent}{os.pathsep}{os.environ['PATH']}"
        variables = {"GOWORK": "off", "PATH": path, **_folders(self.go), **environment}
        try:
            progress.run(self.title, command, log=self.log, cwd=folder or self.folder, environment=variables)
        except progress.CommandError as error:
            raise BuildError(str(error)) from None


def everything(log: Callable[[str], None] = progress.log) -> list[Path]:
    """Build the missing programs, then remove the modules and caches of the Go that `make test` installed."""
    paths = [collector(log), jaeger(log), compose_config(log), mochi(log), actionlint(log)]
    if _scratch().exists():
        # In a process with progress, because removing so many files takes minutes on a slow disk.
        remove = "import shutil, sys; shutil.rmtree(sys.argv[1], ignore_errors=True)"
        progress.run("Removing Go's modules and caches", [sys.executable, "-c", remove, str(_scratch())], log=log)
    return paths


def _folders(go: str) -> dict[str, str]:
    """Return the folders of the Go that `make test` installed, as variables. `everything` removes them after the builds."""
    if go != str(programs.own_go()):
        return {}
    flags = f"{os.environ.get('GOFLAGS', '')} -modcacherw".strip()
    return {"GOPATH": str(_scratch() / "path"), "GOCACHE": str(_scratch() / "cache"), "GOFLAGS": flags}


def _scratch() -> Path:
    return cache.folder().parent / "go-scratch"


def _built(path: Path, title: str, compile_it: Callable[[_Commands, Path], None], log: Callable[[str], None]) -> Path:
    if path.exists():
        return path
    with cache.building(path) as scratch:
        if scratch is not None:
            go = programs.go()
            if go is None:
                raise BuildError(
                    f"{title} is built from source, and no Go (https://go.dev) that is new enough is installed"
                )
            log(f"Building {title}, once per machine …")
            start = time.monotonic()
            compile_it(_Commands(title, go, scratch, log), scratch / path.name)
            log(f"Built {title} in {time.monotonic() - start:.0f} s: {path}")
    return path


def _compile_collector(commands: _Commands, program: Path) -> None:
    folder = commands.folder
    commands.run_go(
        "install", "-v", f"go.opentelemetry.io/collector/cmd/builder@v{collector_version()}", GOBIN=str(folder)
    )
    sources = folder / "sources"
    # The builder generates the sources and downloads the modules. `go build` then omits symbols for debuggers.
    commands.run(
        [str(folder / "builder"), "--config", str(MANIFEST), "--output-path", str(sources), "--skip-compilation"]
    )
    commands.run_go("build", "-v", "-trimpath", "-ldflags=-s -w", "-o", str(program), ".", folder=sources)


def _compile_jaeger(commands: _Commands, program: Path) -> None:
    # `go install` refuses a module with replace directives. They do not apply to a tool of another module.
    (commands.folder / "go.mod").write_text("module cascade.invalid/jaeger\n\ngo 1.25\n")
    package, version = _JAEGER_MODULE.split("@")
    commands.run_go("get", "-tool", f"{package}/cmd/jaeger@{version}")
    flags = f"-ldflags=-s -w -X {package}/internal/version.latestVersion=v{JAEGER}"
    commands.run_go("build", "-v", "-trimpath", flags, "-o", str(program), f"{package}/cmd/jaeger")


def _compile_actionlint(commands: _Commands, program: Path) -> None:
    commands.run_go("install", "-v", "-trimpath", f"{_ACTIONLINT_PACKAGE}@v{ACTIONLINT}", GOBIN=str(program.parent))
    (program.parent / "actionlint").rename(program)


def _compile_sources(folder: Path, commands: _Commands, program: Path) -> None:
    sources = shutil.copytree(folder, commands.folder / "sources")
    commands.run_go("build", "-v", "-trimpath", "-o", str(program), ".", folder=sources)
