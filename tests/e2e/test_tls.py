"""The Collector with TLS and client certificates, as in docs/production.md."""

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
    """Create a certificate authority, and certificates of the Collector and of a client."""
    folder = tmp_path / "certificates"
    folder.mkdir()
    (folder / "names").write_text("subjectAltName=DNS:localhost\nauthorityKeyIdentifier=keyid\n")
    openssl = program("openssl")

    def call(command: str) -> None:
        subprocess.run([openssl, *command.split()], check=True, capture_output=True, cwd=folder)

    # With the extensions that Python 3.13 requires.
    usage = "-addext keyUsage=critical,keyCertSign,cRLSign"
    call(f"req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=authority {usage} -keyout ca.key -out clients.pem")
    for name in ("server", "client"):
        call(f"req -newkey rsa:2048 -nodes -subj /CN={name} -keyout {name}.key -out {name}.csr")
        signing = f"-CA clients.pem -CAkey ca.key -CAcreateserial -days 2 -extfile names -out {name}.pem"
        call(f"x509 -req -in {name}.csr {signing}")
    return folder


@pytest.fixture
def with_tls(own_processes: Processes, certificates: Path, tmp_path: Path) -> Processes:
    """Start the Collector with the configuration of docs/production.md as its second file."""
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
def environment(with_tls: Processes, certificates: Path) -> dict[str, str]:
    return {
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"https://localhost:{with_tls.ports.otlp_http}",
        "OTEL_EXPORTER_OTLP_CERTIFICATE": str(certificates / "clients.pem"),
        "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE": str(certificates / "client.pem"),
        "OTEL_EXPORTER_OTLP_CLIENT_KEY": str(certificates / "client.key"),
    }


def test_a_client_with_a_certificate_is_accepted(with_tls: Processes, environment: dict[str, str]) -> None:
    result = run(environment, "report")
    spans = with_tls.wait_for(result["trace_id"], lambda spans: bool(spans.named("run summary")))
    assert spans.orphans() == []


def test_a_client_without_a_certificate_is_refused_with_a_warning(environment: dict[str, str]) -> None:
    without = {name: value for name, value in environment.items() if "CLIENT" not in name}
    with Run(without, "report") as running:
        assert running.result()["value"].startswith("v1: 12 brief")
    assert "spans are not yet delivered" in running.stderr
