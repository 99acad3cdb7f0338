"""`make flaky`: all tests three times, while a busy loop for each core competes with them."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from stack.programs import ROOT
from stack.progress import log
from tests.lab.environments import PYTEST

PASSES = 3
LOOP = "import os\nparent = os.getppid()\nwhile os.getppid() == parent: pass"
"""Program of a busy loop. It ends when its parent process ends."""


@contextmanager
def busy_loops(number: int) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Run this number of busy loops, one for each core."""
    loops = list[subprocess.Popen[bytes]]()
    try:
        loops.extend(subprocess.Popen([sys.executable, "-c", LOOP]) for _ in range(number))
        yield loops
    finally:
        for loop in loops:
            loop.kill()
        for loop in loops:
            loop.wait()


def main(arguments: list[str]) -> int:
    cores = os.cpu_count() or 1
    command = [sys.executable, *PYTEST, *arguments]
    failed = list[int]()
    with busy_loops(cores):
        for number in range(1, PASSES + 1):
            log(f"\nPass {number} of {PASSES}, with {cores} busy loops")
            if subprocess.run(command, cwd=ROOT, check=False).returncode:
                failed.append(number)
    log("")
    for number in range(1, PASSES + 1):
        log(f"Pass {number}: {'FAILED' if number in failed else 'passed'}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
