"""Runs a long command, and prints the elapsed time and the latest line of output every few seconds.

`python -m stack.progress TITLE COMMAND...` also prints the whole output at the end.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

INTERVAL = 3.0
"""Seconds between two lines of progress. A shorter command prints none."""

_WIDTH = 100


class CommandError(Exception):
    """A command failed. The text is the end of its output.

    Attributes:
        returncode: The exit code.
        output: The whole output.
    """

    def __init__(self, command: Sequence[str], returncode: int, output: str) -> None:
        super().__init__(f"{' '.join(command)} failed with exit code {returncode}:\n{output[-4000:].strip()}")
        self.returncode = returncode
        self.output = output


def log(text: str) -> None:
    """Print a line and flush it."""
    print(text, flush=True)


def run(
    title: str,
    command: Sequence[str],
    *,
    log: Callable[[str], None] = log,
    cwd: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> str:
    """Run a command and return its output.

    Args:
        title: Begins each line of progress.
        command: The program and its arguments.
        log: Receives the lines of progress, one each `INTERVAL` seconds.
        cwd: The folder to run it in.
        environment: Variables on top of those of this process.

    Raises:
        CommandError: The exit code of the command was not 0.
        FileNotFoundError: The program is not installed.
    """
    start = time.monotonic()
    # A file instead of a pipe: a service that a package starts inherits it and would keep a pipe open.
    with tempfile.TemporaryFile() as output:
        with subprocess.Popen(
            command,
            cwd=cwd,
            env={**os.environ, **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        ) as process:
            while True:
                try:
                    process.wait(INTERVAL)
                    break
                except subprocess.TimeoutExpired:
                    log(f"  {title}, {time.monotonic() - start:.0f} s  {_last_line(output.fileno())}".rstrip())
        output.seek(0)
        text = output.read().decode(errors="replace")
    if process.returncode:
        raise CommandError(command, process.returncode, text)
    return text


def _last_line(descriptor: int) -> str:
    size = os.fstat(descriptor).st_size
    tail = os.pread(descriptor, 2000, max(0, size - 2000)).decode(errors="replace")
    lines = tail.replace("\r", "\n").split("\n")
    return next((line.strip()[:_WIDTH] for line in reversed(lines) if line.strip()), "")


def main(arguments: Sequence[str]) -> int:
    title, *command = arguments
    try:
        print(run(title, command).strip())
    except CommandError as error:
        print(error.output.strip())
        return error.returncode
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
