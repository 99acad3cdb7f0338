"""Forks beside threads that hold a lock, or are in a block that a child could not continue without."""

import os
import subprocess
import sys
import textwrap

import pytest

from tests.waiting import HANG

HEAD = """
import os, threading
from cascade.connectors import _lifetime

inside, over, forking = threading.Event(), threading.Event(), threading.Event()
block = {block}

def holds():
    with block:
        inside.set()
        over.wait()

thread = threading.Thread(target=holds)
thread.start()
inside.wait()
"""


def program(block: str, code: str) -> str:
    command = [sys.executable, "-W", "ignore:This process:DeprecationWarning", "-c"]
    source = HEAD.format(block=block) + textwrap.dedent(code)
    done = subprocess.run([*command, source], capture_output=True, text=True, timeout=HANG, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_fork_waits_until_no_thread_is_in_a_block_that_must_not_be_forked() -> None:
    printed = program(
        "_lifetime.no_fork",
        """
        _lifetime.FORK_PATIENCE = 3600
        states = []
        os.register_at_fork(before=forking.set)
        def ends():
            forking.wait()
            states.append("ends")
            over.set()
        threading.Thread(target=ends).start()
        child = os.fork()
        if not child:
            with _lifetime.no_fork:  # free in the child
                os._exit(len(states))
        states.append("forked")
        with _lifetime.no_fork:  # and in the parent
            print(states, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        """,
    )
    assert printed == "['ends', 'forked'] 1\n"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.parametrize("block", ["_lifetime.no_fork", "_lifetime.ModuleLock()"])
def test_a_child_is_not_held_up_by_a_thread_that_it_does_not_have(block: str) -> None:
    printed = program(
        block,
        """
        _lifetime.FORK_PATIENCE = 0
        child = os.fork()
        if not child:
            with block:
                os._exit(7)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        over.set()
        """,
    )
    assert printed == "7\n"
