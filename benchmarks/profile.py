"""Prints where a run spends CPU time, blocks the event loop, or uses memory: `python -m benchmarks.profile chain`."""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from tracemalloc import Snapshot
from typing import Any

import cascade as cs
from benchmarks import _graphs, _mqtt, _profiles
from benchmarks._collector import PROTOCOLS, Collector
from benchmarks._machine import circumstances
from benchmarks._process import call
from benchmarks._readme import write_table
from benchmarks.engine import ALL_SHAPES
from benchmarks.mqtt import UNLIMITED
from benchmarks.threads import nothing
from tests.lab.mosquitto import MosquittoProcess

CONNECTORS = ("http", "grpc", "mqtt")
THREADS = "threads"
"""A fan-out of plain functions."""
MIXES_THREADS = sys.version_info >= (3, 12)
"""Since Python 3.12, cProfile attributes the calls of all threads to one stack, so that the times are wrong."""
SIZE = 10_000
_MAIN = "__main__"


PROFILES: dict[str, dict[str, Any]] = {
    "engine": {"shape": "fan-out"},
    "engine, chain": {"shape": "chain"},
    "engine, layered": {"shape": "layered"},
    "engine, growth": {"shape": "layered", "size": 100_000},
    "thread tasks": {"shape": THREADS},
    "traced run, HTTP": {"shape": "fan-out", "size": 20_000, "connector": ["http"]},
    "traced run, gRPC": {"shape": "fan-out", "size": 20_000, "connector": ["grpc"]},
    "all defaults": {"shape": "fan-out", "size": 20_000, "connector": ["http"], "log_level": "INFO"},
    "MQTT": {"shape": "fan-out", "size": 20_000, "connector": ["mqtt"]},
    "MQTT and HTTP at once": {"shape": "fan-out", "size": 20_000, "connector": ["http", "mqtt"]},
    "ticker": {"shape": "fan-out", "size": 20_000, "connector": ["http"], "of": "loop"},
    "ticker, untraced": {"shape": "fan-out", "size": 20_000, "of": "loop"},
    "memory": {"shape": "layered", "size": 30_000, "of": "memory"},
}
"""The rows of the benchmarks, and the arguments of their profiles."""
TOP = 8
"""Functions of each profile in the summary."""


def main() -> None:
    parser = _parser()
    options = parser.parse_args()
    if MIXES_THREADS and (options.shape is None or options.of == "cpu"):
        parser.error("since Python 3.12, cProfile mixes the calls of all threads; use Python 3.11")
    arguments = vars(options)
    is_written = arguments.pop("write")
    if options.shape is None:
        found = summary(PROFILES)
        print(found)
        if is_written:
            write_table("profiles", found)
    elif is_written:
        parser.error("--write writes the summary, which has no shape")
    else:
        print(f"{options.shape}, {options.size:,} tasks: {_profiles.Profile(**profile(**arguments))}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.profile", description=__doc__)
    shapes = (*ALL_SHAPES, THREADS)
    parser.add_argument("shape", nargs="?", choices=shapes, help="a summary of several profiles by default")
    parser.add_argument("--size", type=int, default=SIZE, help=f"number of tasks, {SIZE:,} by default")
    parser.add_argument("--connector", nargs="+", choices=CONNECTORS, default=[], help="none by default")
    parser.add_argument("--log-level", default="ERROR", help="ERROR by default; INFO prints the lines of the default")
    parser.add_argument("--of", choices=("cpu", "loop", "memory"), default="cpu", help="cpu by default")
    parser.add_argument("--top", type=int, default=30, help="number of rows, 30 by default")
    parser.add_argument("--write", action="store_true", help="write the summary to benchmarks/README.md")
    return parser


def summary(profiles: dict[str, dict[str, Any]]) -> str:
    """Return the first rows of each profile, on one line."""
    rows, start = [], time.monotonic()
    for name, arguments in profiles.items():
        found = _profiles.Profile(**call(profile, top=TOP, **arguments))
        first = "; ".join(f"{row[0]} {row[-1]}" for row in found.rows)
        rows.append((name, _command(arguments), found.total, f"{found.titles[0]}: {first}"))
        print(f"{name}: {found.total}", file=sys.stderr, flush=True)
    table = _profiles.table(("row", "profile", "in all", "most"), rows)
    return f"{circumstances(time.monotonic() - start)}\n\n{table}"


def _command(arguments: dict[str, Any]) -> str:
    """Return the arguments as they are written on a command line."""
    words = [arguments["shape"]]
    for name, value in arguments.items():
        if name != "shape":
            words += [f"--{name.replace('_', '-')}", *(value if isinstance(value, list) else [str(value)])]
    return f"`{' '.join(words)}`"


def profile(
    shape: str,
    size: int = SIZE,
    connector: Sequence[str] = (),
    log_level: str = "ERROR",
    of: str = "cpu",
    top: int = TOP,
) -> dict[str, Any]:
    """Run a workflow, after a run that imports the modules that are imported on first use; return the fields of the profile."""
    with ExitStack() as stack:
        connectors = _connectors(stack, connector)

        def run(target: Any) -> None:
            cs.run(target, connector=connectors(), log_level=log_level)

        run(workflow(shape, min(size, 100)))
        if of == "memory":
            return asdict(_memory(run, shape, size, top))
        target = workflow(shape, size)
        if of == "loop":
            return asdict(_profiles.callbacks(lambda: run(target), top))
        return asdict(_profiles.cpu(lambda: run(target), size, top))


def _memory(run: Callable[[Any], None], shape: str, size: int, top: int) -> _profiles.Profile:
    taken: list[Snapshot] = []
    with _profiles.memory() as snapshot:
        run(workflow(shape, size, lambda: taken.append(snapshot())))
    return _profiles.by_line(taken[0], size, top)


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
    from benchmarks.profile import main as _main  # so that the functions have the name of this module, for `call`

    _main()
