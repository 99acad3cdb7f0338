"""A run with the OTLP and the MQTT connector at once, against the same run with each of them alone."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cascade as cs
from benchmarks import _mqtt, _runs
from benchmarks._collector import PROTOCOLS, Collector
from benchmarks._measure import Figure, Goal, Row, versus
from benchmarks._process import call
from benchmarks._scale import Scale
from benchmarks.mqtt import UNLIMITED
from tests.lab.mosquitto import MosquittoProcess

GOAL = Goal(0.8, is_floor=True)
"""The rate of both at once, relative to that of the slower one alone."""


def run(size: int, port: int = 0, protocol: str = "", endpoint: str = "") -> float:
    """Run a fan-out with MQTT, OTLP or both; return the seconds until all spans and messages are acknowledged."""
    connectors: list[cs.Connector] = []
    if endpoint:
        from cascade.connectors.otel import OtelConnector

        connectors.append(OtelConnector(endpoint, protocol=protocol, flush_timeout=_mqtt.FLUSH))
    if port:
        from cascade.connectors.mqtt import MqttConnector

        connectors.append(MqttConnector("127.0.0.1", port, flush_timeout=_mqtt.FLUSH))
    target, start = _runs.workflow(size), time.perf_counter()
    cs.run(target, connector=connectors, log_level="ERROR")
    return time.perf_counter() - start


def rows(scale: Scale) -> Iterator[Row]:
    size = scale.run
    with MosquittoProcess(*UNLIMITED) as broker, Collector() as collector:
        for label, protocol in PROTOCOLS.items():
            otlp: dict[str, Any] = {"protocol": protocol, "endpoint": collector.endpoint(protocol)}
            variants: tuple[dict[str, Any], ...] = ({"port": broker.port, **otlp}, {"port": broker.port}, otlp)
            pairs = []
            for turn in range(scale.many_rounds):
                rates = [0.0] * len(variants)
                for number in range(len(variants))[:: -1 if turn % 2 else 1]:
                    rates[number] = size / call(run, size=size, **variants[number])
                pairs.append((rates[0], min(rates[1:])))
            what = f"MQTT and {label} at once against the slower one alone, {size:,}, until acknowledged"
            yield versus(what, pairs, "tasks/s", GOAL)


def figures(scale: Scale, tree: Path | None) -> Iterator[Figure]:
    """Yield the rates of both connectors of the revision in `tree`."""
    size = scale.run
    with MosquittoProcess(*UNLIMITED) as broker, Collector() as collector:
        for label, protocol in PROTOCOLS.items():
            seconds = call(
                run, tree=tree, size=size, port=broker.port, protocol=protocol, endpoint=collector.endpoint(protocol)
            )
            yield Figure(
                f"MQTT and {label} at once, {size:,}, until acknowledged", size / seconds, "tasks/s", is_rate=True
            )
