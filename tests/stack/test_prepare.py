"""`make servers` on machines with missing programs, with and without apt-get."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from stack import programs
from stack.programs import ROOT
from tests.lab.programs import program

APT = """#!/bin/sh
echo "$@" >> {folder}/calls
[ "$1" = update ] && exit 0
for name in {names}; do /bin/ln -sf /bin/true {folder}/$name; done
"""


def prepare(path: Path, cache: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run `stack.prepare` with the programs of one folder only, and without a package index."""
    environment = {"PATH": str(path), "XDG_CACHE_HOME": str(cache), "HOME": str(cache), "PIP_NO_INDEX": "1"}
    command = [
        sys.executable,
        "-c",
        "import sys; from stack import prepare, programs; programs.ROOT_PATH = ''; sys.exit(prepare.main(['servers']))",
    ]
    return subprocess.run(
        command, cwd=ROOT, env={**environment, **variables}, capture_output=True, text=True, check=False
    )


def test_without_apt_the_output_lists_missing_programs_and_skipped_tests(tmp_path: Path) -> None:
    done = prepare(tmp_path, tmp_path / "cache")
    assert done.returncode == 0, done.stderr
    assert "Missing, and the tests that are skipped without it:" in done.stdout
    for package in programs.PACKAGES:
        assert f"  {package.name} (Debian's package): {', '.join(package.tests)}\n" in done.stdout
    assert f"the reader of Compose files and actionlint: {', '.join(programs.NEEDS_GO)}" in done.stdout


def test_a_missing_program_is_a_failure_if_all_are_required(tmp_path: Path) -> None:
    done = prepare(tmp_path, tmp_path / "cache", **{programs.REQUIRED: "1"})
    assert done.returncode == 1
    assert f"{programs.REQUIRED} is set: nothing may be missing." in done.stdout


@pytest.mark.skipif(os.geteuid() != 0, reason="packages are installed by root")
def test_root_installs_the_missing_packages(tmp_path: Path) -> None:
    present = programs.PACKAGES[0]
    for name in present.programs:
        (tmp_path / name).symlink_to("/bin/true")
    absent = programs.PACKAGES[1:]
    names = " ".join(name for package in absent for name in package.programs)
    (tmp_path / "apt-get").write_text(APT.format(folder=tmp_path, names=names))
    (tmp_path / "apt-get").chmod(0o755)
    done = prepare(tmp_path, tmp_path / "cache")
    wanted = " ".join(package.name for package in absent)
    assert (tmp_path / "calls").read_text().splitlines() == [
        "update",
        f"install --yes --no-install-recommends {wanted}",
    ]
    assert "(Debian's package)" not in done.stdout


@pytest.mark.skipif(os.geteuid() != 0, reason="packages are installed by root")
def test_the_output_has_the_reason_why_packages_cannot_be_installed(tmp_path: Path) -> None:
    (tmp_path / "apt-get").write_text("#!/bin/sh\necho no network here; exit 100\n")
    (tmp_path / "apt-get").chmod(0o755)
    done = prepare(tmp_path, tmp_path / "cache")
    assert done.returncode == 0, done.stderr
    assert "no network here" in done.stdout
    assert "mosquitto (Debian's package): tests/benchmarks, tests/connectors/mqtt" in done.stdout


def test_the_listed_tests_exist() -> None:
    named = {path for package in programs.PACKAGES for path in package.tests} | set(programs.NEEDS_GO)
    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []


def test_a_test_cannot_use_a_program_that_is_not_in_the_list() -> None:
    with pytest.raises(AssertionError, match=r"python3 is not in stack\.programs\.PACKAGES"):
        program("python3")


@pytest.mark.parametrize(("answer", "good"), [("exit 0", True), ("exit 1", False)])
def test_a_go_that_is_too_old_counts_as_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str, good: bool
) -> None:
    """The version check is done by Go itself, in the module to build."""
    (tmp_path / "go").write_text(f"#!/bin/sh\n{answer}\n")
    (tmp_path / "go").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert programs.go() == (str(tmp_path / "go") if good else None)


def test_without_root_the_error_contains_the_missing_package_of_python(tmp_path: Path) -> None:
    code = "import sys; sys.modules['ensurepip'] = None; from stack import prepare; prepare.main(['environment'])"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    package = f"python3.{sys.version_info.minor}-venv"
    assert done.returncode == 1
    assert done.stderr == f"{sys.executable} cannot make virtual environments; install Debian's package {package}\n"
