import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from benchmarks import __main__ as command_line
from benchmarks import _readme, profile
from benchmarks._compare import SUBJECTS, Comparison
from benchmarks._measure import MEMORY, Figure
from benchmarks._other_engines import ENGINES, PACKAGES, TRACED
from tests.lab.programs import program

pytest.importorskip("aiomqtt", reason="aiomqtt is a baseline and is not installed")

ROOT = Path(__file__).parents[2]

ROWS = {
    "engine": ("engine, layered, 50, per task", "engine, map, cost per task at 100 against 10, once"),
    "threads": ("thread tasks, 1 ms, 50, per task",),
    "cache": ("cached 1 ms tasks, sleep, 50, second run against the first, per task",),
    "traced": (
        "task spans received, gRPC, and orphans",
        "the same with all defaults, log lines on a pipe included, gRPC, 50",
    ),
    "burst": ("lost in a burst of 50, HTTP, defaults",),
    "memory": (
        "peak memory, traced over gRPC against untraced, 50",
        "memory of 50 graph nodes, peak of the run, per node",
        "memory of 50 map items, queued, per item",
    ),
    "outage": ("collector unresponsive, gRPC: warnings",),
    "lag": (
        "a 5 ms ticker is late by, HTTP, 50, 99th percentile",
        "a 5 ms ticker is late by, chain, 100 nodes built and planned, once, maximum",
    ),
    "mqtt": ("broker restarted in the middle of a run of 50: ended tasks received",),
    "both": ("MQTT and gRPC at once against the slower one alone, 50, until acknowledged",),
    "control": ("control, clear to the first start, 100 tasks waiting, 99th percentile of a run",),
    "imports": ("import cascade, against import asyncio",),
    "console": ("the live view of a paused run, 200 tasks waiting: CPU of a core",),
    "demo": (),
    "paths": ("files passed, end of a task to OTLP bytes",),
    "other_engines": ("fan-out of 20, traced, per task", "chain of 10, traced, per task"),
}
"""Some rows of each subject. Those without have rows that depend on the environment."""
NEEDS_MOSQUITTO = {"mqtt", "both", "control", "paths"}
ANY_ROW = {"demo": "make demo, warm", "other_engines": "engines"}
"""A part of a row of these subjects."""


