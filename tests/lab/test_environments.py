"""Functions of `make test-versions`, `make test-extras` and `make flaky`."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.lab import environments, extras
from tests.lab.busy_loops import busy_loops
from tests.lab.progress import Progress

HERE = f"{sys.version_info.major}.{sys.version_info.minor}"


def test_each_extra_has_a_module() -> None:
    assert set(extras.MODULES) == set(environments.EXTRAS) - {"all"}


def test_each_path_that_needs_an_extra_exists() -> None:
    tests = Path(__file__).parents[1]
    assert [path for path in extras.NEEDS if not (tests / path).exists()] == []
    assert {extra for needed in extras.NEEDS.values() for extra in needed} <= set(extras.MODULES)


def test_the_lowest_versions_are_those_of_pyproject() -> None:
    lowest = dict(line.split("==") for line in environments.lowest())
    named = [requirement for name, group in environments.EXTRAS.items() if name != "all" for requirement in group]
    assert {f"{name}>={version}" for name, version in lowest.items()} >= {one.partition(",")[0] for one in named}


def test_the_versions_of_python_are_those_of_the_classifiers() -> None:
    assert environments.versions()[0] == environments.PYPROJECT["project"]["requires-python"].removeprefix(">=")


def test_an_interpreter_is_one_that_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shim of pyenv is on the PATH for each version, and fails if no version is selected."""
    real = sys._base_executable  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
    shim = tmp_path / "bin" / f"python{HERE}"
    shim.parent.mkdir()
    shim.write_text("#!/bin/sh\necho no such version selected; exit 127\n")
    shim.chmod(0o755)
    monkeypatch.setenv("PATH", str(shim.parent))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path))
    assert environments.interpreter(HERE) is None
    home = tmp_path / "versions" / f"{HERE}.0" / "bin"
    home.mkdir(parents=True)
    (home / f"python{HERE}").write_text(f'#!/bin/sh\nexec {real} "$@"\n')
    (home / f"python{HERE}").chmod(0o755)
    assert environments.interpreter(HERE) == str(home / f"python{HERE}")


def test_an_error_ends_the_busy_loops() -> None:
    loops = list[subprocess.Popen[bytes]]()

    def fails() -> None:
        with busy_loops(2) as started:
            loops.extend(started)
            assert [loop.poll() for loop in loops] == [None, None]
            raise RuntimeError("a pass failed")

    with pytest.raises(RuntimeError, match="a pass failed"):
        fails()
    assert [loop.returncode for loop in loops] == [-9, -9]


def test_a_long_test_is_shown(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.lab.progress.INTERVAL", 0.1)
    shown, progress = "", Progress()
    try:
        while "\ncollecting tests, " not in shown:
            shown += capfd.readouterr().out
    finally:
        progress.pytest_unconfigure()
