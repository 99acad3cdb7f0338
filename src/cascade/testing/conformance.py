"""Conformance tests for connectors.

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

from cascade.connectors.memory import MemoryConnector
from cascade.runtime.protocols import Buffering
from cascade.spec.protocols import Connector
from cascade.spec.routing import Router
from cascade.spec.task import task
from cascade.telemetry.wire import decode
from cascade.testing._control_conformance import ControlConformance, bounded, run

__all__ = ["ConnectorConformance", "run_with"]


def run_with(connector: Connector, target: Any) -> Any:
    """Run a workflow with the connector in a new event loop and return its result."""
    return asyncio.run(bounded(run(connector, target)))


class ConnectorConformance(ControlConformance):
    """Tests that each connector must pass. Subclass it in a test module; pytest collects the subclass."""

    def make_connector(self) -> Connector:
        """Return a connector whose server is reachable."""
        raise NotImplementedError

    def make_dead_connector(self) -> Connector | None:
        """Return a connector whose server is unreachable; None if the connector has no server."""
        return None

    def received(self) -> list[dict[str, Any]] | None:
        """Return the payloads that the server has received; None if the test cannot read them."""
        return None

    def test_it_is_a_connector(self) -> None:
        assert isinstance(self.make_connector(), Connector)

    def test_a_run_returns_its_value_and_publishes_its_messages_in_order(self) -> None:
        before = len(self.received() or ())
        assert run_with(self.make_connector(), _workflow()) == [0, 2, 4]
        if (received := self.received()) is not None:
            headers = [decode(payload)[0] for payload in received[before:]]
            assert [header.seq for header in headers] == list(range(len(headers)))
            bodies = [payload["body"] for payload in received[before:]]
            assert bodies[0]["event"] == "ENGINE_STARTED"
            assert bodies[-1]["event"] == "ENGINE_STOPPED"
            assert {body.get("state") for body in bodies} >= {"RUNNING", "COMPLETED", "SKIPPED"}

    def test_a_failed_run_raises_the_error_of_its_task(self) -> None:
        def fail() -> None:
            raise LookupError("the workflow's own")

        try:
            run_with(self.make_connector(), task(fail)())
        except LookupError as error:
            assert str(error) == "the workflow's own"
        else:
            raise AssertionError("the run did not raise the error of its task")

    def test_it_serves_consecutive_and_concurrent_runs(self) -> None:
        connector = self.make_connector()
        assert [run_with(connector, _workflow()) for _ in range(2)] == [[0, 2, 4]] * 2

        async def concurrently() -> list[Any]:
            return list(await asyncio.gather(*(run(connector, _workflow()) for _ in range(4))))

        assert asyncio.run(bounded(concurrently())) == [[0, 2, 4]] * 4

    def test_it_does_not_change_a_payload(self) -> None:
        """The connectors of a run get the same objects."""
        recorder = MemoryConnector()
        run_with(recorder, _workflow())
        originals = copy.deepcopy(recorder.payloads)

        async def publish() -> None:
            connector = self.make_connector()
            await connector.connect()
            for message in recorder.messages:
                arguments = message.topic, message.payload, message.qos
                is_queued = connector.put(*arguments) if isinstance(connector, Buffering) else False
                assert isinstance(is_queued, bool), "put must return True, or False if the connector is full"
                if not is_queued:
                    await connector.publish(*arguments)
            await connector.disconnect()

        asyncio.run(bounded(publish()))
        assert recorder.payloads == originals

    def test_subscribe_returns(self) -> None:
        async def subscribe() -> None:
            connector = self.make_connector()
            await connector.connect()
            await connector.subscribe("cascade/control/local/default/#", _ignore)
            await connector.disconnect()

        asyncio.run(bounded(subscribe()))

    def test_a_cancelled_run_ends(self) -> None:
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

        asyncio.run(bounded(cancelled()))

    def test_a_run_succeeds_without_its_server(self) -> None:
        connector = self.make_dead_connector()
        if connector is not None:
            assert run_with(connector, _workflow()) == [0, 2, 4]


async def _ignore(topic: str, payload: dict[str, Any]) -> None:
    pass


def _workflow() -> Any:
    """A map with retries, a router with a pruned branch, and a task that collects the items."""
    calls: set[int] = set()

    def double(x: int) -> int:
        if x not in calls:
            calls.add(x)
            raise ConnectionError("the first attempt fails")
        return 2 * x

    doubled = task(double).map(x=[0, 1, 2]).with_retry(1)
    choice = Router(task(lambda: "a", name="choose")(), {"a": doubled, "b": task(lambda: None, name="other")()})
    return task(list, name="collect")(choice)
