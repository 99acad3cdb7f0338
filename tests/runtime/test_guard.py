"""An exception in any method of a connector does not end a run."""

import asyncio
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest

import cascade as cs
from cascade.connectors import fanout
from cascade.connectors.memory import MemoryConnector
from cascade.runtime import _connection
from cascade.runtime.guard import call_connector, flush_timeout_of, texts_of
from cascade.runtime.task_context import TaskContext
from cascade.spec.protocols import MessageCallback
from cascade.telemetry.identity import RunTrace, SpanRef, place_run
from tests.lab.waiting import NEVER
from tests.lab.workflows import TOTAL, all_task_kinds, in_loop


class HostileError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("it has no text")


pytestmark = pytest.mark.injects_errors("a CancelledError of a connector becomes a RuntimeError of the guard")
ERRORS = pytest.mark.parametrize(
    "error",
    [OSError("down"), HostileError(), asyncio.CancelledError("stray"), GeneratorExit("stray")],
    ids=lambda error: type(error).__name__,
)


class Raising(MemoryConnector):
    """Raises the error in one of its methods; one that returns a context manager raises in `__enter__` or `__exit__`."""

    def __init__(self, where: str, error: BaseException) -> None:
        super().__init__()
        self.where, self.error, self.calls = where, error, 0

    def _maybe(self, where: str) -> None:
        if where == self.where:
            self.calls += 1
            raise self.error

    async def connect(self) -> None:
        self._maybe("connect")
        await super().connect()

    async def disconnect(self) -> None:
        await super().disconnect()
        self._maybe("disconnect")

    async def publish(self, topic: str, payload: dict[str, Any], qos: int = 0) -> None:
        self._maybe("publish")
        await super().publish(topic, payload, qos)

    async def subscribe(self, topic: str, callback: MessageCallback) -> None:
        self._maybe("subscribe")

    async def unsubscribe(self, topic: str, callback: MessageCallback) -> None:
        self._maybe("unsubscribe")

    def is_full(self) -> bool:
        self._maybe("is_full")
        return self.where == "room"

    async def room(self) -> None:
        self._maybe("room")

    @property
    def capture(self) -> frozenset[str]:
        self._maybe("capture")
        return frozenset()

    @property
    def ignored(self) -> frozenset[str]:
        self._maybe("ignored")
        return frozenset()

    def place_run(self, run_id: str, target: str, start_ns: int, parent: SpanRef | None) -> RunTrace:
        self._maybe("place_run")
        return place_run(run_id, parent)

    def activate(self, task: TaskContext) -> AbstractContextManager[None]:
        self._maybe("activate")
        return _Active(self._maybe)


class _Active(nullcontext[None]):
    def __init__(self, maybe: Any) -> None:
        super().__init__()
        self._maybe = maybe

    def __enter__(self) -> None:
        self._maybe("__enter__")

    def __exit__(self, *_: object) -> None:
        self._maybe("__exit__")


METHODS = pytest.mark.parametrize(
    "where",
    [
        "connect",
        "disconnect",
        "publish",
        "subscribe",
        "unsubscribe",
        "is_full",
        "room",
        "capture",
        "ignored",
        "place_run",
        "activate",
        "__enter__",
        "__exit__",
    ],
)


@METHODS
@ERRORS
def test_an_error_of_a_connector_does_not_end_the_run(where: str, error: BaseException) -> None:
    connector = Raising(where, error)
    assert cs.run(all_task_kinds(), connector=connector, log_level="OFF") == TOTAL
    assert connector.calls > 0


@METHODS
@ERRORS
def test_an_error_of_a_connector_does_not_affect_another_connector(where: str, error: BaseException) -> None:
    good, bad = MemoryConnector(), Raising(where, error)
    assert cs.run(all_task_kinds(), connector=[bad, good], log_level="OFF") == TOTAL
    assert bad.calls > 0
    completed = [p for p in good.payloads if p["body"].get("state") == "COMPLETED"]
    assert len(completed) == 10
    assert good.payloads[-1]["body"]["event"] == "ENGINE_STOPPED"
    assert good.connections == 0


@METHODS
async def test_an_error_of_a_connector_does_not_end_run_async(where: str) -> None:
    connector = Raising(where, asyncio.CancelledError("stray"))
    assert await cs.run_async(all_task_kinds(), connector=connector, log_level="OFF") == TOTAL


@pytest.mark.parametrize("where", ["place_run", "activate", "is_full"])
def test_a_keyboard_interrupt_passes(where: str) -> None:
    with pytest.raises(KeyboardInterrupt):
        cs.run(in_loop(1), connector=Raising(where, KeyboardInterrupt()), log_level="OFF")


@pytest.mark.parametrize("where", ["connect", "disconnect", "unsubscribe"])
async def test_a_cancellation_of_the_run_passes(where: str) -> None:
    reached = asyncio.Event()

    class Waiting(MemoryConnector):
        async def _wait(self, at: str) -> None:
            if at == where:
                reached.set()
                await asyncio.sleep(NEVER)

        async def connect(self) -> None:
            await self._wait("connect")

        async def disconnect(self) -> None:
            await self._wait("disconnect")

        async def unsubscribe(self, topic: str, callback: MessageCallback) -> None:
            await self._wait("unsubscribe")

    run = asyncio.create_task(cs.run_async(in_loop(1), connector=Waiting(), log_level="OFF"))
    await reached.wait()
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run


async def test_a_cancellation_by_the_connector_is_an_error_with_a_text() -> None:
    async def cancel_itself() -> None:
        raise asyncio.CancelledError

    with pytest.raises(RuntimeError, match="the connector has cancelled the call"):
        await call_connector(cancel_itself)


@pytest.mark.parametrize("value", [[["results"]], "results"])
def test_a_value_that_is_no_list_of_words_has_no_words(value: Any) -> None:
    class Wrong:
        capture = value

    assert "results" not in texts_of(Wrong(), "capture")


def test_an_unreadable_list_of_words_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    class Wrong:
        capture = None

    assert texts_of(Wrong(), "capture") == frozenset()
    assert caplog.messages == ["Wrong.capture is ignored: TypeError: 'NoneType' object is not iterable"]


class SlowToEnd(MemoryConnector):
    """Disconnects after the whole time of its flush."""

    flush_timeout = NEVER

    def __init__(self) -> None:
        super().__init__()
        self.has_ended = False

    async def disconnect(self) -> None:
        await asyncio.sleep(0.2)
        self.has_ended = True


@pytest.mark.parametrize("in_fanout", [False, True], ids=["alone", "in a fanout"])
def test_a_connector_has_the_time_of_its_flush_to_disconnect(
    monkeypatch: pytest.MonkeyPatch, *, in_fanout: bool
) -> None:
    monkeypatch.setattr(_connection, "DISCONNECT_TIMEOUT", 0.01)
    monkeypatch.setattr(fanout, "DISCONNECT_TIMEOUT", 0.01)
    connector = SlowToEnd()
    cs.run(in_loop(1), connector=[connector, MemoryConnector()] if in_fanout else connector)
    assert connector.has_ended


@pytest.mark.parametrize(
    ("value", "expected"), [(2.5, 2.5), (3, 3.0), (-1, 0.0), ("5", 0.0), (None, 0.0), (float("nan"), 0.0)]
)
def test_an_invalid_flush_timeout_is_zero(value: Any, expected: float) -> None:
    connector = MemoryConnector()
    connector.flush_timeout = value  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
    assert flush_timeout_of(connector) == expected
    assert flush_timeout_of(MemoryConnector()) == 0.0
