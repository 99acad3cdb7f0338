"""The programs of `docs/servers.md`, and the servers that run them."""

import concurrent.futures
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from cascade.testing import OtlpReceiver
from stack.build import ROOT
from tests.connectors.otel.instances import runs_by_instance, spans_by_instance
from tests.lab.waiting import HANG

BLOCK = re.compile(r"^## (.+?)$|^```py\n(.*?)^```", re.MULTILINE | re.DOTALL)


def example(section: str) -> str:
    """Return the program of a section of the page."""
    found: dict[str, str] = {}
    current = ""
    for title, code in BLOCK.findall((ROOT / "docs" / "servers.md").read_text("utf-8")):
        current = title or current
        if code:
            found[current] = code
    return found[section]


def environment(receiver: OtlpReceiver, **more: str) -> dict[str, str]:
    inherited = {name: text for name, text in os.environ.items() if not name.startswith(("OTEL_", "CASCADE_"))}
    exporting = {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.http_endpoint, "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}
    return {**inherited, **exporting, "PYTHONUNBUFFERED": "1", **more}


@contextmanager
def serving(
    folder: Path, environ: Mapping[str, str], *arguments: str, descriptor: int = 0, launcher: tuple[str, ...] = ()
) -> Iterator[subprocess.Popen[bytes]]:
    """Start a server process, and stop it with SIGTERM. `output.txt` has its output, which is shown if the test fails."""
    command = [*launcher, sys.executable, "-m", *arguments]
    log = folder / "output.txt"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=folder, env=environ, stdout=output, stderr=output, pass_fds=(descriptor,) if descriptor else ()
        )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(HANG)
        finally:
            process.kill()
            print(log.read_text())  # noqa: T201 - pytest shows it
    assert "lost" not in log.read_text()


def run(folder: Path, environ: Mapping[str, str], *command: str) -> str:
    done = subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, timeout=HANG, check=False)
    assert done.returncode == 0, done.stderr
    assert "lost" not in done.stderr
    return done.stdout


@contextmanager
def listening() -> Iterator[tuple[str, int]]:
    """Return a socket that a server inherits, so that no other program can use the port."""
    with socket.create_server(("127.0.0.1", 0)) as bound:
        os.set_inheritable(bound.fileno(), True)
        yield f"http://127.0.0.1:{bound.getsockname()[1]}", bound.fileno()


def get(url: str, method: str = "GET", headers: Mapping[str, str] | None = None) -> str:
    request = urllib.request.Request(url, method=method, headers=dict(headers or {}))  # noqa: S310 - ours
    with urllib.request.urlopen(request, timeout=HANG) as answer:  # noqa: S310 - ours
        return str(answer.read().decode())


def get_all(urls: list[str]) -> list[str]:
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        return list(pool.map(get, urls))


def check_counts(receiver: OtlpReceiver, task: str, runs: int) -> Counter[str]:
    """Check that runs, spans and metrics are consistent for each process; return the number of runs per process."""
    by_process = spans_by_instance(receiver, f"run {task}")
    assert by_process.total() == runs
    assert spans_by_instance(receiver, task) == spans_by_instance(receiver, f"run {task} started") == by_process
    assert runs_by_instance(receiver) == by_process
    assert receiver.spans.orphans() == []
    return by_process
