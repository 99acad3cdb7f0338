import asyncio
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest

import cascade as cs
from cascade.connectors import fanout
from cascade.connectors.fanout import FanoutConnector
from cascade.connectors.memory import MemoryConnector, PublishedMessage
from cascade.connectors.report import ConnectorReport
from cascade.runtime.exceptions import TelemetryLostError
from cascade.runtime.task_context import TaskContext
from cascade.telemetry.identity import RunTrace, SpanRef, place_run
from cascade.testing import ConnectorConformance
from cascade.testing.conformance import run_with


@cs.task
def one() -> int:
    return 1


class TestFanoutConnector(ConnectorConformance):
    def setup_method(self) -> None:
        self.children = MemoryConnector(), MemoryConnector()

    def make_connector(self) -> FanoutConnector:
        return FanoutConnector(self.children)

    def received(self) -> list[dict[str, Any]]:
        assert self.children[0].payloads == self.children[1].payloads
        return self.children[1].payloads

    async def send(self, topic: str, data: bytes, *, retain: bool) -> bool:
        await self.children[1].deliver(topic, data, retain=retain)
        return True


class Broken(MemoryConnector):
    def __init__(self, where: str) -> None:
        super().__init__()
        self.where = where

    async def _maybe(self, where: str) -> None:
        if self.where == f"hang in {where}":
            await asyncio.Event().wait()
        if self.where == where:
            raise OSError(f"broken in {where}")

    async def connect(self) -> None:
        await self._maybe("connect")

    async def disconnect(self) -> None:
        await self._maybe("disconnect")

    async def publish(self, topic: str, payload: dict[str, Any], qos: int = 0) -> None:
        await self._maybe("publish")


@pytest.mark.parametrize(
    "where", ["connect", "hang in connect", "disconnect", "hang in disconnect", "publish", "hang in publish"]
)
def test_an_error_of_one_connector_does_not_affect_the_others(
    where: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fanout, "CONNECT_TIMEOUT", 0.05)
    monkeypatch.setattr(fanout, "DISCONNECT_TIMEOUT", 0.05)
    good = MemoryConnector()
    assert run_with(FanoutConnector([Broken(where), good], drain_timeout=0.05), one()) == 1
    assert [p["body"].get("event") or p["body"]["state"] for p in good.payloads] == [
        "ENGINE_STARTED",
        "RUNNING",
        "COMPLETED",
        "ENGINE_STOPPED",
    ]
    assert good.connections == 0
    assert len(caplog.records) == 1
    assert caplog.messages[0].startswith("Broken")


def test_a_strict_connector_raises_after_the_others_have_ended(caplog: pytest.LogCaptureFixture) -> None:
    class Strict(MemoryConnector):
        async def disconnect(self) -> None:
            raise TelemetryLostError("2 spans were lost", lost=2)

    class Failing(MemoryConnector):
        async def disconnect(self) -> None:
            raise OSError("no route")

    good = MemoryConnector()
    with pytest.raises(TelemetryLostError):
        run_with(FanoutConnector([Strict(), Failing(), Strict(), good]), one())
    assert good.connections == 0
    failing, strict = caplog.messages
    assert failing == "Failing could not disconnect: OSError: no route"
    assert "2 spans were lost" in strict


class Capturing(MemoryConnector):
    capture = frozenset({"arguments", "results"})


def test_only_connectors_with_capture_receive_values() -> None:
    @cs.task
    def use(x: str) -> str:
        return x + "!"

    capturing, plain = Capturing(), MemoryConnector()
    run_with(FanoutConnector([capturing, plain]), use("4711"))
    (full,) = (p["body"]["metadata"] for p in capturing.payloads if p["body"].get("state") == "COMPLETED")
    assert (full["arguments"], full["output"]) == ({"0": "4711"}, "4711!")
    assert "4711" not in str(plain.payloads)


def test_a_connector_does_not_receive_the_messages_that_it_ignores() -> None:
    class Selecting(MemoryConnector):
        ignored = frozenset({"RUNNING", "COMPLETED"})  # the second one is not optional

    selecting, other = Selecting(), MemoryConnector()
    run_with(FanoutConnector([selecting, other]), one())
    states = [[p["body"]["state"] for p in each.payloads if "state" in p["body"]] for each in (selecting, other)]
    assert states == [["COMPLETED"], ["RUNNING", "COMPLETED"]]


class TracingConnector(MemoryConnector):
    def __init__(self, name: str, log: list[str]) -> None:
        super().__init__()
        self.name, self.log = name, log

    def place_run(self, run_id: str, target: str, start_ns: int, parent: SpanRef | None) -> RunTrace:
        self.log.append(f"place {self.name}")
        return place_run(run_id, parent)

    def activate(self, task: TaskContext) -> AbstractContextManager[None]:
        @contextmanager
        def active() -> Iterator[None]:
            self.log.append(f"enter {self.name}")
            yield
            self.log.append(f"leave {self.name}")

        return active()


