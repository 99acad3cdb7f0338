"""Three places where the same runs are seen: receivers of our own, the stack's servers, and compose."""

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
from stack.process import until
from tests.lab.jaeger import Jaeger
from tests.lab.waiting import HANG

INTERVALS = local.Intervals(span_metrics="4s", scrape="1s")
"""Exemplars of span metrics are there from one interval to the next: Prometheus looks several times meanwhile."""

NO_COMPOSE = {name: str(reserved_port()) for name in ("JAEGER_PORT", "PROMETHEUS_PORT", "GRAFANA_PORT")}
"""Ports at which no server listens: a stack of Compose on this machine is not used."""

Predicate = Callable[[Spans], bool]


class Stack(Protocol):
    """What a run needs to be told, and what its reader may ask."""

    environment: dict[str, str]
    """Variables for the process that runs the workflow."""

    def wait_for(self, trace_id: str, predicate: Predicate) -> Spans:
        """The trace, once the predicate holds for it."""
        ...

    def find(self, service: str, *, operation: str | None = None, tags: Mapping[str, str] | None = None) -> set[str]:
        """The ids of the traces that a search lists."""
        ...


class Embedded:
    """`cascade.testing` alone."""

    def __init__(self, receiver: OtlpReceiver) -> None:
        self._receiver = receiver
        self.environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.http_endpoint}

    def wait_for(self, trace_id: str, predicate: Predicate) -> Spans:
        spans = self._receiver.wait_for(lambda all_: predicate(_of_trace(all_, trace_id)), timeout=HANG)
        return _of_trace(spans, trace_id)

    def find(self, service: str, *, operation: str | None = None, tags: Mapping[str, str] | None = None) -> set[str]:
        wanted = {"service": service, **({"operation": operation} if operation else {}), **(tags or {})}
        return {span.trace_id for span in self._receiver.spans if wanted.items() <= _searchable(span).items()}


class Servers:
    """Jaeger behind the Collector, wherever they run."""

    def __init__(self, jaeger_url: str, otlp_url: str) -> None:
        self.jaeger = Jaeger(jaeger_url)
        self.environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": otlp_url}

    def wait_for(self, trace_id: str, predicate: Predicate) -> Spans:
        return self.jaeger.wait_for(trace_id, predicate, timeout=HANG)

    def find(self, service: str, *, operation: str | None = None, tags: Mapping[str, str] | None = None) -> set[str]:
        return self.jaeger.find(service, operation=operation, tags=tags)


class Processes(Servers):
    """The stack's own programs and configuration, as processes that a test may kill."""

    def __init__(self, folder: Path, ports: Ports) -> None:
        super().__init__(ports.url(ports.jaeger_http), ports.url(ports.otlp_http))
        self.ports = ports
        self.jaeger_server = local.jaeger(folder, ports)
        self.collector = local.collector(folder, ports, INTERVALS)
        self.prometheus = local.prometheus(folder, ports, INTERVALS)
        self.mosquitto = local.mosquitto(folder, ports)

    def mqtt_url(self, user: str = local.RUNNER, password: str = local.PASSWORD) -> str:
        """What CASCADE_MQTT_URL has to be."""
        return f"mqtt://{user}:{password}@{self.ports.at(self.ports.mqtt)}"

    def wait_until_taken(self, count: int) -> None:
        """Return once the Collector, since it was started, has taken so many spans from us."""
        until(lambda: self._spans("accepted") >= count, f"the Collector has taken {count} spans")

    def wait_until_refused(self, count: int) -> None:
        """Return once the Collector, since it was started, has said "later" to so many spans."""
        until(lambda: self._spans("refused") >= count, f"the Collector has refused {count} spans")

    def _spans(self, verb: str) -> float:
        url = self.ports.url(self.ports.collector_self, "/metrics")
        with urllib.request.urlopen(url, timeout=HANG) as answer:  # noqa: S310 - our own Collector
            text = answer.read().decode()
        found = re.findall(rf"^otelcol_receiver_{verb}_spans\S*\{{[^}}]*\}} (\S+)$", text, re.MULTILINE)
        return sum(float(value) for value in found)


@contextmanager
def embedded() -> Iterator[Embedded]:
    with OtlpReceiver() as receiver:
        yield Embedded(receiver)


@contextmanager
def processes(folder: Path) -> Iterator[Processes]:
    """All servers, each ready."""
    found = Processes(folder, free_ports())
    with ExitStack() as running:
        for server in (found.prometheus, found.jaeger_server, found.collector, found.mosquitto):
            running.callback(server.stop)
            server.start()
        yield found


def stack_command(folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run `python -m stack` to its end, with variables on top of those of this process."""
    command = [sys.executable, "-m", "stack", "--folder", str(folder), "--free-ports", *arguments]
    environment = {**os.environ, **NO_COMPOSE, "BROWSER": "none", "CHROMIUM": "none", **variables}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def _of_trace(spans: Spans, trace_id: str) -> Spans:
    return spans.traces().get(trace_id, Spans())


def _searchable(span: ReceivedSpan) -> dict[str, str]:
    """What Jaeger finds a span by."""
    found = {name: str(value) for name, value in span.attributes.items()}
    found |= {"service": span.resource["service.name"], "operation": span.name}
    return {**found, "error": "true"} if span.status == "ERROR" else found
