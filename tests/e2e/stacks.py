"""The three stacks that receive the same runs: receivers in the process, server processes, and Compose."""

import os
import re
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Protocol

from cascade.testing import OtlpReceiver, ReceivedSpan, Spans
from stack import local
from stack.addresses import Ports, free_ports, reserved_port
from stack.build import ROOT
from stack.jaeger.client import Jaeger
from stack.process import until
from tests.lab.waiting import HANG

INTERVALS = local.Intervals(span_metrics="4s", scrape="1s")
"""Exemplars of span metrics exist for one interval, so that Prometheus scrapes several times per interval."""

NO_COMPOSE = {name: str(reserved_port()) for name in ("JAEGER_PORT", "PROMETHEUS_PORT", "GRAFANA_PORT")}
"""Ports without a server, so that a running stack of Compose is not used."""

Predicate = Callable[[Spans], bool]


class Stack(Protocol):
    """Receives the spans of runs and returns them."""

    environment: dict[str, str]
    """Variables for the process that runs the workflow."""

    def wait_for(self, trace_id: str, predicate: Predicate) -> Spans:
        """Return the trace as soon as the predicate is true for it."""
        ...

    def find(self, service: str, *, operation: str | None = None, tags: Mapping[str, str] | None = None) -> set[str]:
        """Return the ids of the traces that a search finds."""
        ...


class Embedded:
    """The OTLP receiver of `cascade.testing`."""

    def __init__(self, receiver: OtlpReceiver) -> None:
        self._receiver = receiver
        self.environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.http_endpoint}

    def wait_for(self, trace_id: str, predicate: Predicate) -> Spans:
        spans = self._receiver.wait_for(lambda all_: predicate(_of_trace(all_, trace_id)), timeout=HANG)
        return _of_trace(spans, trace_id)

    def find(self, service: str, *, operation: str | None = None, tags: Mapping[str, str] | None = None) -> set[str]:
        expected = {"service": service, **({"operation": operation} if operation else {}), **(tags or {})}
        return {span.trace_id for span in self._receiver.spans if expected.items() <= _searchable(span).items()}


class Servers:
    """The Collector and Jaeger."""

    def __init__(self, jaeger_url: str, otlp_url: str) -> None:
        self.jaeger = Jaeger(jaeger_url)
        self.environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": otlp_url}

    def wait_for(self, trace_id: str, predicate: Predicate) -> Spans:
        return self.jaeger.wait_for(trace_id, predicate, timeout=HANG)

    def find(self, service: str, *, operation: str | None = None, tags: Mapping[str, str] | None = None) -> set[str]:
        return self.jaeger.find(service, operation=operation, tags=tags)


class Processes(Servers):
    """The servers as processes that a test may kill."""

    def __init__(self, folder: Path, ports: Ports) -> None:
        super().__init__(ports.url(ports.jaeger_http), ports.url(ports.otlp_http))
        self.ports = ports
        self.jaeger_server = local.jaeger(folder, ports)
        self.collector = local.collector(folder, ports, INTERVALS)
        self.prometheus = local.prometheus(folder, ports, INTERVALS)
        self.mosquitto = local.mosquitto(folder, ports)

    def mqtt_url(self, user: str = local.RUNNER, password: str = local.PASSWORD) -> str:
        """Return the value of CASCADE_MQTT_URL."""
        return f"mqtt://{user}:{password}@{self.ports.at(self.ports.mqtt)}"

    def wait_until_accepted(self, count: int) -> None:
        """Wait until the Collector has accepted `count` spans since its start."""
        until(lambda: self._spans("accepted") >= count, f"the Collector has accepted {count} spans")

    def wait_until_refused(self, count: int) -> None:
        """Wait until the Collector has refused `count` spans since its start."""
        until(lambda: self._spans("refused") >= count, f"the Collector has refused {count} spans")

    def _spans(self, verb: str) -> float:
        url = self.ports.url(self.ports.collector_self, "/metrics")
        with urllib.request.urlopen(url, timeout=HANG) as response:  # noqa: S310 - the Collector of the tests
            text = response.read().decode()
        found = re.findall(rf"^otelcol_receiver_{verb}_spans\S*\{{[^}}]*\}} (\S+)$", text, re.MULTILINE)
        return sum(float(value) for value in found)


@contextmanager
def embedded() -> Iterator[Embedded]:
    with OtlpReceiver() as receiver:
        yield Embedded(receiver)


@contextmanager
def processes(folder: Path) -> Iterator[Processes]:
    """Start all servers."""
    found = Processes(folder, free_ports())
    with ExitStack() as running:
        for server in (found.prometheus, found.jaeger_server, found.collector, found.mosquitto):
            running.callback(server.stop)
            server.start()
        yield found


def stack_command(folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run `python -m stack` with additional variables."""
    command = [sys.executable, "-m", "stack", "--folder", str(folder), "--free-ports", *arguments]
    environment = {**os.environ, **NO_COMPOSE, "BROWSER": "none", "CHROMIUM": "none", **variables}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def _of_trace(spans: Spans, trace_id: str) -> Spans:
    return spans.traces().get(trace_id, Spans())


def _searchable(span: ReceivedSpan) -> dict[str, str]:
    """Return the fields by which Jaeger finds a span."""
    found = {name: str(value) for name, value in span.attributes.items()}
    found |= {"service": span.resource["service.name"], "operation": span.name}
    return {**found, "error": "true"} if span.status == "ERROR" else found
