"""Builds the wheel, installs it without extras in an environment without this checkout, and runs a workflow there."""

import re
import subprocess
import sys
import tempfile
import venv
import zipfile
from email import message_from_bytes
from pathlib import Path

ROOT = Path(__file__).parents[2]
CORE = """
import pathlib, sys
import cascade as cs
import cascade.testing
from cascade.telemetry.schema import load

assert "site-packages" in cs.__file__, cs.__file__
assert (pathlib.Path(cs.__file__).parent / "py.typed").exists()
assert load("message")["title"]
assert cs.run(cs.task(lambda: 42, name="answer")()) == 42
for use, extra in ((lambda: cs.OtelConnector, "otel"), (lambda: cs.cli(cs.task(lambda: 1, name="t")()), "cli")):
    try:
        use()
    except ImportError as error:
        assert f"pip install 'cascade-runs[{extra}]'" in str(error), error
    else:
        sys.exit(f"the wheel installs the extra {extra} by default")
"""


def check_description(wheel: Path) -> None:
    """Check that the README in the wheel has no relative link: a package index shows it without the repository."""
    with zipfile.ZipFile(wheel) as files:
        (name,) = (name for name in files.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = message_from_bytes(files.read(name))
    assert metadata["Description-Content-Type"] == "text/markdown"
    page = str(metadata.get_payload())
    links = re.findall(r"\]\(([^)]*)\)|(?:href|src)=[\"']([^\"']*)|^\[[^\]]+\]: *(\S+)", page, re.MULTILINE)
    relative = [link for found in links for link in found if link and not link.startswith("https://")]
    assert relative == [], relative
    assert "`docs/workflows.md`" in page, page


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, str(ROOT)]
        subprocess.run(build, check=True, stdout=subprocess.DEVNULL)
        (wheel,) = Path(folder).glob("*.whl")
        check_description(wheel)
        home = Path(folder, "venv")
        venv.create(home, with_pip=True)
        python = str(home / "bin" / "python")
        install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index", str(wheel)]
        subprocess.run(install, check=True)
        subprocess.run([python, "-W", "error", "-c", CORE], check=True, cwd=folder, stderr=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
