"""Other installed engines on the same graph: no-op tasks in one process, without telemetry and each with its own tracing."""

import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.metadata import version
from importlib.util import find_spec
from statistics import median
from typing import Any

import cascade as cs
from benchmarks import _graphs, _runs
from benchmarks._collector import PROTOCOLS, Collector
from benchmarks._measure import Pair, Row, amount, interleaved, number, timed, versus
from benchmarks._other_engines import ENGINES, PACKAGES, TRACED
from benchmarks._process import call
from benchmarks._scale import Scale

PROTOCOL = PROTOCOLS["HTTP"]
CASCADE = "cascade"
RUNS = 2
"""Runs of a traced process. The first one imports modules and starts servers; the second one is measured."""


def measure(engine: str, shape: str, size: int, rounds: int) -> list[Pair]:
    """Seconds per task of Cascade and of the other engine, after a run of each that is not counted."""
    graph = _graphs.SHAPES[shape](size)
    run_other, target = ENGINES[engine](graph), _graphs.workflow(graph)

    def subject() -> float:
        return timed(lambda: cs.run(target, log_level="ERROR")) / size

    def baseline() -> float:
        return timed(run_other) / size

    interleaved(subject, baseline, 1)
    return interleaved(subject, baseline, rounds)


def traced(engine: str, shape: str, size: int, endpoint: str) -> float:
    """Return the seconds per task of a traced run of an engine until its spans are acknowledged."""
    graph = _graphs.SHAPES[shape](size)
    run = _traced_cascade(graph, endpoint) if engine == CASCADE else _traced_by_sdk(engine, graph, endpoint)
    return [timed(run) / size for _ in range(RUNS)][-1]


def _traced_cascade(graph: _graphs.Graph, endpoint: str) -> Callable[[], Any]:
    from cascade.connectors.otel import OtelConnector

    target, connector = _graphs.workflow(graph), OtelConnector(endpoint, protocol=PROTOCOL)
    return lambda: cs.run(target, connector=connector, log_level="ERROR")


def _traced_by_sdk(engine: str, graph: _graphs.Graph, endpoint: str) -> Callable[[], Any]:
    """Return a run with the SDK's processor and exporter as the global provider, with a queue that loses nothing."""
    from opentelemetry import trace

    provider, _ = _runs.sdk(PROTOCOL, endpoint, _runs.sufficient_queue(len(graph)))
    trace.set_tracer_provider(provider)
    run = TRACED[engine](graph)

    def run_and_flush() -> None:
        run()
        provider.force_flush(_runs.FLUSH_WAIT)

    return run_and_flush


def rows(scale: Scale) -> Iterator[Row]:
    installed = [engine for engine in ENGINES if find_spec(engine)]
    for engine in installed:
        for shape, size in scale.other_engines:
            pairs = call(measure, engine=engine, shape=shape, size=size, rounds=scale.rounds)
            yield versus(f"{shape} of {size:,}, against {_name(engine)}, per task", pairs, "µs", scale=1e6)
    with Collector() as collector:
        for shape, size in scale.other_engines:
            yield from _traced_rows(collector, shape, size, [one for one in installed if one in TRACED], scale)
    if missing := [engine for engine in ENGINES if engine not in installed]:
        yield Row(f"other engines that are not installed: {', '.join(missing)}", "", "")


def _traced_rows(collector: Collector, shape: str, size: int, engines: list[str], scale: Scale) -> Iterator[Row]:
    """Yield the time per task of each engine with its tracing, in the same rounds as Cascade, and the received spans."""
    seconds: dict[str, list[float]] = {engine: [] for engine in (CASCADE, *engines)}
    spans: dict[str, list[float]] = {engine: [] for engine in seconds}
    for turn in range(scale.rounds):
        for engine in list(seconds)[:: -1 if turn % 2 else 1]:
            where: dict[str, Any] = {"shape": shape, "size": size, "endpoint": collector.endpoint(PROTOCOL)}
            seconds[engine].append(call(traced, engine=engine, **where))
            spans[engine].append(collector.command("count") / RUNS)
            print(f"-- {shape}, traced, {engine}, round {turn + 1} of {scale.rounds}", file=sys.stderr, flush=True)
    what, ours = f"{shape} of {size:,}, traced", seconds.pop(CASCADE)
    received = {engine: f", {number(median(found))} spans" for engine, found in spans.items()}
    yield Row(f"{what}, per task", amount(ours, "µs", 1e6) + received[CASCADE], "")
    for engine, theirs in seconds.items():
        pairs = list(zip(ours, theirs, strict=True))
        row = versus(f"{what}, against {_name(engine)}, per task", pairs, "µs", scale=1e6)
        yield replace(row, ours=row.ours + received[CASCADE], baseline=row.baseline + received[engine])


def _name(engine: str) -> str:
    return f"{engine} {version(PACKAGES.get(engine, engine))}"
