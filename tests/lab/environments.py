"""Runs all tests in other environments: `python -m tests.lab.environments versions`, or `extras`.

Further arguments select environments by name. A virtual environment below `.make` is created once and used again.
"""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stack import prepare, programs
from stack.progress import CommandError, log

ROOT = programs.ROOT
PYPROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
EXTRAS: dict[str, list[str]] = PYPROJECT["project"]["optional-dependencies"]
CONSTRAINTS = ROOT / ".ci" / "constraints.txt"
PYTEST = ["-m", "pytest", "-p", "no:cacheprovider", "--numprocesses=auto", "--maxprocesses=4", "--dist=worksteal"]
"""Arguments of Python that run the tests like `make test`. Several such runs can use one checkout."""


def versions() -> list[str]:
    """Return the versions of Python that the package supports."""
    found = (
        re.fullmatch(r"Programming Language :: Python :: (3\.\d+)", c) for c in PYPROJECT["project"]["classifiers"]
    )
    return [match[1] for match in found if match]


def interpreter(version: str) -> str | None:
    """Return the path of an interpreter of this version that runs. A shim on the PATH may have no interpreter."""
    homes = [Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv"), Path.home() / ".local/share/uv/python"]
    patterns = [f"versions/{version}.*/bin/python{version}", f"cpython-{version}.*/bin/python{version}"]
    candidates = [
        shutil.which(f"python{version}"),
        *(str(path) for home in homes for pattern in patterns for path in sorted(home.glob(pattern))),
    ]
    print_version = "import sys, venv, ensurepip; print('%d.%d' % sys.version_info[:2])"
    for candidate in filter(None, candidates):
        done = subprocess.run([candidate, "-c", print_version], capture_output=True, text=True, check=False)
        if done.stdout.strip() == version:
            return candidate
    return None


def lowest() -> Iterator[str]:
    """Yield the lowest version of each requirement in pyproject.toml, as constraints of pip."""
    own = [requirement for name, group in EXTRAS.items() if name != "all" for requirement in group]
    for requirement in [*own, *PYPROJECT["dependency-groups"]["test"]]:
        if found := re.fullmatch(r"([\w.-]+)>=([\w.]+)(,<\w+)?", requirement):
            yield f"{found[1]}=={found[2]}"


def requirements(name: str) -> list[str]:
    """Return the arguments of `pip install` for an environment of `make test-extras`."""
    if name == "newest":
        return ["--upgrade", "--editable", ".[all]", "--group", "test"]
    if name == "lowest":
        constraints = ROOT / ".make" / "lowest.txt"
        constraints.write_text("\n".join(lowest()) + "\n")
        return ["--constraint", str(constraints), "--editable", ".[all]", "--group", "test"]
    extra = "" if name == "none" else f"[{name}]"
    return ["--constraint", str(CONSTRAINTS), "--editable", f".{extra}", "--group", "test"]


def passes(name: str, pip: list[str], python: str) -> bool:
    """Return whether all tests pass in an environment with these packages."""
    log(f"\n{name}")
    folder = ROOT / ".make" / name.replace(" ", "-")
    prepare.environment(folder, pip, python)
    return subprocess.run([str(folder / "bin" / "python"), *PYTEST, "-q"], cwd=ROOT, check=False).returncode == 0


def all_versions(names: list[str]) -> dict[str, bool]:
    """Test each version of Python. A missing version is skipped with a line, or fails where all programs are required."""
    results = dict[str, bool]()
    for version in names or versions():
        if python := interpreter(version):
            pip = ["--constraint", str(CONSTRAINTS), "--editable", ".[all]", "--group", "dev"]
            results[f"Python {version}"] = passes(f"Python {version}", pip, python)
        elif os.environ.get(programs.REQUIRED):
            results[f"Python {version} (not installed)"] = False
        else:
            log(f"\nPython {version} is not installed: skipped")
    return results


def all_extras(names: list[str]) -> dict[str, bool]:
    """Test without extras, with each extra alone, and with the lowest and the newest versions of all packages."""
    chosen = names or ["none", *(name for name in EXTRAS if name != "all"), "lowest", "newest"]
    return {name: passes(f"Extras {name}", requirements(name), sys.executable) for name in chosen}


def main(arguments: list[str]) -> int:
    kind, *names = arguments
    results = all_versions(names) if kind == "versions" else all_extras(names)
    log("")
    for name, passed in results.items():
        log(f"{name}: {'passed' if passed else 'FAILED'}")
    return 0 if results and all(results.values()) else 1


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except CommandError as error:
        sys.exit(str(error))