def test_a_view_of_one_connector_replaces_lines_of_the_log(capsys: pytest.CaptureFixture[str]) -> None:
    class View(MemoryConnector):
        def shows(self, msg_id: str) -> bool:
            return msg_id == "task.started"

    cs.run(one(), connector=[MemoryConnector(), View()])
    shown = capsys.readouterr().err
    assert "Running one" not in shown
    assert "Finished one" in shown


def test_the_span_of_the_first_connector_is_current() -> None:
    log: list[str] = []
    run_with(FanoutConnector([TracingConnector("a", log), TracingConnector("b", log), MemoryConnector()]), one())
    assert log == ["place a", "place b", "enter b", "enter a", "leave a", "leave b"]


@pytest.mark.parametrize("name", ["connect", "disconnect", "subscribe", "unsubscribe", "publish"])
def test_a_connector_whose_method_cannot_be_read_does_not_affect_another(name: str) -> None:
    def fails(_: object) -> None:
        raise ImportError("no module named 'broker'")

    bad, good = type("Bad", (MemoryConnector,), {})(), MemoryConnector()
    setattr(type(bad), name, property(fails))
    assert cs.run(one(), connector=[bad, good], log_level="OFF") == 1
    assert good.payloads[-1]["body"]["event"] == "ENGINE_STOPPED"
    assert good.connections == 0


@pytest.fixture
def message() -> PublishedMessage:
    connector = MemoryConnector()
    run_with(connector, one())
    return connector.messages[0]


class Unreported(MemoryConnector):
    """A connector with another method of this name."""

    def report(self) -> Any:
        return "not a ConnectorReport"


class BrokenReport(MemoryConnector):
    def report(self) -> ConnectorReport:
        raise OSError("no report")


async def test_the_report_has_the_sums_of_all_connectors(message: PublishedMessage) -> None:
    first, second = MemoryConnector(), MemoryConnector()
    fanout_connector = FanoutConnector([first, second])
    await fanout_connector.connect()
    await fanout_connector.publish(message.topic, message.payload)
    assert fanout_connector.report() == ConnectorReport(queued=2, connected=True)
    await fanout_connector.disconnect()
    assert fanout_connector.report() == ConnectorReport(sent=2)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (Unreported, ConnectorReport(sent=1, connected=True)),
        (BrokenReport, ConnectorReport(sent=1, last_error="OSError: no report")),
    ],
)
async def test_a_connector_without_a_valid_report_counts_its_published_messages(
    kind: type[MemoryConnector], expected: ConnectorReport, message: PublishedMessage
) -> None:
    fanout_connector = FanoutConnector([kind()])
    await fanout_connector.connect()
    await fanout_connector.publish(message.topic, message.payload)
    await fanout_connector.disconnect()
    assert fanout_connector.report() == expected


async def test_the_report_contains_the_messages_of_the_publish_queue(message: PublishedMessage) -> None:
    fanout_connector = FanoutConnector([Broken("publish")])
    await fanout_connector.connect()
    await fanout_connector.publish(message.topic, message.payload)
    await fanout_connector.disconnect()
    report = fanout_connector.report()
    assert (report.sent, report.lost, report.queued) == (0, 1, 0)
    assert report.last_error


class ChangesInPublish(MemoryConnector):
    async def publish(self, topic: str, payload: dict[str, Any], qos: int = 0) -> None:
        payload["body"].get("metadata", {}).pop("map_id", None)
        await super().publish(topic, payload, qos)


class ChangesInPut(MemoryConnector):
    def is_full(self) -> bool:
        return False

    async def room(self) -> None: ...

    def put(self, topic: str, payload: dict[str, Any], qos: int = 0) -> bool:
        payload["body"].get("metadata", {}).pop("map_id", None)
        self.messages.append(PublishedMessage(topic, payload, qos))
        return True


class ReturnsNoneFromPut(ChangesInPut):
    def put(self, topic: str, payload: dict[str, Any], qos: int = 0) -> Any:
        self.messages.append(PublishedMessage(topic, payload, qos))


def test_a_put_that_returns_none_has_queued_the_message() -> None:
    connector = ReturnsNoneFromPut()
    cs.run(cs.task(lambda: 1, name="one", threaded=False)(), connector=connector, log_level="OFF")
    assert [payload["seq"] for payload in connector.payloads] == [0, 1, 2, 3]


@pytest.mark.parametrize("connector", [ChangesInPublish, ChangesInPut, ReturnsNoneFromPut])
def test_the_conformance_suite_detects_a_connector_with_this_fault(connector: type[MemoryConnector]) -> None:
    class Conformance(ConnectorConformance):
        def make_connector(self) -> MemoryConnector:
            return connector()

    with pytest.raises(AssertionError):
        Conformance().test_it_does_not_change_a_payload()
