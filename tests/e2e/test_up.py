"""`make stack-up`, `stack-show`, `stack-picture` and `stack-down`, in a temporary folder and on free ports."""

import os
import re
import signal
import subprocess
from pathlib import Path
from uuid import UUID

import pytest

from stack.addresses import Ports
from stack.up import State
from tests.e2e import stacks
from tests.e2e.runs import run
from tests.e2e.stacks import NO_COMPOSE, stack_command
from tests.lab.waiting import until_blocking


@pytest.mark.usefixtures("installed_servers")
def test_the_stack_starts_shows_a_run_and_stops(tmp_path: Path) -> None:
    result = stack_command(tmp_path, "up").stdout
    try:
        assert [line.split()[0] for line in result.splitlines()[:4]] == [
            "Jaeger",
            "Collector",
            "Mosquitto",
            "Prometheus",
        ]
        assert stack_command(tmp_path, "up").stdout == result
        assert stack_command(tmp_path, "look").stderr == "Jaeger has no run yet\n"
        jaeger, collector = re.findall(r"http://\S+", result)[:2]
        trace_id = run({"OTEL_EXPORTER_OTLP_ENDPOINT": collector}, "report")["trace_id"]
        stacks.Servers(jaeger, collector).wait_for(trace_id, lambda spans: bool(spans.named("run summary")))
        assert f"trace {trace_id}" in stack_command(tmp_path, "show").stdout
        other = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector, "OTEL_SERVICE_NAME": "billing"}
        later = run(other, "report")["trace_id"]
        stacks.Servers(jaeger, collector).wait_for(later, lambda spans: bool(spans.named("run summary")))
        assert f"trace {later}" in stack_command(tmp_path, "show").stdout
        assert f"trace {trace_id}" in stack_command(tmp_path, "show", str(UUID(trace_id))).stdout
        assert f"trace {trace_id}" in stack_command(tmp_path, "picture", trace_id).stdout
        missing = stack_command(tmp_path, "show", "0" * 31 + "1")
        assert (missing.returncode, missing.stderr) == (1, "Jaeger has no such trace\n")
        assert stack_command(tmp_path, "show", "latest").stderr == "'latest' is no trace id, which has 32 hex digits\n"
    finally:
        ended = stack_command(tmp_path, "down").stdout
    assert ended == "Ended Jaeger, Collector, Mosquitto, Prometheus.\n"
    assert stack_command(tmp_path, "down").stdout == "The stack is not running.\n"
    for command in ("show", "look"):
        done = stack_command(tmp_path, command)
        assert done.returncode == 1
        assert done.stderr == (
            "The stack is not running: make stack-up, or docker compose up -d --wait. "
            f"There is no Jaeger at http://127.0.0.1:{NO_COMPOSE['JAEGER_PORT']}\n"
        )


@pytest.mark.usefixtures("installed_servers")
def test_the_stack_starts_again_if_one_of_its_servers_was_killed(tmp_path: Path) -> None:
    stack_command(tmp_path, "up")
    try:
        before = State.load(tmp_path)
        assert before
        os.kill(before.pids["Jaeger"], signal.SIGKILL)
        until_blocking(lambda: "Jaeger" not in before.alive())
        assert "make stack-up or docker compose" in stack_command(tmp_path, "show").stderr
        stack_command(tmp_path, "up")
        assert stack_command(tmp_path, "look").stderr == "Jaeger has no run yet\n"
    finally:
        stack_command(tmp_path, "down")
    assert before.alive() == {}


def test_a_process_with_the_id_of_an_ended_server_is_not_stopped(tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "600"]) as other:
        try:
            State(Ports(), {"Jaeger": other.pid}, {"Jaeger": "1"}).save(tmp_path)
            assert stack_command(tmp_path, "down").stdout == "The stack is not running.\n"
            assert other.poll() is None
        finally:
            other.kill()
