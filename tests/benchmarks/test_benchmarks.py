import subprocess
import sys
from pathlib import Path

import pytest

from tests.lab.programs import program

pytest.importorskip("aiomqtt", reason="aiomqtt is a baseline and is not installed")

ROOT = Path(__file__).parents[2]

ROWS = {
    "engine": "engine, layered, 50, per task",
    "threads": "thread tasks, 1 ms, 50, per task",
    "traced": "task spans received, gRPC, and orphans",
    "burst": "lost in a burst of 50, HTTP, defaults",
    "memory": "peak memory, traced over gRPC against untraced, 50",
    "outage": "collector unresponsive, gRPC: warnings",
    "lag": "a 5 ms ticker is late by, HTTP, 50, 99th percentile",
    "mqtt": "broker restarted in the middle of a run of 50: ended tasks received",
    "control": "control, clear to the first start, 100 tasks waiting, 99th percentile of a run",
    "imports": "import cascade, against import asyncio",
    "paths": "files passed, end of a task to OTLP bytes",
    "other_engines": "",
}
NEEDS_MOSQUITTO = {"mqtt", "control", "paths"}


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("subject", ROWS)
def test_a_subject_prints_its_rows(subject: str) -> None:
    if subject in NEEDS_MOSQUITTO:
        program("mosquitto")
    done = run("--tiny", subject)
    assert done.returncode == 0, done.stderr
    rows = [line.split(" | ") for line in done.stdout.splitlines() if line.startswith("| ")]
    names = {row[0].removeprefix("| ") for row in rows}
    assert (
        any("other engines" in name or "hamilton" in name for name in names)
        if subject == "other_engines"
        else ROWS[subject] in names
    )
    assert {len(row) for row in rows} == {6}


def test_another_source_tree_is_measured_in_the_same_rounds(tmp_path: Path) -> None:
    program("mosquitto")
    (tmp_path / "same" / "src").mkdir(parents=True)
    (tmp_path / "same" / "src" / "cascade").symlink_to(ROOT / "src" / "cascade", target_is_directory=True)
    done = run("--tiny", "mqtt", "--against", str(tmp_path / "same"))
    assert done.returncode == 0, done.stderr
    for label in ("the whole run", "the connector alone"):
        assert f"| task messages to a subscriber, 50 tasks, {label}, against same |" in done.stdout
        assert f"| CPU per message, 50 tasks, {label}, against same |" in done.stdout


def test_the_other_source_tree_is_imported_from_there(tmp_path: Path) -> None:
    program("mosquitto")
    package = tmp_path / "src" / "cascade"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise ImportError('this is the other tree')", encoding="utf-8")
    done = run("--tiny", "control", "--against", str(tmp_path))
    assert done.returncode == 1
    assert "this is the other tree" in done.stderr


def test_a_folder_that_is_no_source_tree_is_refused(tmp_path: Path) -> None:
    done = run("--tiny", "mqtt", "--against", str(tmp_path))
    assert done.returncode == 2
    assert f"{tmp_path} has no src/cascade" in done.stderr


def test_an_unknown_subject_is_refused() -> None:
    done = run("speed")
    assert done.returncode == 2
    assert "unknown subject 'speed'" in done.stderr
