"""Cost of an outage: the same run with a collector that refuses, one that never answers, one that answers 503."""

import socket
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

from benchmarks import _runs
from benchmarks._collector import PROTOCOLS, Collector
from benchmarks._measure import Goal, Pair, Row, amount, versus
from benchmarks._process import Answer, ask
from benchmarks._scale import Scale

WHILE_RUNNING = Goal(1.01)
AT_END = 1.0
"""Seconds that a run's end may take longer than with a live collector."""
LATER = "503"
"""Such a collector is alive: the run's end waits for it during the whole `flush_timeout`."""
LIVE = "live"


def rows(scale: Scale) -> Iterator[Row]:
    for label, protocol in PROTOCOLS.items():
        with ExitStack() as stack:
            endpoints = _endpoints(stack, protocol)
            found: dict[str, list[Answer]] = {kind: [] for kind in endpoints}
            for _ in range(scale.traced_rounds):
                for kind, endpoint in endpoints.items():
                    run: dict[str, Any] = {
                        "size": scale.run,
                        "protocol": protocol,
                        "flush_timeout": scale.flush_timeout,
                    }
                    found[kind].append(ask(_runs.run, endpoint=endpoint, **run))
        live = found.pop(LIVE)
        for kind, answers in found.items():
            at_end = AT_END + scale.flush_timeout if kind == LATER else AT_END
            yield from _rows(f"{kind}, {label}", answers, live, at_end)


def _endpoints(stack: ExitStack, protocol: str) -> dict[str, str]:
    """A live collector and three others; the ports are taken until the stack is left."""
    live, unavailable = stack.enter_context(Collector()), stack.enter_context(Collector())
    unavailable.say("fault unavailable")
    refusing, silent = (stack.enter_context(socket.socket()) for _ in range(2))
    for one in (refusing, silent):
        one.bind(("127.0.0.1", 0))
    silent.listen()  # no program accepts; a port without a listener refuses the connection
    return {
        LIVE: live.endpoint(protocol),
        "refused": f"http://127.0.0.1:{refusing.getsockname()[1]}",
        "black hole": f"http://127.0.0.1:{silent.getsockname()[1]}",
        LATER: unavailable.endpoint(protocol),
    }


def _rows(what: str, dead: list[Answer], live: list[Answer], at_end: float) -> Iterator[Row]:
    while_running: list[Pair] = [
        (one.value["tasks"], other.value["tasks"]) for one, other in zip(dead, live, strict=True)
    ]
    yield versus(f"collector {what}: until the last task, against a live one", while_running, "s", WHILE_RUNNING)
    added = [one.value["total"] - one.value["tasks"] for one in dead]
    added_live = [one.value["total"] - one.value["tasks"] for one in live]
    longest, as_live = max(added) - min(added_live) <= at_end, {one.value["value"] for one in (*dead, *live)}
    yield Row(
        f"collector {what}: from the last task to the end",
        amount(added, "s"),
        amount(added_live, "s"),
        "",
        f"≤ {at_end:g} s more, same result",
        longest and len(as_live) == 1,
    )
    lines = [float(len(one.stderr)) for one in dead]
    warnings = [float(sum("OtelConnector" in line for line in one.stderr)) for one in dead]
    yield Row(
        f"collector {what}: warnings",
        amount(warnings, "warnings"),
        amount([float(len(one.stderr)) for one in live], "lines"),
        f"{amount(lines, 'lines')} in all",
        "1 warning, 1 line",
        max(*lines, *warnings, 1) == 1,
    )
