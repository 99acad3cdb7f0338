import sys
from pathlib import Path

import pytest

from stack import progress
from tests.lab.waiting import HANG

WAITS = (
    "import pathlib, sys; print('first line', flush=True); p = pathlib.Path(sys.argv[1])\nwhile not p.exists(): pass"
)


@pytest.fixture(autouse=True)
def _no_progress_of_short_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "INTERVAL", HANG)


def test_a_long_command_shows_its_time_and_its_latest_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "INTERVAL", 0.05)
    seen = list[str]()

    def log(line: str) -> None:
        seen.append(line)
        if "first line" in line:
            (tmp_path / "go").touch()

    output = progress.run("waiting", [sys.executable, "-c", WAITS, str(tmp_path / "go")], log=log)
    assert output == "first line\n"
    assert seen[-1].endswith(" s  first line")
    assert all(line.startswith("  waiting, ") for line in seen)


def test_a_short_command_shows_nothing() -> None:
    seen = list[str]()
    assert progress.run("short", [sys.executable, "-c", "print(1)"], log=seen.append) == "1\n"
    assert seen == []


def test_the_error_has_the_command_its_exit_code_and_its_output() -> None:
    with pytest.raises(progress.CommandError, match=r"failed with exit code 3:\nno network here$") as raised:
        progress.run("failing", [sys.executable, "-c", "print('no network here'); raise SystemExit(3)"])
    assert (raised.value.returncode, raised.value.output) == (3, "no network here\n")


@pytest.mark.parametrize(("code", "expected"), [("print('fine')", 0), ("print('fine'); raise SystemExit(4)", 4)])
def test_the_module_prints_the_output_and_returns_the_exit_code_of_the_command(
    capsys: pytest.CaptureFixture[str], code: str, expected: int
) -> None:
    assert progress.main(["title", sys.executable, "-c", code]) == expected
    assert capsys.readouterr().out == "fine\n"
