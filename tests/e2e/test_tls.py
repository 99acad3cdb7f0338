"""The page about production: a Collector with TLS, which asks for certificates."""

import re
import subprocess
from pathlib import Path

import pytest

from stack.build import ROOT
from tests.e2e.runs import Run, run
from tests.e2e.stacks import Processes
from tests.lab.programs import program


@pytest.fixture
def certificates(tmp_path: Path) -> Path:
    """An authority, and what it has signed for the Collector and for a program that may send."""
    folder = tmp_path / "certificates"
    folder.mkdir()
    (folder / "names").write_text("subjectAltName=DNS:localhost\nauthorityKeyIdentifier=keyid\n")
    openssl = program("openssl")

    def call(command: str) -> None:
        subprocess.run([openssl, *command.split()], check=True, capture_output=True, cwd=folder)

    # With what Python 3.13 demands of an authority, and of what it has signed.
    usage = "-addext keyUsage=critical,keyCertSign,cRLSign"
    call(f"req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=authority {usage} -keyout ca.key -out clients.pem")
    for name in ("server", "client"):
        call(f"req -newkey rsa:2048 -nodes -subj /CN={name} -keyout {name}.key -out {name}.csr")
        signing = f"-CA clients.pem -CAkey ca.key -CAcreateserial -days 2 -extfile names -out {name}.pem"
        call(f"x509 -req -in {name}.csr {signing}")
    return folder


@pytest.fixture
def guarded(own_processes: Processes, certificates: Path, tmp_path: Path) -> Processes:
    """The Collector with the lines of docs/production.md as its second file."""
    page = (ROOT / "docs" / "production.md").read_text()
    (lines,) = re.findall(r"^```yaml\n(receivers:.*?)^```", page, re.MULTILINE | re.DOTALL)
    lines = lines.replace("/etc/otelcol/tls", str(certificates))
    lines = lines.replace("0.0.0.0:4318", own_processes.ports.at(own_processes.ports.otlp_http))
    second = tmp_path / "tls.yaml"
    second.write_text(lines)
    own_processes.collector.stop()
    own_processes.collector.command += ["--config", str(second)]
    own_processes.collector.start()
    return own_processes


@pytest.fixture
def environment(guarded: Processes, certificates: Path) -> dict[str, str]:
    return {
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"https://localhost:{guarded.ports.otlp_http}",
        "OTEL_EXPORTER_OTLP_CERTIFICATE": str(certificates / "clients.pem"),
        "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE": str(certificates / "client.pem"),
        "OTEL_EXPORTER_OTLP_CLIENT_KEY": str(certificates / "client.key"),
    }


def test_who_has_a_certificate_is_heard(guarded: Processes, environment: dict[str, str]) -> None:
    said = run(environment, "report")
    spans = guarded.wait_for(said["trace_id"], lambda spans: bool(spans.named("run summary")))
    assert spans.orphans() == []


def test_who_has_none_is_not_and_is_told(environment: dict[str, str]) -> None:
    without = {name: value for name, value in environment.items() if "CLIENT" not in name}
    with Run(without, "report") as running:
        assert running.result()["value"].startswith("v1: 12 brief")
    assert "spans are not yet delivered" in running.stderr
