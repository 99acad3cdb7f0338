"""Throughput to a subscriber of a real broker, against bare clients; cost of broker outages."""

import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import _mqtt
from benchmarks._measure import Figure, Goal, Row, absolute, amount, versus
from benchmarks._process import Result, background, call, run
from benchmarks._scale import Scale
from benchmarks._subscribers import LOG_SUBSCRIPTIONS, EndedTasks, mosquitto_sub
from tests.lab.mosquitto import MosquittoProcess

RATE_GOAL = Goal(25_000, is_floor=True, unit="/s")
"""Messages per second, from the engine to the subscriber."""
PAHO_GOAL = Goal(1.0, is_floor=True)
AIOMQTT_GOAL = Goal(1.3, is_floor=True)
WHILE_RUNNING = Goal(1.01)
AT_END = 1.0
"""Additional seconds that the end of a run may take, compared with a reachable broker."""
Publisher = Callable[..., Any]
"""Publishes the messages of a run of `size` tasks to the broker at `port`; returns its start and its CPU seconds."""
UNLIMITED = ("max_queued_messages 0", "max_inflight_messages 0")
"""Mosquitto's default limits drop messages of a burst if a subscriber is slower."""
_QUIET_TIMEOUT = 5.0
"""Seconds without a message after which no further message is expected."""


def rows(scale: Scale) -> Iterator[Row]:
    with MosquittoProcess(*UNLIMITED, LOG_SUBSCRIPTIONS) as broker:
        yield from _throughput(scale, broker)
        yield _cost(scale, broker)
        yield from _outages(scale, broker)


def figures(scale: Scale, tree: Path | None) -> Iterator[Figure]:
    """Yield the rate and the CPU time of the revision in `tree`."""
    size = scale.run
    with MosquittoProcess(*UNLIMITED, LOG_SUBSCRIPTIONS) as broker:
        for label, work in (("the whole run", _mqtt.run), ("the connector alone", _mqtt.connector)):
            sent = _sent(broker, work, size, tree)
            what = f"task messages to a subscriber, {size:,} tasks, {label}"
            yield Figure(what, sent.rate, "messages/s", is_rate=True)
            yield Figure(f"CPU per message, {size:,} tasks, {label}", sent.cpu, "µs", 1e6)


@dataclass(frozen=True, slots=True)
class Sent:
    """Messages per second at the subscriber, and CPU seconds per message of the publishing process."""

    rate: float
    cpu: float


def _throughput(scale: Scale, broker: MosquittoProcess) -> Iterator[Row]:
    """Measure the same messages from each publisher in turn."""
    size = scale.run
    publishers: dict[str, Publisher] = {
        "run": _mqtt.run,
        "connector": _mqtt.connector,
        "bare paho": _mqtt.paho,
        "tuned aiomqtt": _mqtt.aiomqtt,
    }
    found: dict[str, list[Sent]] = {name: [] for name in publishers}
    for turn in range(scale.many_rounds):
        for name, work in list(publishers.items())[:: -1 if turn % 2 else 1]:
            found[name].append(_sent(broker, work, size))
    yield from _rates(size, found)
    yield from _cpu(size, found)


def _sent(broker: MosquittoProcess, work: Publisher, size: int, tree: Path | None = None) -> Sent:
    count = 2 * size + 6
    with mosquitto_sub(broker, count) as wait:
        result = call(work, tree=tree, size=size, port=broker.port)
        return Sent(count / (wait() - result["start_at"]), result["cpu"] / count)


def _rates(size: int, found: dict[str, list[Sent]]) -> Iterator[Row]:
    what = f"task messages to a subscriber, {size:,} tasks"
    ours = [sent.rate for sent in found["run"]]
    yield absolute(f"{what}, absolute", ours, "messages/s", RATE_GOAL)
    for name, goal in (("bare paho", PAHO_GOAL), ("tuned aiomqtt", AIOMQTT_GOAL)):
        pairs = [(one.rate, other.rate) for one, other in zip(found["run"], found[name], strict=True)]
        yield versus(f"{what}, against {name}, same bytes and QoS", pairs, "messages/s", goal)


def _cpu(size: int, found: dict[str, list[Sent]]) -> Iterator[Row]:
    for ours, label in (("run", "the whole run"), ("connector", "the connector alone")):
        for name in ("bare paho", "tuned aiomqtt"):
            pairs = [(one.cpu, other.cpu) for one, other in zip(found[ours], found[name], strict=True)]
            yield versus(f"CPU per message, {size:,} tasks, {label}, against {name}", pairs, "µs", scale=1e6)


