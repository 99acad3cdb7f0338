"""Continuous runs lose no span while the Collector is unreachable, full, restarted and killed in random order.

`make soak` runs for ten minutes. `make test-large` causes each disturbance once.
"""

import dataclasses
import json
import logging
import os
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from stack.addresses import free_ports
from stack.build import ROOT
from stack.process import ServerError, until
from tests.e2e.prometheus import Prometheus
from tests.e2e.stacks import Processes
from tests.lab.receiver import Fault, FaultyReceiver
from tests.lab.waiting import NEVER

_DURATION = float(
    os.environ.get("CASCADE_SOAK_SECONDS", "0")
)  # read at import: tests run without the caller's variables
_RUNS = 10
"""Runs of each program during a disturbance, and the largest number between two disturbances."""
_QUEUE_BYTES = "400000"
"""A sending queue for about 1,200 spans."""
_SPANS = Counter({"run count": 1, "run count started": 1, "map(step)": 1, "step": 20, "count": 1})

logger = logging.getLogger(__name__)

pytestmark = [pytest.mark.large, pytest.mark.timeout(_DURATION + 1800)]


Disturbance = tuple[str, Callable[[Processes, FaultyReceiver], AbstractContextManager[None]]]


class Program:
    """A process that starts runs in sequence, with one `OtelConnector` or one per run."""

    def __init__(self, endpoint: str, connectors: str, protocol: str) -> None:
        environment = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint,
            "OTEL_EXPORTER_OTLP_PROTOCOL": protocol,
            "OTEL_SERVICE_NAME": "soak",
        }
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.e2e.workflows", "continuous", connectors],
            cwd=ROOT,
            env={**os.environ, **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.traces = list[str]()
        self._errors = list[str]()
        self._readers = [
            threading.Thread(target=self._read_traces, daemon=True),
            threading.Thread(target=self._read_errors, daemon=True),
        ]
        for reader in self._readers:
            reader.start()

    def wait_for_runs(self, more: int) -> None:
        """Wait until `more` further runs have ended."""
        expected = len(self.traces) + more
        until(lambda: len(self.traces) >= expected or self._process.poll() is not None, "the program's runs end")
        assert self._process.poll() is None, self._errors

    def stop(self) -> str:
        """Stop the process after its current run; return its output on stderr."""
        assert self._process.stdin
        self._process.stdin.close()
        code = self._process.wait(NEVER)
        self.close()
        assert code == 0, self._errors
        return "".join(self._errors)

    def close(self) -> None:
        """Kill the process if it is running, and read its output to the end."""
        with self._process:
            self._process.kill()
            for reader in self._readers:
                reader.join()

    def _read_traces(self) -> None:
        assert self._process.stdout
        for line in self._process.stdout:
            self.traces.append(json.loads(line)["trace_id"])

    def _read_errors(self) -> None:
        assert self._process.stderr
        for line in self._process.stderr:
            self._errors.append(line)


@contextmanager
def refused(stack: Processes, _: FaultyReceiver) -> Iterator[None]:
    """No server listens on the port."""
    stack.collector.stop()
    yield
    stack.collector.start()


@contextmanager
def full(stack: Processes, backend: FaultyReceiver) -> Iterator[None]:
    """The backend is unavailable, and the queue is full."""
    backend.fault = Fault.unavailable()
    stack.wait_until_refused(1)
    yield
    backend.fault = None


@contextmanager
def restarted(stack: Processes, _: FaultyReceiver) -> Iterator[None]:
    """The Collector is stopped with SIGTERM and started again."""
    stack.collector.stop()
    stack.collector.start()
    yield


@contextmanager
def killed(stack: Processes, _: FaultyReceiver) -> Iterator[None]:
    """The Collector is killed with SIGKILL and started again."""
    stack.collector.kill()
    stack.collector.start()
    yield


DISTURBANCES: list[Disturbance] = [("refused", refused), ("full", full), ("restarted", restarted), ("killed", killed)]


def test_no_span_and_no_run_is_lost(installed_servers: None, tmp_path: Path) -> None:
    seed = random.SystemRandom().randrange(2**32)
    logger.info("random seed %d", seed)
    with ExitStack() as running:
        backend = running.enter_context(FaultyReceiver())
        stack = _stack(tmp_path, backend, running)
        programs = [
            Program(stack.ports.url(stack.ports.otlp_http), "each", "http/protobuf"),
            Program(stack.ports.url(stack.ports.otlp_grpc), "shared", "grpc"),
        ]
        for program in programs:
            running.callback(program.close)
        for (name, disturbance), pause in _plan(random.Random(seed)):
            for program in programs:
                program.wait_for_runs(pause)
            logger.info("%s", name)
            with disturbance(stack, backend):
                for program in programs:
                    program.wait_for_runs(_RUNS)
        _wait_for_all(backend, programs)
        errors = [program.stop() for program in programs]
        _wait_for_all(backend, programs)
        assert not [line for text in errors for line in text.splitlines() if "lost" in line and "0 lost" not in line]
        runs = sum(len(program.traces) for program in programs)
        logger.info("%d runs", runs)
        prometheus = Prometheus(stack.ports.url(stack.ports.prometheus))
        prometheus.wait_for_value('sum(cascade_run_duration_seconds_count{job="soak"})', runs)
        prometheus.wait_for_value('count(cascade_run_duration_seconds_count{job="soak"})', len(programs))
        prometheus.wait_for_value('sum(cascade_run_active{job="soak"})', 0)
        prometheus.wait_for_value('sum(cascade_task_duration_seconds_count{job="soak"})', runs * 21)


def _stack(folder: Path, backend: FaultyReceiver, running: ExitStack) -> Processes:
    """Start a Collector with a small queue that sends to `backend`, and a Prometheus."""
    ports = dataclasses.replace(free_ports(), jaeger_otlp=int(backend.grpc_endpoint.rpartition(":")[2]))
    stack = Processes(folder, ports)
    stack.collector.environment = {**stack.collector.environment, "COLLECTOR_QUEUE_BYTES": _QUEUE_BYTES}
    for server in (stack.prometheus, stack.collector):
        running.callback(server.stop)
        server.start()
    return stack


def _plan(rng: random.Random) -> Iterator[tuple[Disturbance, int]]:
    """Yield each disturbance once, then more until the time is over, each with a number of runs before it."""
    deadline = time.monotonic() + _DURATION
    for disturbance in rng.sample(DISTURBANCES, len(DISTURBANCES)):
        yield disturbance, rng.randint(1, _RUNS)
    while time.monotonic() < deadline:
        yield rng.choice(DISTURBANCES), rng.randint(1, _RUNS)


def _wait_for_all(backend: FaultyReceiver, programs: list[Program]) -> None:
    """Wait until all traces of the ended runs are complete at the backend."""
    traces = [trace for program in programs for trace in list(program.traces)]
    with suppress(ServerError):
        until(lambda: not _incomplete(backend, traces), "all traces are complete")
    assert _incomplete(backend, traces) == []


def _incomplete(backend: FaultyReceiver, traces: list[str]) -> list[str]:
    """Return the incomplete traces. A span may arrive twice, if the response to its request was lost."""
    arrived: dict[str, dict[str, str]] = {}
    for span in backend.spans:
        arrived.setdefault(span.trace_id, {})[span.span_id] = span.name
    return [trace for trace in traces if Counter(arrived.get(trace, {}).values()) != _SPANS]
