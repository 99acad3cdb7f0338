"""Screenshots of pages with headless Chromium, if one is installed."""

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome")
"""Names of the program, in the order of the search."""

TIMEOUT = 60.0
"""Seconds for one screenshot. Chromium takes two seconds on an idle machine."""

_SIZE = "1600,1200"
_BUDGET_MS = 10_000
"""Milliseconds of virtual time for the requests and animations of a page."""


class ScreenshotError(Exception):
    """The program in the variable CHROMIUM does not exist, or saved no screenshot. The text ends with its output."""


def find(environment: Mapping[str, str]) -> str | None:
    """Return the path of Chromium: the program in the variable CHROMIUM, else the first installed one of `NAMES`.

    CHROMIUM=none returns None.

    Raises:
        ScreenshotError: The program in CHROMIUM does not exist.
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
    """Save a screenshot of a page as a PNG file; replaces an earlier one.

    Raises:
        ScreenshotError: Chromium ended without a screenshot, or did not end in `TIMEOUT` seconds.
    """
    path.unlink(missing_ok=True)
    # With the user's profile, Chromium would open the page in an existing window.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile, tempfile.TemporaryFile() as output:
        command = [
            program,
            "--headless=new",
            *(["--no-sandbox"] if os.geteuid() == 0 else []),  # Chromium does not start as root with its sandbox
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
    """Run a command and its children to their end; return a text about the end."""
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True)
    try:
        return f"ended with exit code {process.wait(TIMEOUT)}"
    except subprocess.TimeoutExpired:
        return f"did not end in {TIMEOUT:g} s"
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
