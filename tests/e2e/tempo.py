"""A Tempo process and a client of its query API: https://grafana.com/docs/tempo/v2.10.x/api_docs/."""

import json
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from stack.addresses import HOST, reserved_port
from stack.build import ROOT
from stack.process import Server, responds
from tests.lab.waiting import HANG

Json = dict[str, Any]


class Tempo:
    """The query API.

    Args:
        url: Its address, without a slash at the end.
        environment: The variables with which a run exports to it.
    """

    def __init__(self, url: str, environment: Mapping[str, str]) -> None:
        self._url = url
        self.environment = environment

    def spans(self, trace_id: str) -> list[Json]:
        """Return the spans of a trace in OTLP; none if Tempo does not have the trace."""
        try:
            answer = json.loads(self._get(f"/api/traces/{trace_id}"))
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return []
            raise
        scopes = (scope for batch in answer.get("batches", ()) for scope in batch.get("scopeSpans", ()))
        return [span for scope in scopes for span in scope.get("spans", ())]

    def search(self, traceql: str, target: Mapping[str, Any] | None = None) -> dict[str, list[Json]]:
        """Return the spans that a search finds, by trace id, with the limits of a panel's target."""
        limits = {name: value for name, value in (target or {}).items() if name in {"limit", "spss"}}
        answer = json.loads(self._get("/api/search", q=traceql, **_around_now(), **limits))
        return {
            trace["traceID"].zfill(32): [span for spans in trace.get("spanSets", ()) for span in spans.get("spans", ())]
            for trace in answer.get("traces", ())
        }

    def series(self, traceql: str) -> list[Json]:
        """Return the series of a TraceQL metric."""
        found: list[Json] = json.loads(self._get("/api/metrics/query_range", q=traceql, **_around_now())).get(
            "series", []
        )
        return found

    def discarded(self) -> float:
        """Return the number of spans that Tempo has received and discarded."""
        lines = re.findall(r"^tempo_discarded_spans_total\{.*\} (\S+)$", self._get("/metrics"), re.MULTILINE)
        return sum(map(float, lines))

    def _get(self, path: str, **query: object) -> str:
        url = f"{self._url}{path}?{urllib.parse.urlencode(query)}"
        with urllib.request.urlopen(url, timeout=HANG) as answer:  # noqa: S310 - our own Tempo
            text: str = answer.read().decode()
        return text


def _around_now() -> dict[str, int]:
    """Return a time range. Without it, Tempo searches only spans that are not yet stored."""
    now = int(time.time())
    return {"start": now - 3600, "end": now + 60}


@contextmanager
def running(program: str, folder: Path) -> Iterator[Tempo]:
    """Return a Tempo with the stack's configuration, other addresses and another folder."""
    text = (ROOT / "stack" / "tempo" / "tempo.yaml").read_text().replace("/var/tempo", str(folder))
    configuration = yaml.safe_load(text)
    http, grpc, otlp = reserved_port(), reserved_port(), reserved_port()
    configuration["server"] |= {
        "http_listen_address": HOST,
        "http_listen_port": http,
        "grpc_listen_address": HOST,
        "grpc_listen_port": grpc,
    }
    configuration["distributor"]["receivers"]["otlp"]["protocols"]["grpc"]["endpoint"] = f"{HOST}:{otlp}"
    file, url = folder / "tempo.yaml", f"http://{HOST}:{http}"
    file.write_text(yaml.safe_dump(configuration))
    command = [program, f"-config.file={file}"]
    server = Server("Tempo", command, folder / "tempo.log", lambda: responds(f"{url}/ready"))
    server.start()
    try:
        endpoint = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{HOST}:{otlp}", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}
        yield Tempo(url, endpoint)
    finally:
        server.stop()
