"""Runs for the conformance suite: with any connector, bounded in time, their events at hand."""

import asyncio
from collections.abc import Callable
from typing import Any

from cascade.adapters.executors.local import LocalExecutor
from cascade.adapters.solvers.native import NativeSolver
from cascade.runtime.bus import MessageBus
from cascade.runtime.engine import Engine
from cascade.runtime.subscribers import TelemetrySubscriber
from cascade.spec.protocols import Connector
from cascade.testing._patience import PATIENCE


def run_with(connector: Connector, target: Any) -> Any:
    """Run a workflow with the connector, in an event loop of its own."""
    return asyncio.run(bounded(lambda: run(connector, target)))


async def run(connector: Connector, target: Any, bus: MessageBus | None = None) -> Any:
    """Run a workflow with the connector; `bus` brings its events."""
    bus, executor = bus or MessageBus(), LocalExecutor()
    TelemetrySubscriber(bus, connector)
    try:
        return await Engine(NativeSolver(), executor, bus, connector=connector).run(target)
    finally:
        executor.close()


async def bounded(work: Callable[[], Any]) -> Any:
    return await asyncio.wait_for(work(), PATIENCE)
