"""Prints the name of the running test every few seconds during a long test."""

import os
import threading
from time import monotonic

from stack.progress import INTERVAL


class Progress:
    """Plugin of pytest. Its thread prints a line for each `INTERVAL` seconds in which no test ends."""

    def __init__(self) -> None:
        self._terminal = os.dup(1)  # pytest redirects 1 while a test runs
        self._activity = "collecting tests"
        self._since = self._shown = monotonic()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="tests: progress", daemon=True)
        self._thread.start()

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._activity, self._since = nodeid, monotonic()
        self._shown = self._since

    def pytest_runtest_logreport(self) -> None:
        self._shown = monotonic()

    def pytest_unconfigure(self) -> None:
        self._ended.set()
        self._thread.join()
        os.close(self._terminal)

    def _watch(self) -> None:
        while not self._ended.wait(0.5):
            now = monotonic()
            if now - self._shown >= INTERVAL:
                self._shown = now
                os.write(self._terminal, f"\n{self._activity}, {now - self._since:.0f} s\n".encode())
