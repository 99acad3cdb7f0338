"""Watched objects at a fork and at the exit of their process."""

import os
import subprocess
import sys
import textwrap

import pytest

from tests.lab.waiting import HANG


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_an_object_that_raises_does_not_affect_the_others() -> None:
    code = textwrap.dedent("""
        import os
        from cascade.connectors import _lifetime

        def fails():
            raise ValueError("ours")

        class Watched:
            def __init__(self, reset, start, finish):
                self.reset_after_fork, self._start, self._finish = reset, start, finish

            def start_exit(self):
                self._start()
                return self._finish

        def prints(text):
            return lambda: print(text, flush=True)

        objects = [
            Watched(fails, fails, prints("never")),
            Watched(prints("reset"), prints("started"), fails),
            Watched(prints("reset"), prints("started"), prints("finished")),
        ]
        for each in objects:
            _lifetime.watch(each)
        if not os.fork():
            os._exit(0)
        os.wait()
    """)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=HANG, check=False)
    assert done.stdout.split() == ["reset", "reset", "started", "started", "finished"]
    assert done.stderr.count("ValueError: ours") == 3


def test_an_interrupt_ends_the_last_flush_with_one_line() -> None:
    code = textwrap.dedent("""
        import signal
        from cascade.connectors import _lifetime

        class Watched:
            def reset_after_fork(self): ...

            def start_exit(self):
                return lambda: signal.raise_signal(signal.SIGINT)

        objects = [Watched(), Watched()]
        for each in objects:
            _lifetime.watch(each)
    """)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=HANG, check=True)
    assert done.stderr.splitlines() == ["The last flush was interrupted; telemetry that was not delivered is lost"]
