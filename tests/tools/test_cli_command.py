"""The command line of a workflow as a program: help, exit codes, signals, stdout and stderr."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.time_limits import subprocess_environment
from tests.lab.waiting import HANG

FLOW = '''"""Convert the files of a folder.

The result is the number of files.

Raises:
    OSError: The folder does not exist.
"""

import os
import sys
from enum import Enum
from pathlib import Path
from typing import Literal

import cascade as cs


class Color(Enum):
    RED = "red"
    BLUE = "blue"


@cs.task
def convert(folder, color, mode, names, fast, limit):
    """Convert one folder."""
    print("user's output", file=sys.stderr)
    if mode == "wait":
        os.write(1, b"up\\n")
        sys.stdin.readline()
    if mode == "fail":
        raise OSError(f"no folder {folder}")
    return f"{folder!r} {color} {names} {fast} {limit}"


result = convert(
    cs.Param("folder", type=Path, description="folder with the files, which are read in the order of their names"),
    cs.Param("color", Color.RED, Color, "color of the output"),
    cs.Param("mode", "run", Literal["run", "wait", "fail"]),
    cs.Param("names", ["a", "b"], list[str], "names to convert"),
    cs.Param("fast", False, bool),
    cs.Param("limit", type=int | None),
)
cs.Param("unused")

if __name__ == "__main__":
    cs.cli(result)()
'''

LANGUAGES = ("python", "text")

HELP = """\
Usage: flow.py [OPTIONS]

  Convert the files of a folder.

  The result is the number of files.

Options:
  --folder Path                   folder with the files, which are read in the
                                  order of their names  [required]
  --color red|blue                color of the output  [default: red]
  --mode run|wait|fail            [default: run]
  --names str                     names to convert (may be repeated)  [default:
                                  a, b]
  --fast / --no-fast              [default: False]
  --limit int
"""


@pytest.fixture
def flow(tmp_path: Path) -> Path:
    script = tmp_path / "flow.py"
    script.write_text(FLOW, encoding="utf-8")
    return script


def command(script: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-X", "utf8", str(script), *arguments]


def run(script: Path, *arguments: str, terminal_width: int = 80) -> subprocess.CompletedProcess[str]:
    environment = {**subprocess_environment(), "COLUMNS": str(terminal_width)}
    return subprocess.run(
        command(script, *arguments), capture_output=True, encoding="utf-8", env=environment, timeout=HANG, check=False
    )


def test_the_help_fits_a_terminal_of_80_columns(flow: Path) -> None:
    done = run(flow, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert " ".join(done.stdout.split()).startswith(" ".join(HELP.split()))
    assert "--unused" not in done.stdout
    for name in ("connector", "timeout", "max-workers", "run-name", "tag", "dry-run", "log-level", "log-format"):
        assert f"  --{name} " in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_the_page_about_the_command_line_has_the_output_of_its_example(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "cli.md").read_text(encoding="utf-8")
    (code, *_), (shown,) = (re.findall(rf"^```{name}\n(.*?)^```", page, re.MULTILINE | re.DOTALL) for name in LANGUAGES)
    script = tmp_path / "flow.py"
    script.write_text(code, encoding="utf-8")
    calls = re.findall(r"^\$ python flow.py (.*)\n((?:(?!\$).*\n)+)", shown, re.MULTILINE)
    assert len(calls) == 2
    for arguments, output in calls:
        done = run(script, *arguments.split())
        assert done.returncode == 0
        assert done.stdout.split() == output.split()


def test_only_the_value_is_on_stdout(flow: Path) -> None:
    done = run(flow, "--folder", "a/b", "--color", "blue", "--names", "x", "--names", "y", "--fast", "--limit", "3")
    assert (done.returncode, done.stdout) == (0, f"{Path('a/b')!r} Color.BLUE ['x', 'y'] True 3\n")
    assert done.stderr.startswith("▶️")
    assert "user's output" in done.stderr


def test_a_failed_run_is_reported_once_with_the_users_code(flow: Path) -> None:
    done = run(flow, "--folder", "a", "--mode", "fail")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("❌ Failed convert") == 1
    assert done.stderr.count("Traceback") == 1
    assert [line for line in done.stderr.splitlines() if line.startswith("  File")] == [
        line for line in done.stderr.splitlines() if line.startswith(f'  File "{flow}"')
    ]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((), "Missing option '--folder'"),
        (("--folder", "a", "--color", "green"), "'--color': 'green' is not one of red, blue"),
        (("--folder", "a", "--timeout", "-1"), "'--timeout': cs.run: timeout must be"),
        (("--folder", "a", "--connector", "kafka"), "'--connector': connector='kafka': no connector"),
        (("--folder", "a", "more"), "more"),
    ],
)
def test_a_usage_error_has_exit_code_2_and_no_traceback(flow: Path, arguments: tuple[str, ...], named: str) -> None:
    done = run(flow, *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert named in done.stderr
    assert "Traceback" not in done.stderr


def test_a_dry_run_prints_the_plan_on_stdout(flow: Path) -> None:
    done = run(flow, "--folder", "a", "--dry-run")
    assert (done.returncode, done.stderr) == (0, "")
    assert "      param: Color, default red, color of the output\n" in done.stdout
    assert done.stdout.splitlines()[-2] == "[7/7] convert (Literals: {})"


@pytest.fixture
def waiting(flow: Path) -> Iterator["subprocess.Popen[str]"]:
    """A command whose task has started, and waits for a line on stdin."""
    pipe = subprocess.PIPE
    environment = subprocess_environment()
    arguments = command(flow, "--folder", "a", "--mode", "wait")
    with subprocess.Popen(
        arguments, stdin=pipe, stdout=pipe, stderr=pipe, encoding="utf-8", env=environment
    ) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "up\n"
            yield process
        finally:
            process.kill()


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_command_with_its_exit_code(
    waiting: "subprocess.Popen[str]", sent: signal.Signals, code: int
) -> None:
    waiting.send_signal(sent)
    assert waiting.stderr is not None
    lines = list[str]()
    while "🛑 Run cancelled" not in (line := waiting.stderr.readline()):
        assert line, lines
        lines.append(line)
    out, err = waiting.communicate("end\n", timeout=HANG)  # a thread cannot be interrupted: its function ends
    assert (waiting.returncode, out) == (code, "")
    assert "Traceback" not in "".join(lines) + err