def run(*arguments: str, module: str = "benchmarks", temporary: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", module, *arguments]
    environment = {**os.environ, "TMPDIR": str(temporary)} if temporary else None
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def cells(table: str) -> list[list[str]]:
    return [line.split(" | ") for line in table.splitlines() if line.startswith("| ")]


@pytest.mark.parametrize("subject", ROWS)
def test_a_subject_prints_its_rows(subject: str) -> None:
    if subject in NEEDS_MOSQUITTO:
        program("mosquitto")
    done = run("--tiny", subject)
    assert done.returncode == 0, done.stderr
    rows = cells(done.stdout)
    names = {row[0].removeprefix("| ") for row in rows}
    assert names.issuperset(ROWS[subject])
    assert any(ANY_ROW.get(subject, "") in name for name in names)
    assert {len(row) for row in rows} == {6}


def test_the_traced_run_of_the_comparison_with_other_engines_delivers_its_spans() -> None:
    rows = {row[0].removeprefix("| "): row[1] for row in cells(run("--tiny", "other_engines").stdout)}
    assert int(rows["fan-out of 20, traced, per task"].split()[-2]) >= 20


def test_the_group_of_peers_contains_each_engine() -> None:
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["dependency-groups"]
    names = {re.split(r"[^\w-]", requirement)[0] for requirement in groups["peers"]}
    assert names == {PACKAGES.get(engine, engine) for engine in ENGINES}
    assert set(TRACED) < set(ENGINES)


@pytest.mark.skipif(profile.MIXES_THREADS, reason="cProfile mixes the calls of all threads since Python 3.12")
@pytest.mark.parametrize(
    ("connectors", "function", "thread"),
    [
        ((), "runtime/_task_execution.py:", "MainThread"),
        (("--connector", "http"), "otel/encode.py:", "MainThread"),
        (("--connector", "http", "mqtt"), "mqtt/packets.py:", "cascade-mqtt"),
    ],
)
def test_a_profile_has_the_functions_of_all_threads(connectors: tuple[str, ...], function: str, thread: str) -> None:
    if "mqtt" in connectors:
        program("mosquitto")
    done = run("fan-out", "--size", "50", "--top", "1000", *connectors, module="benchmarks.profile")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("fan-out, 50 tasks: ")
    found = {(row[3], row[4].partition(":")[0] + ":") for row in cells(done.stdout)}
    assert (thread, function) in found


@pytest.mark.skipif(profile.MIXES_THREADS, reason="cProfile mixes the calls of all threads since Python 3.12")
def test_a_profile_has_the_calls_per_task() -> None:
    rows = cells(run("chain", "--size", "50", "--top", "1000", module="benchmarks.profile").stdout)
    assert [row[2] for row in rows if row[4].endswith(" noop |")] == ["0.98"]


@pytest.mark.parametrize(
    ("shape", "kind", "row"),
    [
        ("fan-out", "loop", "task RunSignals.run_cancellable |"),
        ("threads", "loop", "task RunSignals.run_cancellable |"),
        ("layered", "memory", "graph/build.py:"),
        ("map", "memory", "benchmarks/profile.py:"),
    ],
)
def test_a_profile_of_the_event_loop_or_of_memory_has_rows(shape: str, kind: str, row: str) -> None:
    done = run(shape, "--size", "50", "--top", "1000", "--of", kind, module="benchmarks.profile")
    assert done.returncode == 0, done.stderr
    assert any(one[-1].startswith(row) for one in cells(done.stdout))


@pytest.mark.skipif(profile.MIXES_THREADS, reason="cProfile mixes the calls of all threads since Python 3.12")
def test_the_summary_has_the_command_and_the_functions_of_each_profile() -> None:
    arguments = {"shape": "chain", "size": 50, "connector": ["http"], "log_level": "INFO"}
    row = cells(profile.summary({"engine, chain": arguments}))[-1]
    assert row[:2] == ["| engine, chain", "`chain --size 50 --connector http --log-level INFO`"]
    assert "µs of CPU time per task" in row[2]
    assert row[3].startswith("own µs per task: ")
    assert row[3].count(";") == profile.TOP - 1


@pytest.mark.skipif(not profile.MIXES_THREADS, reason="the profile is right before Python 3.12")
def test_a_profile_is_refused_where_it_would_mix_threads() -> None:
    done = run("chain", module="benchmarks.profile")
    assert done.returncode == 2
    assert "use Python 3.11" in done.stderr


@pytest.mark.parametrize("subject", SUBJECTS)
def test_another_source_tree_is_measured_in_the_same_rounds(subject: str, tmp_path: Path) -> None:
    if subject in NEEDS_MOSQUITTO:
        program("mosquitto")
    (tmp_path / "same" / "src").mkdir(parents=True)
    (tmp_path / "same" / "src" / "cascade").symlink_to(ROOT / "src" / "cascade", target_is_directory=True)
    done = run("--tiny", subject, "--against", str(tmp_path / "same"))
    assert done.returncode == 0, done.stderr
    title, *rows = cells(done.stdout)
    assert title == ["| what", "now", "same", "now / same (spread)", "verdict |"]
    assert rows
    assert {row[-1] for row in rows} == {"fewer than 3 rounds |"}


def test_a_revision_is_measured_and_its_files_are_removed(tmp_path: Path) -> None:
    require_git()
    done = run("--tiny", "lag", "--revision", "HEAD", temporary=tmp_path)
    assert done.returncode == 0, done.stderr
    assert cells(done.stdout)[0][2] == "HEAD"
    assert not list(tmp_path.glob("cascade-bench-*"))


@pytest.mark.parametrize(
    ("revision", "text"),
    [
        ("no-such-revision", f"'no-such-revision' is not a revision of {ROOT}; use a commit, a branch or a tag"),
        ("", "the revision is empty; name a commit, a branch or a tag, such as REV=main"),
    ],
)
def test_a_wrong_revision_is_refused(revision: str, text: str, tmp_path: Path) -> None:
    require_git()
    done = run("--tiny", "lag", "--revision", revision, temporary=tmp_path)
    assert done.returncode == 2
    assert text in done.stderr
    assert not list(tmp_path.glob("cascade-bench-*"))


def require_git() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("this is not a git repository")


@pytest.mark.parametrize(
    ("ratios", "is_rate", "verdict"),
    [
        ((0.8, 0.9, 0.7), False, "faster"),
        ((0.8, 0.9, 0.7), True, "slower"),
        ((1.2, 1.3, 1.1), False, "slower"),
        ((1.2, 1.3, 1.1), True, "faster"),
        ((0.8, 1.1, 0.7), False, "no difference within the spread"),
        ((1.001, 1.002, 1.003), False, "no difference within the spread"),
        ((0.8, 0.9), False, "fewer than 3 rounds"),
    ],
)
def test_a_verdict_needs_rounds_that_agree(ratios: tuple[float, ...], is_rate: bool, verdict: str) -> None:
    ours = tuple(Figure("row", ratio, "s", is_rate=is_rate) for ratio in ratios)
    theirs = tuple(Figure("row", 1.0, "s", is_rate=is_rate) for _ in ratios)
    assert Comparison(ours, theirs).verdict == verdict


def test_less_memory_is_smaller() -> None:
    ours = (Figure("row", 1.0, "bytes", words=MEMORY),) * 3
    theirs = (Figure("row", 2.0, "bytes", words=MEMORY),) * 3
    assert str(Comparison(ours, theirs)) == "| row | 1 bytes | 2 bytes | 0.5x (0.5 to 0.5) | smaller |"


def test_the_table_is_written_between_its_comments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- results -->\nold\n<!-- end of results -->\nafter\n", encoding="utf-8")
    monkeypatch.setattr(_readme, "README", readme)
    monkeypatch.setattr(sys, "argv", ["benchmarks", "--tiny", "imports", "--write"])
    command_line.main()
    before, title, *_, after = readme.read_text(encoding="utf-8").splitlines()
    assert (before, title, after) == ("before", "<!-- results -->", "after")
    assert "old" not in readme.read_text(encoding="utf-8")
    assert "| import cascade, against import asyncio |" in readme.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("burst",), "'burst' has no figures to compare"),
        (("lag", "--write"), "--write writes the table of one revision, and not a comparison"),
    ],
)
def test_a_comparison_without_figures_or_with_write_is_refused(arguments: tuple[str, ...], text: str) -> None:
    done = run("--tiny", *arguments, "--against", str(ROOT))
    assert done.returncode == 2
    assert text in done.stderr


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
