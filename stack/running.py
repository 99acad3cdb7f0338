"""Finds the running stack, started by `make stack-up` or by Compose, and reads traces from its Jaeger."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from cascade.telemetry.attributes import RUN_ID, RUN_STARTED
from cascade.testing import Spans
from stack import up
from stack.addresses import HOST
from stack.build import ROOT
from stack.jaeger.client import Jaeger
from stack.process import ServerError, responds

_PUBLISHED = {"JAEGER_PORT": "16686", "PROMETHEUS_PORT": "9090", "GRAFANA_PORT": "3000"}
"""Variables of docker-compose.yml with the ports of pages, and their defaults."""

_TIMEOUT = 30.0
"""Seconds for the response of a server that accepted a connection."""


@dataclass(frozen=True, slots=True)
class Running:
    """URLs of the servers with pages, without a slash at the end. None means that the server is not running."""

    jaeger: str
    prometheus: str | None = None
    grafana: str | None = None


def find(folder: Path = up.FOLDER) -> Running:
    """Return the servers that `make stack-up` started with this folder, else those of Compose.

    Raises:
        ServerError: Neither stack is running.
    """
    state = up.State.load(folder)
    if state is not None:
        ports = state.ports
        prometheus = ports.url(ports.prometheus) if "Prometheus" in state.pids else None
        return Running(ports.url(ports.jaeger_http), prometheus)
    settings = ROOT / ".env"
    published = compose_urls(os.environ, settings.read_text() if settings.exists() else "")
    jaeger, prometheus, grafana = (published[name] for name in _PUBLISHED)
    if not responds(f"{jaeger}/api/services", _TIMEOUT):
        raise ServerError(
            f"The stack is not running: make stack-up, or docker compose up -d --wait. There is no Jaeger at {jaeger}"
        )
    return Running(
        jaeger,
        prometheus if responds(f"{prometheus}/-/ready", _TIMEOUT) else None,
        grafana if responds(f"{grafana}/api/health", _TIMEOUT) else None,
    )


def compose_urls(environment: Mapping[str, str], settings: str) -> dict[str, str]:
    """Return the URL of a page for each variable in `_PUBLISHED`.

    Args:
        environment: The variables of the process. They have priority over those of the file, as with Compose.
        settings: The text of the file `.env`.
    """
    line = re.compile(r"""^\s*(?:export\s+)?(\w+)\s*=\s*(["']?)(\d*)\2\s*(?:#.*)?$""", re.MULTILINE)
    ports = {name: port for name, _, port in line.findall(settings)} | dict(environment)
    return {name: f"http://{HOST}:{ports.get(name) or default}" for name, default in _PUBLISHED.items()}


def trace(trace_id: str | None, jaeger_url: str) -> Spans:
    """Read a trace from Jaeger.

    Args:
        trace_id: The id of the trace or of a run; None for the trace of the latest run of any service. The trace of a
            run that joined the trace of its caller is found by its spans.
        jaeger_url: The URL of Jaeger's query API.

    Raises:
        ServerError: Jaeger has no such trace or no run, or does not respond.
    """
    jaeger = Jaeger(jaeger_url)
    try:
        found = plain_id(trace_id) if trace_id else jaeger.latest_run()
        if found is None:
            raise ServerError("Jaeger has no run yet")
        spans = jaeger.trace(found) or _joined_by(str(UUID(found)), jaeger)
    except (OSError, RuntimeError) as error:
        raise ServerError(
            f"Jaeger at {jaeger_url} does not answer: {error}. make stack-up or docker compose up -d --wait starts it again"
        ) from error
    if not spans:
        raise ServerError("Jaeger has no such trace")
    return spans


def plain_id(text: str) -> str:
    """Return the id of a trace or run as 32 hex digits.

    Raises:
        ServerError: The text is not an id.
    """
    plain = text.replace("-", "").lower()
    if re.fullmatch("[0-9a-f]{1,32}", plain) is None:
        raise ServerError(f"{text!r} is no trace id, which has 32 hex digits")
    return plain.zfill(32)


def _joined_by(run_id: str, jaeger: Jaeger) -> Spans:
    """Return the trace of a run that joined the trace of a caller or of another run; no spans if there is none."""
    of_run = {RUN_ID: run_id}
    searches = (
        {**of_run, RUN_STARTED: "true"},
        of_run,
    )  # the trace that is not a part; else the part with a nested run
    services = jaeger.services()
    found = (trace_id for tags in searches for service in services for trace_id in jaeger.find(service, tags=tags))
    return next(map(jaeger.trace, found), Spans())
