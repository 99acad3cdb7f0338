"""Prints where a run spends CPU time, blocks the event loop, or uses memory: `python -m benchmarks.profile chain`."""

import argparse
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import cascade as cs
from benchmarks import _graphs, _mqtt, _profiles
from benchmarks._collector import PROTOCOLS, Collector
from benchmarks.engine import ALL_SHAPES
from benchmarks.mqtt import UNLIMITED
from benchmarks.threads import nothing
from tests.lab.mosquitto import MosquittoProcess

CONNECTORS = ("http", "grpc", "mqtt")
THREADS = "threads"
"""A fan-out of plain functions."""
MIXES_THREADS = sys.version_info >= (3, 12)
"""Since Python 3.12, cProfile attributes the calls of all threads to one stack, so that the times are wrong."""
_MAIN = "__main__"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.profile", description=__doc__)
    parser.add_argument("shape", choices=(*ALL_SHAPES, THREADS))
    parser.add_argument("--size", type=int, default=10_000, help="number of tasks, 10,000 by default")
    parser.add_argument("--connector", nargs="+", choices=CONNECTORS, default=[], help="none by default")
    parser.add_argument("--log-level", default="ERROR", help="ERROR by default; INFO prints the lines of the default")
    parser.add_argument("--of", choices=("cpu", "loop", "memory"), default="cpu", help="cpu by default")
    parser.add_argument("--top", type=int, default=30, help="number of rows, 30 by default")
    options = parser.parse_args()
    if options.of == "cpu" and MIXES_THREADS:
        parser.error("since Python 3.12, cProfile mixes the calls of all threads; use Python 3.11")
    with ExitStack() as stack:
        connectors = _connectors(stack, options.connector)

        def run(target: Any) -> None:
            cs.run(target, connector=connectors(), log_level=options.log_level)

        print(f"{options.shape}, {options.size:,} tasks: {_profile(options, run)}")


def _profile(options: argparse.Namespace, run: Callable[[Any], None]) -> str:
    """Run a workflow, after a run that imports the modules that are imported on first use."""
    size: int = options.size
    run(workflow(options.shape, min(size, 100)))
    if options.of == "memory":
        with _profiles.memory() as snapshot:
            taken = []
            run(workflow(options.shape, size, lambda: taken.append(snapshot())))
        return _profiles.by_line(taken[0], size, options.top)
    target = workflow(options.shape, size)
    if options.of == "loop":
        return _profiles.callbacks(lambda: run(target), options.top)
    return _profiles.cpu(lambda: run(target), size, options.top)


def workflow(shape: str, size: int, inside: Callable[[], object] = lambda: None) -> Any:
    """Return a workflow that calls `inside` in its last task, or in the first item of a map."""

    @cs.task
    async def collect(values: list[Any]) -> int:
        inside()
        return len(values)

    @cs.task
    async def item(x: int) -> int:
        if not x:
            inside()
        return x

    if shape == "map":
        return item.map(x=list(range(size)))
    if shape == THREADS:
        return _graphs.workflow(_graphs.fan_out(size), cs.task(nothing), collect)
    return _graphs.workflow(_graphs.SHAPES[shape](size), last=collect)


def _connectors(stack: ExitStack, names: Sequence[str]) -> Callable[[], list[cs.Connector]]:
    """Start the servers of the connectors; return a function that makes new connectors."""
    makers: list[Callable[[], cs.Connector]] = []
    for name in names:
        if name == "mqtt":
            from cascade.connectors.mqtt import MqttConnector

            port = stack.enter_context(MosquittoProcess(*UNLIMITED)).port
            makers.append(partial(MqttConnector, "127.0.0.1", port, flush_timeout=_mqtt.FLUSH))
        else:
            from cascade.connectors.otel import OtelConnector

            protocol = PROTOCOLS[{"http": "HTTP", "grpc": "gRPC"}[name]]
            endpoint = stack.enter_context(Collector()).endpoint(protocol)
            makers.append(partial(OtelConnector, endpoint, protocol=protocol, flush_timeout=_mqtt.FLUSH))
    return lambda: [make() for make in makers]


if __name__ == _MAIN:
    main()
