"""New tasks wait for a slow collector while the buffer is full, but not for an unreachable one."""

import contextlib
import re
import threading
from collections.abc import Callable
from typing import Any

import pytest

import cascade as cs
from cascade.connectors.memory import MemoryConnector
from cascade.connectors.otel import OtelConnector
from tests.connectors.otel import servers
from tests.connectors.otel.tracing import warnings
from tests.lab.receiver import Fault, FaultyReceiver
from tests.lab.waiting import until_blocking

ITEMS = 400
BUFFER = 20_000
"""Bytes, enough for about forty tasks."""
SLOW = Fault(delay=0.05)


@cs.task
async def double(x: int) -> int:
    return 2 * x


def flow() -> Any:
    return double.map(x=list(range(ITEMS)))


class HoldingReceiver(FaultyReceiver):
    """Sends no response before the condition is true, however slow the tasks are."""

    condition: Callable[[], object] = staticmethod(lambda: True)

    def _hold(self, fault: Fault, is_cancelled: Callable[[], bool] = lambda: False) -> bool:
        until_blocking(self.condition)
        return super()._hold(fault, is_cancelled)


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_new_tasks_wait_for_a_slow_collector(protocol: str, caplog: pytest.LogCaptureFixture) -> None:
    memory = MemoryConnector()
    with HoldingReceiver() as receiver:
        receiver.fault = SLOW
        receiver.condition = lambda: any(p["body"].get("state") == "PENDING" for p in memory.payloads)
        connector = OtelConnector(receiver.endpoint(protocol), protocol=protocol, max_buffer_bytes=BUFFER)
        assert cs.run(flow(), connector=[connector, memory], log_level="ERROR") == [2 * x for x in range(ITEMS)]
        spans = receiver.spans
    assert warnings(caplog) == []
    assert len(spans.named("double")) == ITEMS
    assert spans.orphans() == []
    waits = spans.named("double wait")
    assert waits
    assert {span.attributes["cascade.wait.reason"] for span in waits} == {"telemetry"}
    held = [p for p in memory.payloads if p["body"].get("state") == "PENDING"]
    assert {p["body"]["metadata"]["reason"] for p in held} == {"telemetry"}
    (root,) = [span for span in spans if span.kind == "SERVER"]
    assert root.attributes["cascade.run.tasks.held_back"] == len(held)


def test_with_drop_no_task_waits(caplog: pytest.LogCaptureFixture) -> None:
    with HoldingReceiver() as receiver:
        receiver.fault = SLOW
        connector = OtelConnector(receiver.http_endpoint, max_buffer_bytes=BUFFER, on_full="drop")
        receiver.condition = lambda: connector.report().lost
        cs.run(flow(), connector=connector, log_level="ERROR")
        spans = receiver.spans
    (warning,) = warnings(caplog)
    assert warning.startswith("OtelConnector: ")
    assert "spans were lost" in warning
    assert "more than fits in memory" in warning
    assert 0 < len(spans.named("double")) < ITEMS
    assert not spans.named("double wait")
    assert spans.orphans() == [], "parent spans are dropped last"


@pytest.mark.usefixtures("real_limits")
@pytest.mark.parametrize("kind", ["refused", "silent"])
def test_no_task_waits_for_an_unreachable_collector(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    memory = MemoryConnector()
    with (
        contextlib.nullcontext(servers.unused_endpoint()) if kind == "refused" else servers.silent_server() as endpoint
    ):
        connector = OtelConnector(endpoint, max_buffer_bytes=BUFFER)
        cs.run(double(1), connector=connector, log_level="ERROR")  # this run finds it unreachable
        caplog.clear()
        assert cs.run(flow(), connector=[connector, memory], log_level="ERROR") == [2 * x for x in range(ITEMS)]
    assert not [p for p in memory.payloads if p["body"].get("state") == "PENDING"]
    (warning,) = warnings(caplog)
    lost, pending = map(int, re.findall(r"(\d+) spans (?:were|are)", warning))
    assert lost + pending == ITEMS + 3
    assert lost


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_new_tasks_wait_during_retryable_responses(protocol: str, caplog: pytest.LogCaptureFixture) -> None:
    memory = MemoryConnector()
    with FaultyReceiver() as receiver:
        receiver.fault = Fault.unavailable()

        def recover() -> None:
            until_blocking(lambda: any(p["body"].get("state") == "PENDING" for p in memory.payloads))
            receiver.fault = None

        recovering = threading.Thread(target=recover)
        recovering.start()
        connector = OtelConnector(receiver.endpoint(protocol), protocol=protocol, max_buffer_bytes=BUFFER)
        assert cs.run(flow(), connector=[connector, memory], log_level="ERROR") == [2 * x for x in range(ITEMS)]
        recovering.join()
        spans = receiver.spans
    assert warnings(caplog) == []
    assert len(spans.named("double")) == ITEMS
    assert spans.orphans() == []


def test_new_tasks_wait_no_longer_than_hold_timeout(caplog: pytest.LogCaptureFixture) -> None:
    with FaultyReceiver() as receiver:
        receiver.fault = Fault.unavailable()
        connector = OtelConnector(receiver.http_endpoint, max_buffer_bytes=BUFFER, hold_timeout=0.2, metrics=False)
        assert cs.run(flow(), connector=connector, log_level="ERROR") == [2 * x for x in range(ITEMS)]
    (warning,) = warnings(caplog)
    lost, pending = map(int, re.findall(r"(\d+) spans (?:were|are)", warning))
    assert lost > 0 < pending
    assert "503 Service Unavailable: try again" in warning


@pytest.mark.parametrize("value", [0, -1, 1.5, True, "64"])
def test_an_invalid_buffer_size_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="max_buffer_bytes="):
        OtelConnector("http://127.0.0.1:4318", max_buffer_bytes=value)


def test_an_unknown_policy_is_refused_with_the_choices() -> None:
    with pytest.raises(ValueError, match=r"on_full='block': choose from 'wait', 'drop'"):
        OtelConnector("http://127.0.0.1:4318", on_full="block")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
