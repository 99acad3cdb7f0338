"""Forks while another thread holds a lock or is in a block that delays forks."""

import os
import subprocess
import sys
import textwrap

import pytest

from tests.lab.waiting import HANG

HEAD = """
import os, threading
from cascade import _forks

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
        "_forks.no_fork",
        """
        _forks.FORK_TIMEOUT = 3600
        states = []
        os.register_at_fork(before=forking.set)
        def ends():
            forking.wait()
            states.append("ends")
            over.set()
        threading.Thread(target=ends).start()
        child = os.fork()
        if not child:
            with _forks.no_fork:  # free in the child
                os._exit(len(states))
        states.append("forked")
        with _forks.no_fork, _forks.no_fork:  # and in the parent
            print(states, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        """,
    )
    assert printed == "['ends', 'forked'] 1\n"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.parametrize("block", ["_forks.no_fork", "_forks.ForkSafeLock()"])
def test_a_child_does_not_wait_for_a_thread_of_its_parent(block: str) -> None:
    printed = program(
        block,
        """
        _forks.FORK_TIMEOUT = 0
        child = os.fork()
        if not child:
            with block:
                os._exit(7)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        over.set()
        """,
    )
    assert printed == "7\n"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_thread_in_such_a_block_may_enter_it_again_and_fork() -> None:
    printed = program(
        "_forks.no_fork",
        """
        over.set()
        thread.join()
        _forks.FORK_TIMEOUT = 3600
        with block:
            child = os.fork()
            with block:
                if not child:
                    os._exit(7)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        """,
    )
    assert printed == "7\n"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_child_can_use_a_name_that_another_thread_was_importing() -> None:
    code = """
import concurrent.futures.thread, logging, os, sys, threading
import cascade as cs

importing, forking = threading.Event(), threading.Event()

class Slow:
    def find_spec(self, name, path=None, target=None):
        if name == "cascade._run":
            importing.set()
            forking.wait()

sys.meta_path.insert(0, Slow())
from cascade import _forks
_forks.FORK_TIMEOUT = 3600
cs.task
os.register_at_fork(before=forking.set)
thread = threading.Thread(target=lambda: cs.run)
thread.start()
importing.wait()
child = os.fork()
if not child:
    os._exit(0 if cs.run else 1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    command = [sys.executable, "-W", "ignore:This process:DeprecationWarning", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANG, check=False)
    assert (done.stdout, done.stderr) == ("0\n", "")
