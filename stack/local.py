"""The servers as processes, with the configuration files of Compose and other addresses."""

import os
import socket
from dataclasses import dataclass
from pathlib import Path

from stack import build, programs
from stack.addresses import HOST, Ports
from stack.build import ROOT
from stack.process import Server, ServerError, responds

OPERATOR = "operator"
RUNNER = "runner"
PASSWORD = "cascade"  # noqa: S105 - for servers that only this machine can reach


@dataclass(frozen=True, slots=True)
class Intervals:
    """Intervals of span metrics and scrapes. The defaults are those of Compose; tests use shorter ones."""

    span_metrics: str = "15s"
    scrape: str = "10s"


def collector(folder: Path, ports: Ports, intervals: Intervals, *, detached: bool = False) -> Server:
    """Return the Collector. Its queues are in the folder and are kept."""
    environment = {
        "COLLECTOR_OTLP_GRPC": ports.at(ports.otlp_grpc),
        "COLLECTOR_OTLP_HTTP": ports.at(ports.otlp_http),
        "COLLECTOR_HEALTH": ports.at(ports.collector_health),
        "COLLECTOR_PROMETHEUS": ports.at(ports.collector_prometheus),
        "COLLECTOR_SELF_HOST": HOST,
        "COLLECTOR_SELF_PORT": str(ports.collector_self),
        "COLLECTOR_TO_JAEGER": ports.at(ports.jaeger_otlp),
        "COLLECTOR_QUEUE": str(folder / "collector"),
        "COLLECTOR_SPANMETRICS_INTERVAL": intervals.span_metrics,
    }
    return Server(
        "Collector",
        [str(build.collector_path()), "--config", str(ROOT / "collector-config" / "collector.yaml")],
        folder / "collector.log",
        lambda: responds(ports.url(ports.collector_health)),
        environment,
        detached,
    )


def jaeger(folder: Path, ports: Ports, *, detached: bool = False) -> Server:
    """Return Jaeger. Its traces are in the folder and are kept."""
    data = folder / "jaeger"
    for part in ("keys", "values"):
        (data / part).mkdir(parents=True, exist_ok=True)
    environment = {
        "JAEGER_DATA": str(data),
        "JAEGER_UI": str(ROOT / "stack" / "jaeger" / "ui.json"),
        "JAEGER_HEALTH": ports.at(ports.jaeger_health),
        "JAEGER_OTLP_GRPC": ports.at(ports.jaeger_otlp),
        "JAEGER_QUERY_HTTP": ports.at(ports.jaeger_http),
        "JAEGER_QUERY_GRPC": ports.at(ports.jaeger_grpc),
        "JAEGER_TO_PROMETHEUS": ports.url(ports.prometheus),
    }
    return Server(
        "Jaeger",
        [str(build.jaeger_path()), "--config", str(ROOT / "stack" / "jaeger" / "config.yaml")],
        folder / "jaeger.log",
        lambda: responds(ports.url(ports.jaeger_health, "/status")),
        environment,
        detached,
    )


def prometheus(folder: Path, ports: Ports, intervals: Intervals, *, detached: bool = False) -> Server:
    """Return Prometheus. It reads no addresses from the environment, so they are replaced in a copy of the file."""
    configuration = (ROOT / "stack" / "prometheus" / "prometheus.yml").read_text()
    addresses = {
        "collector:8889": ports.at(ports.collector_prometheus),
        "collector:8888": ports.at(ports.collector_self),
        "localhost:9090": ports.at(ports.prometheus),
        "rules/*.yml": str(ROOT / "stack" / "prometheus" / "rules" / "*.yml"),
        "_interval: 10s": f"_interval: {intervals.scrape}",
    }
    path = _written(folder / "prometheus" / "prometheus.yml", _replaced(configuration, addresses))
    command = [
        program("prometheus"),
        f"--config.file={path}",
        f"--storage.tsdb.path={folder / 'prometheus' / 'data'}",
        f"--web.listen-address={ports.at(ports.prometheus)}",
        "--enable-feature=exemplar-storage",
    ]
    ready = ports.url(ports.prometheus, "/-/ready")
    return Server("Prometheus", command, folder / "prometheus.log", lambda: responds(ready), {}, detached)


def mosquitto(folder: Path, ports: Ports, *, detached: bool = False) -> Server:
    """Return Mosquitto, started by the script of Compose with other paths and another port."""
    configuration, data = folder / "mosquitto" / "config", folder / "mosquitto" / "data"
    data.mkdir(parents=True, exist_ok=True)
    lines = _replaced(
        (ROOT / "stack" / "mosquitto" / "mosquitto.conf").read_text(),
        {"listener 1883\n": f"listener {ports.mqtt} {HOST}\n", "/mosquitto/data/": f"{data}/"},
    )
    if os.geteuid() == 0:
        # Otherwise Mosquitto continues as the user mosquitto, which cannot write to the folder.
        lines += "user root\n"
    _written(configuration / "mosquitto.conf", lines)
    _written(configuration / "acl", (ROOT / "stack" / "mosquitto" / "acl").read_text())
    environment = {
        "MOSQUITTO_CONFIG": str(configuration),
        "MOSQUITTO_DATA": str(data),
        "MQTT_RUNNER_PASSWORD": PASSWORD,
        "MQTT_OPERATOR_PASSWORD": PASSWORD,
        "PATH": f"{os.environ.get('PATH', '')}:{programs.ROOT_PATH}",
    }
    command = ["/bin/sh", str(ROOT / "stack" / "mosquitto" / "start.sh")]
    return Server("Mosquitto", command, folder / "mosquitto.log", lambda: _accepts(ports.mqtt), environment, detached)


def program(name: str) -> str:
    """Return the path of an installed program.

    Raises:
        ServerError: The program is not installed.
    """
    found = programs.find(name)
    if found is None:
        raise ServerError(f"{name} is not installed: apt-get install {name}")
    return found


def _accepts(port: int) -> bool:
    try:
        socket.create_connection((HOST, port), timeout=1.0).close()
    except OSError:
        return False
    return True


def _replaced(text: str, replacements: dict[str, str]) -> str:
    for old, new in replacements.items():
        if old not in text:
            raise ServerError(f"the configuration has no {old!r} to replace")
        text = text.replace(old, new)
    return text


def _written(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path
