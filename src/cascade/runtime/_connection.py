"""A run's hold on its connector: connect before, disconnect after, and no harm from either."""

from collections.abc import AsyncIterator
from contextlib import nullcontext

from cascade._blocks import async_block
from cascade._loggers import get_logger
from cascade.runtime.bus import MessageBus
from cascade.runtime.control.controller import Controller
from cascade.runtime.events import ConnectorFailed
from cascade.runtime.exceptions import TelemetryLostError
from cascade.runtime.guard import awaited, seconds
from cascade.spec.protocols import Connector
from cascade.telemetry.safe import error_text

logger = get_logger(__name__)

CONNECT_TIMEOUT = 5.0
DISCONNECT_TIMEOUT = 30.0
"""Seconds beyond the flush of a connector, whose length is its attribute `flush_timeout`; without it this is all."""


@async_block
async def connected(
    connector: Connector | None, bus: MessageBus, run_id: str, control: Controller | None
) -> AsyncIterator[None]:
    """Keep the connector connected for the block, and let it bring control.

    Only its `TelemetryLostError` comes through, after a run that succeeded.
    """
    if connector is None:
        yield
        return
    is_connected = await _connect(connector, bus, run_id)
    succeeded = False
    try:
        async with control.attached(connector, run_id) if is_connected and control else nullcontext():
            yield
        succeeded = True
    finally:
        await _disconnect(connector, strict=succeeded)


async def _connect(connector: Connector, bus: MessageBus, run_id: str) -> bool:
    try:
        await awaited(connector.connect, CONNECT_TIMEOUT)
    except Exception as error:  # noqa: BLE001 - telemetry never breaks a run
        if bus.handlers(ConnectorFailed):
            bus.publish(ConnectorFailed(run_id=run_id, error=error_text(error)))
        else:
            logger.warning("%s could not connect: %s", type(connector).__name__, error_text(error))
        return False
    return True


async def _disconnect(connector: Connector, *, strict: bool) -> None:
    try:
        await awaited(connector.disconnect, DISCONNECT_TIMEOUT + seconds(connector, "flush_timeout"))
    except TelemetryLostError as error:
        if strict:
            raise
        logger.warning("%s", error)
    except Exception as error:  # noqa: BLE001 - telemetry never breaks a run
        logger.warning("%s could not disconnect: %s", type(connector).__name__, error_text(error))
