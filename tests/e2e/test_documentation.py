"""The test of docs/ci.md and the demo run over the real servers."""

import os
import re
import subprocess
import sys
from pathlib import Path

from stack.build import ROOT
from stack.picture import NAMES, draw
from tests.e2e.stacks import Processes


def test_the_test_of_the_page_about_ci(processes: Processes, tmp_path: Path) -> None:
    (code,) = re.findall(r"^```py\n(.*?)^```", (ROOT / "docs" / "ci.md").read_text(), re.MULTILINE | re.DOTALL)
    address = processes.ports.url(processes.ports.jaeger_http)
    assert "http://127.0.0.1:16686" in code
    (tmp_path / "test_page.py").write_text(code.replace("http://127.0.0.1:16686", address))
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_page.py"],
        cwd=tmp_path,
        env={**os.environ, **processes.environment, "OTEL_SERVICE_NAME": "my-service"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout


def test_the_demo_exports_the_trace_of_the_picture(processes: Processes) -> None:
    """`OTEL_EXPORTER_OTLP_ENDPOINT=… make demo`."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "demo.py")],
        env={**os.environ, **processes.environment},
        capture_output=True,
        text=True,
        check=True,
    )
    found = re.search(r"^Trace ([0-9a-f]{32})$", done.stdout, re.MULTILINE)
    assert found, done.stdout
    spans = processes.wait_for(found[1], lambda spans: bool(spans.named("run report")))
    assert spans.orphans() == []
    assert len(spans.children(spans.one("map(measure)"))) > 100
    shown, drawn = rows_of((ROOT / "docs" / "trace.svg").read_text()), rows_of(draw(spans))
    again = "make stack-picture, after make demo"
    assert [name for name in shown.keys() ^ drawn.keys() if not BY_CHANCE.fullmatch(name)] == [], again
    assert {name: drawn.get(name, indent) for name, indent in shown.items()} == shown, again


BY_CHANCE = re.compile("unpack_stdlib( skipped)?|(most_imported|longest_functions) wait")
"""Rows that depend on the files of earlier runs, and on the order of two tasks."""


def rows_of(picture: str) -> dict[str, int]:
    """Return the indentation of each span's name in a picture, with the digits removed from names."""
    rows = re.findall(r'<text x="(\d+)" y="\d+"(?: class="dim")?>([^<]+)', picture)
    return {re.sub(r"\d+", "", name): int(x) for x, name in rows if int(x) < NAMES}
