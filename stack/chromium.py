"""Screenshots of pages with headless Chromium, if one is installed."""

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome")
"""The programs that are searched for, in this order."""

PATIENCE = 60.0
"""Seconds for one screenshot. Chromium needs two on an idle machine."""

_SIZE = "1600,1200"
_BUDGET_MS = 10_000
"""Milliseconds of the page's own clock for its requests and animations. Chromium does not wait for them in real time."""


class ScreenshotError(Exception):
    """Chromium is not where the variable CHROMIUM names it, or saved no screenshot. The text ends with its output."""


def find(environment: Mapping[str, str]) -> str | None:
    """The path of Chromium: of the program that the variable CHROMIUM names, else of the first that is installed.

    CHROMIUM=none gives None.

    Raises:
        ScreenshotError: The program that CHROMIUM names does not exist.
    """
    named = environment.get("CHROMIUM")
    if named == "none":
        return None
    if named:
        if (found := shutil.which(named)) is None:
            raise ScreenshotError(f"CHROMIUM={named}: there is no such program")
        return found
    return next(filter(None, map(shutil.which, NAMES)), None)


def save(program: str, url: str, path: Path) -> None:
    """Save a screenshot of the page at the URL as a PNG file, in place of an earlier one.

    Raises:
        ScreenshotError: There is no screenshot after Chromium ended, or after `PATIENCE` seconds.
    """
    path.unlink(missing_ok=True)
    # With the user's own profile, Chromium would open the page in a window that is already there.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile, tempfile.TemporaryFile() as output:
        command = [
            program,
            "--headless=new",
            *(["--no-sandbox"] if os.geteuid() == 0 else []),  # Chromium refuses to start as root with its sandbox
            "--hide-scrollbars",
            f"--user-data-dir={profile}",
            f"--window-size={_SIZE}",
            f"--virtual-time-budget={_BUDGET_MS}",
            f"--screenshot={path.absolute()}",
            url,
        ]
        ended = _run(command, output.fileno())
        output.seek(0)
        text = output.read().decode(errors="replace")[-2000:].strip()
    if not path.exists():
        raise ScreenshotError(f"{program} {ended} and saved no screenshot of {url}\n{text}".strip())


def _run(command: list[str], output: int) -> str:
    """Run a command and its children to their end; returns how it ended."""
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True)
    try:
        return f"ended with exit code {process.wait(PATIENCE)}"
    except subprocess.TimeoutExpired:
        return f"did not end in {PATIENCE:g} s"
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
