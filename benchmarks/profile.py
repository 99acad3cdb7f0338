"""Prints the functions of a run by their own CPU time and calls per task: `python -m benchmarks.profile chain`."""

import argparse
import cProfile
import pstats
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import cascade as cs
from benchmarks import _graphs, _mqtt
from benchmarks._collector import PROTOCOLS, Collector
from benchmarks._measure import number
from benchmarks.engine import ALL_SHAPES, item
from benchmarks.mqtt import UNLIMITED
from tests.lab.mosquitto import MosquittoProcess

CONNECTORS = ("http", "grpc", "mqtt")
MIXES_THREADS = sys.version_info >= (3, 12)
"""Since Python 3.12, cProfile attributes the calls of all threads to one stack, so that the times are wrong."""
_MAIN = "__main__"
Key = tuple[str, int, str]
"""File, line and name of a function in `pstats`."""
Statistics = dict[Key, tuple[int, int, float, float, dict[Key, tuple[int, int, float, float]]]]
"""Primitive calls, calls, own time, cumulative time, and the same of each caller."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.profile", description=__doc__)
    parser.add_argument("shape", choices=ALL_SHAPES)
    parser.add_argument("--size", type=int, default=10_000, help="number of tasks, 10,000 by default")
    parser.add_argument("--connector", nargs="+", choices=CONNECTORS, default=[], help="none by default")
    parser.add_argument("--log-level", default="ERROR", help="ERROR by default; INFO prints the lines of the default")
    parser.add_argument("--top", type=int, default=30, help="number of functions, 30 by default")
    options = parser.parse_args()
    if MIXES_THREADS:
        parser.error("since Python 3.12, cProfile mixes the calls of all threads; use Python 3.11")
    with ExitStack() as stack:
        connectors = _connectors(stack, options.connector)
        print(report(options.shape, options.size, connectors, options.log_level, options.top))


@dataclass(slots=True)
class Function:
    """CPU seconds and calls of one function in one thread, and the calls that it makes."""

    thread: str
    name: str
    own: float
    calls: int
    made: int = 0


def report(shape: str, size: int, connectors: Callable[[], list[cs.Connector]], log_level: str, top: int) -> str:
    """Run a workflow three times: to import modules, to measure its CPU time, and with the profiler."""

    def run() -> None:
        cs.run(target, connector=connectors(), log_level=log_level)

    is_map = shape == "map"
    target = item.map(x=list(range(size))) if is_map else _graphs.workflow(_graphs.SHAPES[shape](size))
    run()
    whole, loop = time.process_time(), time.thread_time()
    run()
    loop, whole = time.thread_time() - loop, time.process_time() - whole
    with _profiled() as profiles:
        run()
    return _table(f"{shape}, {size:,} tasks", size, whole, loop, list(_functions(profiles)), top)


def _table(what: str, size: int, whole: float, loop: float, functions: list[Function], top: int) -> str:
    """Return the functions with the most own time. The time of the profiler, the same for each call, is subtracted."""
    calls = sum(one.calls for one in functions)
    overhead = (sum(one.own for one in functions) - whole) / calls
    for one in functions:
        one.own -= overhead * (one.calls + one.made) / 2
    functions.sort(key=lambda one: one.own, reverse=True)
    head = f"{number(whole / size * 1e6)} µs of CPU time per task, {number(loop / size * 1e6)} µs in the event loop's thread"
    rows = [
        f"| {number(one.own / size * 1e6)} | {one.own / whole:.1%} | {number(one.calls / size)} | {one.thread} | {one.name} |"
        for one in functions[:top]
    ]
    columns = ["| own µs per task | share | calls per task | thread | function |", "|---|---|---|---|---|"]
    return "\n".join([f"{what}: {head}, {number(calls / size)} calls per task", "", *columns, *rows])


@contextmanager
def _profiled() -> Iterator[list[tuple[str, cProfile.Profile]]]:
    """Profile this thread and all threads that start meanwhile. The unit is CPU time of a thread, without waiting."""
    profiles: list[tuple[str, cProfile.Profile]] = []

    def start(*_event: Any) -> None:
        profile = cProfile.Profile(time.thread_time)
        profiles.append((threading.current_thread().name, profile))
        profile.enable()

    threading.setprofile(start)
    start()
    try:
        yield profiles
    finally:
        profiles[0][1].disable()
        threading.setprofile(None)


def _functions(profiles: Sequence[tuple[str, cProfile.Profile]]) -> Iterator[Function]:
    for thread, profile in profiles:
        profile.create_stats()
        statistics = cast("Statistics", vars(pstats.Stats(profile))["stats"])
        found = {key: Function(thread, _name(*key), own, calls) for key, (_, calls, own, _, _) in statistics.items()}
        for *_, callers in statistics.values():
            for caller, counts in callers.items():
                if caller in found:
                    found[caller].made += counts[0]
        yield from found.values()


def _name(file: str, line: int, name: str) -> str:
    return f"{'/'.join(Path(file).parts[-2:])}:{line} {name}" if line else name


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
