"""Messages to a subscriber of a real broker, against bare clients and another revision; and an unreachable broker."""

import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import _mqtt
from benchmarks._measure import Goal, Row, amount, versus
from benchmarks._process import Answer, ask, background, call
from benchmarks._scale import Scale
from benchmarks._subscribers import LOG_SUBSCRIPTIONS, Ends, fastest
from tests.lab.mosquitto import MosquittoProcess

ENOUGH = 15_000
"""Messages a second, from the engine to the subscriber."""
OF_PAHO = Goal(1.0, is_floor=True)
OF_AIOMQTT = Goal(1.3, is_floor=True)
OF_REVISION = Goal(1.3)
"""CPU per message, of the CPU of another revision."""
WHILE_RUNNING = Goal(1.01)
AT_END = 1.0
Publisher = Callable[..., Any]
"""Publishes the messages of a run of `size` tasks to the broker at `port`, and returns its start and its CPU seconds."""
NOTHING_LOST = ("max_queued_messages 0", "max_inflight_messages 0")
"""Mosquitto's own limit loses messages of a burst to a subscriber that is slower."""
_QUIET = 5.0
"""Seconds without a message after which no more is expected."""


def rows(scale: Scale) -> Iterator[Row]:
    with MosquittoProcess(*NOTHING_LOST, LOG_SUBSCRIPTIONS) as broker:
        yield from _throughput(scale, broker)
        yield _cost(scale, broker)
        yield from _unwell(scale, broker)


@dataclass(frozen=True, slots=True)
class Sent:
    """Messages a second at the subscriber, and CPU seconds per message of the publishing process."""

    rate: float
    cpu: float


def _throughput(scale: Scale, broker: MosquittoProcess) -> Iterator[Row]:
    """The same messages from each publisher in turn."""
    size = scale.run
    publishers: dict[str, tuple[Publisher, Path | None]] = {
        "run": (_mqtt.run, None),
        "connector": (_mqtt.connector, None),
        "bare paho": (_mqtt.paho, None),
        "aiomqtt used well": (_mqtt.aiomqtt, None),
    }
    if scale.against is not None:
        publishers |= {"run there": (_mqtt.run, scale.against), "connector there": (_mqtt.connector, scale.against)}
    found: dict[str, list[Sent]] = {name: [] for name in publishers}
    for turn in range(scale.many_rounds):
        for name, (work, tree) in list(publishers.items())[:: -1 if turn % 2 else 1]:
            found[name].append(_sent(broker, work, size, tree))
    yield from _rates(size, found)
    yield from _cpu(size, found)
    if scale.against is not None:
        yield from _revisions(size, found, scale.against.name)


def _sent(broker: MosquittoProcess, work: Publisher, size: int, tree: Path | None) -> Sent:
    count = 2 * size + 6
    with fastest(broker, count) as wait:
        answer = call(work, tree=tree, size=size, port=broker.port)
        return Sent(count / (wait() - answer["start_at"]), answer["cpu"] / count)


def _rates(size: int, found: dict[str, list[Sent]]) -> Iterator[Row]:
    what = f"task messages to a subscriber, {size:,} tasks"
    ours = [sent.rate for sent in found["run"]]
    yield Row(f"{what}, absolute", amount(ours, "messages/s"), "", "", f"≥ {ENOUGH:,}/s", median(ours) >= ENOUGH)
    for name, goal in (("bare paho", OF_PAHO), ("aiomqtt used well", OF_AIOMQTT)):
        pairs = [(one.rate, other.rate) for one, other in zip(found["run"], found[name], strict=True)]
        yield versus(f"{what}, against {name}, same bytes and QoS", pairs, "messages/s", goal)


def _cpu(size: int, found: dict[str, list[Sent]]) -> Iterator[Row]:
    for ours, label in (("run", "the whole run"), ("connector", "the connector alone")):
        for name in ("bare paho", "aiomqtt used well"):
            pairs = [(one.cpu, other.cpu) for one, other in zip(found[ours], found[name], strict=True)]
            yield versus(f"CPU per message, {size:,} tasks, {label}, against {name}", pairs, "µs", scale=1e6)


def _revisions(size: int, found: dict[str, list[Sent]], there: str) -> Iterator[Row]:
    for ours, label in (("run", "the whole run"), ("connector", "the connector alone")):
        pairs = list(zip(found[ours], found[f"{ours} there"], strict=True))
        rates, cpu = [(one.rate, other.rate) for one, other in pairs], [(one.cpu, other.cpu) for one, other in pairs]
        yield versus(f"task messages to a subscriber, {size:,} tasks, {label}, against {there}", rates, "messages/s")
        yield versus(f"CPU per message, {size:,} tasks, {label}, against {there}", cpu, "µs", OF_REVISION, scale=1e6)


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
        works: dict[str, tuple[Publisher, int]] = {
            "live": (_mqtt.run, broker.port),
            **{kind: (_mqtt.run, port) for kind, port in ports.items()},
        }
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
