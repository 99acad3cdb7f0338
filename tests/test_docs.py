"""The Python blocks of each page of the documentation run, in their order on the page."""

import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from cascade.testing import OtlpReceiver
from tests.lab.time_limits import subprocess_environment
from tests.lab.waiting import HANG

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
CONFTEST = """
from tests.lab.time_limits import raise_time_limits

pytest_plugins = ["cascade.testing.plugin"]
raise_time_limits()
"""
LINK = re.compile(r"\]\((?!https?:)([^)#]+)(?:#([^)]+))?")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


def code_of(page: Path) -> str:
    return "\n\n".join(BLOCK.findall(page.read_text(encoding="utf-8")))


@pytest.mark.parametrize("page", [page for page in PAGES if code_of(page)], ids=lambda page: page.name)
def test_its_examples_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "test_page.py"
    script.write_text(code_of(page), encoding="utf-8")
    (tmp_path / "conftest.py").write_text(CONFTEST, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", subprocess_environment()["PYTHONPATH"])
    with OtlpReceiver() as receiver:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.http_endpoint)
        # In its own process, because pages set the tracer provider of the process. Test classes on a page run too.
        options = ["-q", "-p", "no:cacheprovider", "-p", "no:asyncio", "-W", "error"]
        command = [sys.executable, "-m", "pytest", *options, str(script)]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=HANG, check=False)
    no_tests_collected = 5
    assert done.returncode in {0, no_tests_collected}, done.stdout + done.stderr
    assert "were lost" not in done.stderr


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md"], ids=lambda page: page.name)
def test_its_links_resolve(page: Path) -> None:
    for link, anchor in LINK.findall(page.read_text(encoding="utf-8")):
        assert (page.parent / link).exists(), link
        if anchor:
            headings = HEADING.findall((page.parent / link).read_text(encoding="utf-8"))
            assert anchor in {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_generated_pages_are_current(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["generate.py", "--check"])
    runpy.run_path(str(ROOT / "docs" / "generate.py"), run_name="__main__")
