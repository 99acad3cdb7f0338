"""What every connector must do, as tests that anyone can run over their own.

from cascade.testing import ConnectorConformance

class TestMyConnector(ConnectorConformance):
    def make_connector(self): return MyConnector("127.0.0.1", port)
    def make_dead_connector(self): return MyConnector("127.0.0.1", unused_port)
    def received(self): return server.payloads
    async def send(self, topic, data, *, retain): await server.send(topic, data, retain); return True
"""

import asyncio
import copy
from typing import Any

from cascade.spec.protocols import Connector
from cascade.spec.routing import Router
from cascade.spec.task import task
from cascade.telemetry.wire import decode
from cascade.testing._runs import bounded, run, run_with
from cascade.testing.steering import SteeringConformance

__all__ = ["ConnectorConformance", "run_with"]


class ConnectorConformance(SteeringConformance):
    """Subclass it, give it a connector, and let pytest collect it."""

    def make_connector(self) -> Connector:
        """A connector whose other side is there."""
        raise NotImplementedError

    def make_dead_connector(self) -> Connector | None:
        """A connector whose other side is not there; None if there is no such thing."""
        return None

    def received(self) -> list[dict[str, Any]] | None:
        """The payloads that the other side has got so far; None if it cannot tell."""
        return None

    def test_it_is_a_connector(self) -> None:
        assert isinstance(self.make_connector(), Connector)

    def test_a_run_gives_its_value_and_all_its_messages_in_order(self) -> None:
        before = len(self.received() or ())
        assert run_with(self.make_connector(), _workflow()) == [0, 2, 4]
        if (received := self.received()) is not None:
            headers = [decode(payload)[0] for payload in received[before:]]
            assert [header.seq for header in headers] == list(range(len(headers)))
            bodies = [payload["body"] for payload in received[before:]]
            assert bodies[0]["event"] == "ENGINE_STARTED"
            assert bodies[-1]["event"] == "ENGINE_STOPPED"
            assert {body.get("state") for body in bodies} >= {"RUNNING", "COMPLETED", "SKIPPED"}

    def test_a_failing_run_raises_its_own_error(self) -> None:
        def fail() -> None:
            raise LookupError("the workflow's own")

        try:
            run_with(self.make_connector(), task(fail)())
        except LookupError as error:
            assert str(error) == "the workflow's own"
        else:
            raise AssertionError("the error was lost")

    def test_it_serves_runs_one_after_another_and_at_once(self) -> None:
        connector = self.make_connector()
        assert [run_with(connector, _workflow()) for _ in range(2)] == [[0, 2, 4]] * 2

        async def at_once() -> list[Any]:
            return list(await asyncio.gather(*(run(connector, _workflow()) for _ in range(4))))

        assert asyncio.run(bounded(at_once)) == [[0, 2, 4]] * 4

    def test_a_payload_is_not_changed(self) -> None:
        payload = _example_payload()
        original = copy.deepcopy(payload)

        async def publish() -> None:
            connector = self.make_connector()
            await connector.connect()
            await connector.publish("cascade/telemetry/local/default/run/events", payload, 1)
            await connector.disconnect()

        asyncio.run(bounded(publish))
        assert payload == original

    def test_subscribing_returns(self) -> None:
        async def subscribe() -> None:
            connector = self.make_connector()
            await connector.connect()
            await connector.subscribe("cascade/control/local/default/#", _ignore)
            await connector.disconnect()

        asyncio.run(bounded(subscribe))

    def test_a_run_that_is_cancelled_ends(self) -> None:
        async def cancelled() -> None:
            running = asyncio.Event()

            async def forever() -> None:
                running.set()
                await asyncio.Event().wait()

            work = asyncio.ensure_future(run(self.make_connector(), task(forever)()))
            await running.wait()
            work.cancel()
            await asyncio.wait({work})
            assert work.cancelled()

        asyncio.run(bounded(cancelled))

    def test_nobody_there_changes_nothing_but_the_telemetry(self) -> None:
        connector = self.make_dead_connector()
        if connector is None:
            return
        assert run_with(connector, _workflow()) == [0, 2, 4]


async def _ignore(topic: str, payload: dict[str, Any]) -> None:
    pass


def _workflow() -> Any:
    """A map with retries, a router whose other branch is pruned, and a task that collects."""
    calls: set[int] = set()

    def double(x: int) -> int:
        if x not in calls:
            calls.add(x)
            raise ConnectionError("the first time always fails")
        return 2 * x

    doubled = task(double).map(x=[0, 1, 2]).with_retry(1)
    choice = Router(task(lambda: "a", name="choose")(), {"a": doubled, "b": task(lambda: None, name="other")()})
    return task(list, name="collect")(choice)


def _example_payload() -> dict[str, Any]:
    return {
        "v": "1.0",
        "ts": "2026-01-01T00:00:00.000000Z",
        "run_id": "00000000-0000-4000-8000-000000000001",
        "org_id": "local",
        "project_id": "default",
        "source": "host-1",
        "trace_id": "00000000000040008000000000000001",
        "span_id": "0000000000000001",
        "parent_span_id": "0000000000000002",
        "trace_flags": 1,
        "seq": 0,
        "body": {
            "type": "TaskStateEvent",
            "task_id": "t",
            "task_name": "task",
            "state": "COMPLETED",
            "duration_ms": 1.0,
            "error": None,
            "metadata": {"kind": "task", "start_ns": 1, "end_ns": 1_000_001, "result": "success"},
        },
    }
