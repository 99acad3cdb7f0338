"""Connects the connector of a run before its first event, and disconnects it after its last one."""

from collections.abc import AsyncIterator
from contextlib import nullcontext

from cascade._context_managers import async_context_manager
from cascade._internal_errors import raise_in_tests
from cascade._loggers import get_logger
from cascade.runtime.bus import MessageBus
from cascade.runtime.control.controller import Controller
from cascade.runtime.events import ConnectorFailed
from cascade.runtime.exceptions import TelemetryLostError
from cascade.runtime.guard import call_connector, flush_timeout_of
from cascade.runtime.protocols import Connector
from cascade.telemetry.sanitize import error_text

logger = get_logger(__name__)

CONNECT_TIMEOUT = 5.0
DISCONNECT_TIMEOUT = 30.0
"""Seconds in addition to the attribute `flush_timeout` of a connector."""


@async_context_manager
async def connected(
    connector: Connector | None, bus: MessageBus, run_id: str, control: Controller | None
) -> AsyncIterator[None]:
    """Keep the connector connected inside the block, and apply its constraints.

    Errors of the connector are logged. Only its `TelemetryLostError` is raised, after a run that succeeded.
    """
    if connector is None:
        yield
        return
    is_connected = await _connect(connector, bus, run_id)
    succeeded = False
    try:
        async with control.subscribed(connector, run_id) if is_connected and control else nullcontext():
            yield
        succeeded = True
    finally:
        await _disconnect(connector, strict=succeeded)


async def _connect(connector: Connector, bus: MessageBus, run_id: str) -> bool:
    try:
        await call_connector(connector.connect, CONNECT_TIMEOUT)
    except Exception as error:  # noqa: BLE001 - errors of telemetry do not end a run
        raise_in_tests(error)
        if bus.handlers(ConnectorFailed):
            bus.publish(ConnectorFailed(run_id=run_id, error=error_text(error)))
        else:
            logger.warning("%s could not connect: %s", type(connector).__name__, error_text(error))
        return False
    return True


async def _disconnect(connector: Connector, *, strict: bool) -> None:
    try:
        await call_connector(connector.disconnect, DISCONNECT_TIMEOUT + flush_timeout_of(connector))
    except TelemetryLostError as error:
        if strict:
            raise
        logger.warning("%s", error)
    except Exception as error:  # noqa: BLE001 - errors of telemetry do not end a run
        raise_in_tests(error)
        logger.warning("%s could not disconnect: %s", type(connector).__name__, error_text(error))
