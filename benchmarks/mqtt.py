"""Messages from the engine to a subscriber of a real broker, against bare clients; and a broker that is not well."""

import socket
from collections.abc import Callable, Iterator
from typing import Any

from benchmarks import _mqtt
from benchmarks._measure import Goal, Row, amount, versus
from benchmarks._process import Answer, ask, background, call
from benchmarks._scale import Scale
from benchmarks._subscribers import SAYS_WHO_SUBSCRIBES, Ends, fastest
from cascade.testing import MosquittoProcess

ENOUGH = 15_000
"""Messages a second, from the engine to the subscriber."""
OF_THE_BEST = Goal(0.8, is_floor=True)
WHILE_RUNNING = Goal(1.01)
AT_END = 1.0
NOTHING_LOST = ("max_queued_messages 0", "max_inflight_messages 0")
"""Mosquitto's own limit loses messages of a burst to a subscriber that is slower."""
_QUIET = 5.0
"""Seconds without a message after which no more is expected."""


def rows(scale: Scale) -> Iterator[Row]:
    with MosquittoProcess(*NOTHING_LOST, SAYS_WHO_SUBSCRIBES) as broker:
        yield from _throughput(scale, broker)
        yield _cost(scale, broker)
        yield from _unwell(scale, broker)


def _throughput(scale: Scale, broker: MosquittoProcess) -> Iterator[Row]:
    """Each run, and the same messages from bare clients, by turns."""
    size, count = scale.run, 2 * scale.run + 6
    found: dict[str, list[float]] = {"ours": [], "paho": [], "aiomqtt": []}
    for _ in range(scale.rounds):
        for name, work in (("ours", _mqtt.run), ("paho", _mqtt.paho), ("aiomqtt", _mqtt.aiomqtt)):
            found[name].append(_rate(broker, count, work, size))
    ours = found["ours"]
    what = f"task messages to a subscriber, {size:,} tasks"
    goal = f"≥ {ENOUGH:,}/s"
    yield Row(f"{what}, absolute", amount(ours, "messages/s"), "", "", goal, sorted(ours)[len(ours) // 2] >= ENOUGH)
    for name in ("paho", "aiomqtt"):
        pairs = list(zip(ours, found[name], strict=True))
        yield versus(f"{what}, against bare {name}, same bytes and QoS", pairs, "messages/s", OF_THE_BEST)


def _rate(broker: MosquittoProcess, count: int, work: Callable[..., Any], size: int) -> float:
    with fastest(broker, count) as wait:
        answer = call(work, size=size, port=broker.port)
        seconds: float = wait() - answer["start_at"]
        return count / seconds


def _cost(scale: Scale, broker: MosquittoProcess) -> Row:
    pairs = []
    for _ in range(scale.rounds):
        with_it, without = call(_mqtt.run, size=scale.run, port=broker.port), call(_mqtt.run, size=scale.run)
        pairs.append((with_it["tasks"] / scale.run, without["tasks"] / scale.run))
    return versus(f"MqttConnector, until the last task, {scale.run:,} tasks, per task", pairs, "µs", scale=1e6)


def _unwell(scale: Scale, broker: MosquittoProcess) -> Iterator[Row]:
    """A broker that refuses, one that is frozen, and one that forbids it, against one that is well."""
    with (
        socket.socket() as refusing,
        MosquittoProcess(*NOTHING_LOST) as freezing,
        MosquittoProcess(anonymous=False) as forbidding,
    ):
        refusing.bind(("127.0.0.1", 0))  # nobody listens there
        ports = {"refused": refusing.getsockname()[1], "frozen": freezing.port, "not authorized": forbidding.port}
        works = {"live": (_mqtt.run, broker.port), **{kind: (_mqtt.run, port) for kind, port in ports.items()}}
        works["frozen, second run"] = _mqtt.run_again, freezing.port
        found: dict[str, list[Answer]] = {kind: [] for kind in works}
        with freezing.frozen():
            for _ in range(scale.traced_rounds):
                for kind, (work, port) in works.items():
                    found[kind].append(ask(work, size=scale.run, port=port))
    live = found.pop("live")
    again = found.pop("frozen, second run")
    for kind, answers in found.items():
        yield from _rows(f"broker {kind}", answers, live)
    yield _end("broker frozen, second run of a connector", again, live)
    yield _end("broker freezes in the middle of the run", [_freezing(scale) for _ in range(scale.traced_rounds)], live)
    yield _restarted(scale)


def _rows(what: str, dead: list[Answer], live: list[Answer]) -> Iterator[Row]:
    pairs = [(one.value["tasks"], other.value["tasks"]) for one, other in zip(dead, live, strict=True)]
    first, first_live = ([one.value["first"] for one in answers] for answers in (dead, live))
    # The wait for what may be retained, a second at the most.
    yield Row(f"{what}: until the first task", amount(first, "s"), amount(first_live, "s"))
    yield versus(f"{what}: from the first task to the last, against a live one", pairs, "s", WHILE_RUNNING)
    yield _end(what, dead, live)
    lines = [float(len(one.stderr)) for one in dead]
    yield Row(f"{what}: lines on stderr", amount(lines, "lines"), "", "", "1 warning", set(lines) == {1.0})


def _end(what: str, dead: list[Answer], live: list[Answer]) -> Row:
    end, end_live = ([one.value["end"] for one in answers] for answers in (dead, live))
    same = len({one.value["value"] for one in (*dead, *live)}) == 1
    goal, is_reached = f"≤ {AT_END:g} s more, same result", max(end) - min(end_live) <= AT_END and same
    return Row(f"{what}: from the last task to the end", amount(end, "s"), amount(end_live, "s"), "", goal, is_reached)


def _freezing(scale: Scale) -> Answer:
    """A run whose broker freezes after a quarter of the tasks."""
    with (
        MosquittoProcess(*NOTHING_LOST) as broker,
        Ends(broker.port) as ends,
        background(_mqtt.run, size=scale.run, port=broker.port) as answer,
    ):
        ends.wait_for(scale.run // 4)
        with broker.frozen():
            return answer()


def _restarted(scale: Scale) -> Row:
    """The broker ends and starts again in the middle of a run: how many of the tasks' ends a subscriber has received.

    The broker saves the subscriber's session: what is measured is what the connector does, not what a broker forgets.
    """
    with MosquittoProcess(*NOTHING_LOST, "persistence true") as broker, Ends(broker.port) as ends:
        with background(_mqtt.run, size=scale.run, port=broker.port) as answer:
            ends.wait_for(scale.run // 4)
            broker.stop()
            broker.start()
            lines = answer().stderr
        received = ends.wait_for(scale.run + 2, patience=_QUIET)
    what = f"broker restarted in the middle of a run of {scale.run:,}: ends of tasks received"
    is_all = received == scale.run + 2
    return Row(what, f"{received:,}", f"{scale.run + 2:,} tasks", f"{len(lines)} lines on stderr", "all", is_all)
