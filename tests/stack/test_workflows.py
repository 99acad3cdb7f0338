"""The GitHub workflows and the pre-commit hooks."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from stack import build
from stack.build import ROOT
from tests.lab.programs import is_missing

WORKFLOWS = ROOT / ".github" / "workflows"


@pytest.fixture(scope="module")
def actionlint() -> Path:
    if not build.actionlint_path().exists():
        is_missing("actionlint (`python -m stack build actionlint`)")
    return build.actionlint_path()


def checked(actionlint: Path, *files: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([actionlint, "-no-color", *files], cwd=ROOT, capture_output=True, text=True, check=False)


def test_actionlint_finds_no_fault_in_the_workflows(actionlint: Path) -> None:
    done = checked(actionlint, *WORKFLOWS.glob("*.yml"))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_actionlint_finds_a_fault(actionlint: Path, tmp_path: Path) -> None:
    wrong = tmp_path / "ci.yml"
    wrong.write_text((WORKFLOWS / "ci.yml").read_text().replace("matrix.python", "matrix.pyhton"))
    done = checked(actionlint, wrong)
    assert done.returncode == 1
    assert 'property "pyhton" is not defined' in done.stdout


def test_the_workflow_of_the_documentation_has_no_fault(actionlint: Path, tmp_path: Path) -> None:
    (example,) = re.findall(r"^```yaml\n(name: .*?)^```", (ROOT / "docs/ci.md").read_text(), re.MULTILINE | re.DOTALL)
    (tmp_path / "traces.yml").write_text(example)
    done = checked(actionlint, tmp_path / "traces.yml")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_targets_and_versions_of_the_workflow_exist() -> None:
    workflow = yaml.safe_load((WORKFLOWS / "ci.yml").read_text())
    steps = [step["run"] for job in workflow["jobs"].values() for step in job["steps"] if "run" in step]
    targets = {target for run in steps if run.startswith("make ") for target in run.split()[1:]}
    known = re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert targets
    assert targets <= set(known)
    classifiers = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["classifiers"]
    versions = [name.rpartition(" ")[2] for name in classifiers if re.search(r"Python :: 3\.\d+", name)]
    assert workflow["jobs"]["tests"]["strategy"]["matrix"]["python"] == versions


def test_the_hooks_of_pre_commit_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs in a temporary repository, so that no hook changes a file of this one."""
    pytest.importorskip("pre_commit", reason="pre-commit is installed for developers only")
    monkeypatch.setenv("PRE_COMMIT_HOME", str(tmp_path / "home"))
    repository = tmp_path / "repository"
    repository.mkdir()
    (repository / ".venv").symlink_to(ROOT / ".venv", target_is_directory=True)
    for name in (".pre-commit-config.yaml", "pyproject.toml"):
        (repository / name).write_text((ROOT / name).read_text())
    (repository / "example.py").write_text('"""An example."""\n\nvalue = [ 1,2 ]\n')
    git("init", "-q", folder=repository)
    git("add", "example.py", ".pre-commit-config.yaml", folder=repository)
    done = subprocess.run(
        [sys.executable, "-m", "pre_commit", "run", "--files", "example.py"],
        cwd=repository,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert re.search(r"^ruff, rules\.+Passed$", done.stdout, re.MULTILINE), done.stdout
    assert re.search(r"^ruff, format\.+Failed$", done.stdout, re.MULTILINE), done.stdout
    assert (repository / "example.py").read_text() == '"""An example."""\n\nvalue = [1, 2]\n'


def git(*arguments: str, folder: Path) -> None:
    subprocess.run(["git", *arguments], cwd=folder, check=True, capture_output=True)