def _cost(scale: Scale, broker: MosquittoProcess) -> Row:
    pairs = []
    for _ in range(scale.rounds):
        with_connector, without = call(_mqtt.run, size=scale.run, port=broker.port), call(_mqtt.run, size=scale.run)
        pairs.append((with_connector["tasks"] / scale.run, without["tasks"] / scale.run))
    return versus(f"MqttConnector, until the last task, {scale.run:,} tasks, per task", pairs, "µs", scale=1e6)


def _outages(scale: Scale, broker: MosquittoProcess) -> Iterator[Row]:
    """Compare a refused connection, a frozen broker and missing authorization with a reachable broker."""
    with (
        socket.socket() as refusing,
        MosquittoProcess(*UNLIMITED) as freezing,
        MosquittoProcess(anonymous=False) as forbidding,
    ):
        refusing.bind(("127.0.0.1", 0))  # a bound port without a listener refuses connections
        ports = {"refused": refusing.getsockname()[1], "frozen": freezing.port, "not authorized": forbidding.port}
        works: dict[str, tuple[Publisher, int]] = {
            "reachable": (_mqtt.run, broker.port),
            **{kind: (_mqtt.run, port) for kind, port in ports.items()},
        }
        works["frozen, second run"] = _mqtt.run_again, freezing.port
        found: dict[str, list[Result]] = {kind: [] for kind in works}
        with freezing.frozen():
            for _ in range(scale.traced_rounds):
                for kind, (work, port) in works.items():
                    found[kind].append(run(work, size=scale.run, port=port))
    reachable = found.pop("reachable")
    again = found.pop("frozen, second run")
    for kind, results in found.items():
        yield from _rows(f"broker {kind}", results, reachable)
    yield _end("broker frozen, second run of a connector", again, reachable)
    frozen = [_frozen_during_run(scale) for _ in range(scale.traced_rounds)]
    yield _end("broker freezes in the middle of the run", frozen, reachable)
    yield _restarted(scale)


def _rows(what: str, outage: list[Result], reachable: list[Result]) -> Iterator[Row]:
    pairs = [(one.value["tasks"], other.value["tasks"]) for one, other in zip(outage, reachable, strict=True)]
    first, first_reachable = ([one.value["first"] for one in results] for results in (outage, reachable))
    # A run waits for retained constraints before its first task, one second at most.
    yield Row(f"{what}: until the first task", amount(first, "s"), amount(first_reachable, "s"))
    yield versus(f"{what}: from the first task to the last, against a reachable one", pairs, "s", WHILE_RUNNING)
    yield _end(what, outage, reachable)
    lines = [float(len(one.stderr)) for one in outage]
    yield Row(f"{what}: lines on stderr", amount(lines, "lines"), "", "", "1 warning", set(lines) == {1.0})


def _end(what: str, outage: list[Result], reachable: list[Result]) -> Row:
    end, end_reachable = ([one.value["end"] for one in results] for results in (outage, reachable))
    same = len({one.value["value"] for one in (*outage, *reachable)}) == 1
    goal, is_reached = f"≤ {AT_END:g} s more, same result", max(end) - min(end_reachable) <= AT_END and same
    ours, baseline = amount(end, "s"), amount(end_reachable, "s")
    return Row(f"{what}: from the last task to the end", ours, baseline, "", goal, is_reached)


def _frozen_during_run(scale: Scale) -> Result:
    """Return the result of a run whose broker freezes after a quarter of the tasks."""
    with (
        MosquittoProcess(*UNLIMITED) as broker,
        EndedTasks(broker.port) as ended,
        background(_mqtt.run, size=scale.run, port=broker.port) as result,
    ):
        ended.wait_for(scale.run // 4)
        with broker.frozen():
            return result()


def _restarted(scale: Scale) -> Row:
    """Count the ended tasks that a subscriber receives if the broker restarts in the middle of the run.

    The broker persists the session of the subscriber, so that only the connector can lose messages.
    """
    with MosquittoProcess(*UNLIMITED, "persistence true") as broker, EndedTasks(broker.port) as ended:
        with background(_mqtt.run, size=scale.run, port=broker.port) as result:
            ended.wait_for(scale.run // 4)
            broker.stop()
            broker.start()
            lines = result().stderr
        received = ended.wait_for(scale.run + 2, timeout=_QUIET_TIMEOUT)
    what = f"broker restarted in the middle of a run of {scale.run:,}: ended tasks received"
    is_all = received == scale.run + 2
    return Row(what, f"{received:,}", f"{scale.run + 2:,} tasks", f"{len(lines)} lines on stderr", "all", is_all)
