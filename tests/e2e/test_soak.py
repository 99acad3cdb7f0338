"""Continuous runs while the Collector is refused, full, restarted and killed in random order: no span and no run is lost.

`make soak` disturbs it for ten minutes; `make test-large` once in each way.
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

_DURATION = float(os.environ.get("CASCADE_SOAK_SECONDS", "0"))  # read now: tests do not see the caller's variables
_RUNS = 10
"""Runs of each program that end during a disturbance, and at most as many between two."""
_QUEUE_BYTES = "400000"
"""A sending queue that some 1,200 spans fill."""
_SPANS = Counter({"run count": 1, "run count started": 1, "map(step)": 1, "step": 20, "count": 1})

logger = logging.getLogger(__name__)

pytestmark = [pytest.mark.large, pytest.mark.timeout(_DURATION + 1800)]


Disturbance = tuple[str, Callable[[Processes, FaultyReceiver], AbstractContextManager[None]]]


class Program:
    """A process that starts one run after another, with an `OtelConnector` of its own for each or one for all."""

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
        """Return once so many further runs have ended."""
        wanted = len(self.traces) + more
        until(lambda: len(self.traces) >= wanted or self._process.poll() is not None, "the program's runs end")
        assert self._process.poll() is None, self._errors

    def stop(self) -> str:
        """End it after its present run; what it wrote to stderr."""
        assert self._process.stdin
        self._process.stdin.close()
        code = self._process.wait(NEVER)
        self.close()
        assert code == 0, self._errors
        return "".join(self._errors)

    def close(self) -> None:
        """Kill it if it still runs, and read its output to the end."""
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
    """Nothing listens."""
    stack.collector.stop()
    yield
    stack.collector.start()


@contextmanager
def full(stack: Processes, backend: FaultyReceiver) -> Iterator[None]:
    """The backend is away, and the queue has no room."""
    backend.fault = Fault.unavailable()
    stack.wait_until_refused(1)
    yield
    backend.fault = None


@contextmanager
def restarted(stack: Processes, _: FaultyReceiver) -> Iterator[None]:
    """An upgrade: SIGTERM, and a new process at once."""
    stack.collector.stop()
    stack.collector.start()
    yield


@contextmanager
def killed(stack: Processes, _: FaultyReceiver) -> Iterator[None]:
    """SIGKILL, and a new process at once."""
    stack.collector.kill()
    stack.collector.start()
    yield


DISTURBANCES: list[Disturbance] = [("refused", refused), ("full", full), ("restarted", restarted), ("killed", killed)]


def test_no_span_and_no_run_is_lost(servers_are_there: None, tmp_path: Path) -> None:
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
    """A Collector with a small queue, whose backend is ours, and a Prometheus."""
    ports = dataclasses.replace(free_ports(), jaeger_otlp=int(backend.grpc_endpoint.rpartition(":")[2]))
    stack = Processes(folder, ports)
    stack.collector.environment = {**stack.collector.environment, "COLLECTOR_QUEUE_BYTES": _QUEUE_BYTES}
    for server in (stack.prometheus, stack.collector):
        running.callback(server.stop)
        server.start()
    return stack


def _plan(rng: random.Random) -> Iterator[tuple[Disturbance, int]]:
    """Each disturbance once; more of them while the time lasts. With the runs of each program before it."""
    deadline = time.monotonic() + _DURATION
    for disturbance in rng.sample(DISTURBANCES, len(DISTURBANCES)):
        yield disturbance, rng.randint(1, _RUNS)
    while time.monotonic() < deadline:
        yield rng.choice(DISTURBANCES), rng.randint(1, _RUNS)


def _wait_for_all(backend: FaultyReceiver, programs: list[Program]) -> None:
    """Return once each run that has ended by now has arrived."""
    traces = [trace for program in programs for trace in list(program.traces)]
    with suppress(ServerError):
        until(lambda: not _incomplete(backend, traces), "each run has arrived")
    assert _incomplete(backend, traces) == []


def _incomplete(backend: FaultyReceiver, traces: list[str]) -> list[str]:
    """The traces that have not arrived whole. A span may arrive twice, when its answer was lost."""
    arrived: dict[str, dict[str, str]] = {}
    for span in backend.spans:
        arrived.setdefault(span.trace_id, {})[span.span_id] = span.name
    return [trace for trace in traces if Counter(arrived.get(trace, {}).values()) != _SPANS]
