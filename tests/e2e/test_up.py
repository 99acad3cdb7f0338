"""`make stack-up`, `stack-show`, `stack-picture` and `stack-down`, in a folder and on ports of the test's own."""

import re
import subprocess
import sys
from pathlib import Path
from uuid import UUID

import pytest

from stack.build import ROOT
from tests.e2e import stacks
from tests.e2e.runs import run


def stack(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "stack", "--folder", str(folder), "--free-ports", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.usefixtures("servers_are_there")
def test_the_stack_goes_up_takes_a_run_shows_it_and_goes_down(tmp_path: Path) -> None:
    said = stack(tmp_path, "up").stdout
    try:
        assert [line.split()[0] for line in said.splitlines()[:4]] == ["Jaeger", "Collector", "Mosquitto", "Prometheus"]
        assert stack(tmp_path, "up").stdout == said
        jaeger, collector = re.findall(r"http://\S+", said)[:2]
        trace_id = run({"OTEL_EXPORTER_OTLP_ENDPOINT": collector}, "report")["trace_id"]
        stacks.Servers(jaeger, collector).wait_for(trace_id, lambda spans: bool(spans.named("run summary")))
        assert f"trace {trace_id}" in stack(tmp_path, "show").stdout
        other = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector, "OTEL_SERVICE_NAME": "billing"}
        later = run(other, "report")["trace_id"]
        stacks.Servers(jaeger, collector).wait_for(later, lambda spans: bool(spans.named("run summary")))
        assert f"trace {later}" in stack(tmp_path, "show").stdout
        assert f"trace {trace_id}" in stack(tmp_path, "show", str(UUID(trace_id))).stdout
        assert f"trace {trace_id}" in stack(tmp_path, "picture", trace_id).stdout
        missing = stack(tmp_path, "show", "0" * 31 + "1")
        assert (missing.returncode, missing.stderr) == (1, "Jaeger has no such trace\n")
        assert stack(tmp_path, "show", "latest").stderr == "'latest' is no trace id, which has 32 hex digits\n"
    finally:
        ended = stack(tmp_path, "down").stdout
    assert ended == "Ended Jaeger, Collector, Mosquitto, Prometheus.\n"
    assert stack(tmp_path, "down").stdout == "The stack is not running.\n"
    assert "make stack-up" in stack(tmp_path, "show").stderr
