"""Cost of an outage: the same run with a reachable, a refusing, an unresponsive and an overloaded collector."""

import socket
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

from benchmarks import _runs
from benchmarks._collector import PROTOCOLS, Collector
from benchmarks._measure import Goal, Pair, Row, amount, versus
from benchmarks._process import Result, run
from benchmarks._scale import Scale

WHILE_RUNNING = Goal(1.01)
AT_END = 1.0
"""Additional seconds that the end of a run may take, compared with a reachable collector."""
OVERLOADED = "503"
"""This collector counts as reachable: the end of the run waits for the whole `flush_timeout`."""
REACHABLE = "reachable"


def rows(scale: Scale) -> Iterator[Row]:
    for label, protocol in PROTOCOLS.items():
        with ExitStack() as stack:
            endpoints = _endpoints(stack, protocol)
            found: dict[str, list[Result]] = {kind: [] for kind in endpoints}
            options: dict[str, Any] = {
                "size": scale.run,
                "protocol": protocol,
                "flush_timeout": scale.flush_timeout,
            }
            for _ in range(scale.traced_rounds):
                for kind, endpoint in endpoints.items():
                    found[kind].append(run(_runs.run, endpoint=endpoint, **options))
        reachable = found.pop(REACHABLE)
        for kind, results in found.items():
            at_end = AT_END + scale.flush_timeout if kind == OVERLOADED else AT_END
            yield from _rows(f"{kind}, {label}", results, reachable, at_end)


def _endpoints(stack: ExitStack, protocol: str) -> dict[str, str]:
    """Return the endpoints of the four collectors. The ports are reserved until the stack is closed."""
    reachable, unavailable = stack.enter_context(Collector()), stack.enter_context(Collector())
    unavailable.command("fault unavailable")
    refusing, silent = (stack.enter_context(socket.socket()) for _ in range(2))
    for one in (refusing, silent):
        one.bind(("127.0.0.1", 0))
    silent.listen()  # no program accepts; a port without a listener refuses the connection
    return {
        REACHABLE: reachable.endpoint(protocol),
        "refused": f"http://127.0.0.1:{refusing.getsockname()[1]}",
        "unresponsive": f"http://127.0.0.1:{silent.getsockname()[1]}",
        OVERLOADED: unavailable.endpoint(protocol),
    }


def _rows(what: str, outage: list[Result], reachable: list[Result], at_end: float) -> Iterator[Row]:
    while_running: list[Pair] = [
        (one.value["tasks"], other.value["tasks"]) for one, other in zip(outage, reachable, strict=True)
    ]
    yield versus(f"collector {what}: until the last task, against a reachable one", while_running, "s", WHILE_RUNNING)
    added = [one.value["total"] - one.value["tasks"] for one in outage]
    added_reachable = [one.value["total"] - one.value["tasks"] for one in reachable]
    values = {one.value["value"] for one in (*outage, *reachable)}
    yield Row(
        f"collector {what}: from the last task to the end",
        amount(added, "s"),
        amount(added_reachable, "s"),
        "",
        f"≤ {at_end:g} s more, same result",
        max(added) - min(added_reachable) <= at_end and len(values) == 1,
    )
    lines = [float(len(one.stderr)) for one in outage]
    warnings = [float(sum("OtelConnector" in line for line in one.stderr)) for one in outage]
    yield Row(
        f"collector {what}: warnings",
        amount(warnings, "warnings"),
        amount([float(len(one.stderr)) for one in reachable], "lines"),
        f"{amount(lines, 'lines')} in all",
        "1 warning, 1 line",
        max(*lines, *warnings, 1) == 1,
    )
