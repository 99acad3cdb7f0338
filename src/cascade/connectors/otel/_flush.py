"""The flush at a run's end: bounded, off the event loop, and honest about what was lost."""

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from cascade.connectors.otel._outbox import Outbox
from cascade.connectors.otel._provider import Tracing
from cascade.connectors.otel._provider_flush import flush_of
from cascade.connectors.otel._routes import Route

_SLICE = 0.5
"""Seconds that one message waits for room: half of what the lane in front of us has patience for."""

_AFTERWARDS = 0.1
"""Seconds for the other signals once spans were lost."""

_GRACE = 1.0
"""Seconds beyond its bound after which a flush is taken to be stuck."""


async def flush(
    tracing: Tracing,
    routes: Sequence[Route],
    timeout: float,  # noqa: ASYNC109 - the bound is its purpose
    then: Callable[[float], None],
    *,
    has_spans: bool,
    strict: bool,
) -> tuple[int, str]:
    """How many spans of the routes were lost, and why.

    With an application's provider the number is 0, and the reason is for a strict connector: `ProviderFlush` logs.
    """
    if tracing.is_own:
        report = await _in_thread(lambda: _flushed(routes, timeout, then), timeout + _GRACE)
        return (0, _stuck(timeout)) if report is None else report
    run = partial(flush_of(tracing.provider).run, timeout, has_spans=has_spans, strict=strict)
    flushes = (_in_thread(run, timeout + _GRACE), _in_thread(lambda: then(timeout), timeout + _GRACE))
    problem, _ = await asyncio.gather(*flushes)
    return 0, problem or "" if strict else ""


def _flushed(routes: Sequence[Route], timeout: float, then: Callable[[float], None]) -> tuple[int, str]:
    deadline = time.monotonic() + timeout
    lost, reason = 0, ""
    for route in routes:
        report = route.outbox.flush(max(0.0, deadline - time.monotonic()), tally=route.tally)
        lost += report.lost
        reason = report.reason if report.lost else reason
    # What has just been found dead is not waited for again.
    then(min(_AFTERWARDS, max(0.0, deadline - time.monotonic())) if lost else max(0.0, deadline - time.monotonic()))
    return lost, reason


class Room:
    """Waits for room in an outbox, in one thread for however many tasks."""

    def __init__(self) -> None:
        self._waiting: asyncio.Future[Any] | None = None

    async def wait(self, outbox: Outbox) -> None:
        """Return when it has room again or its peer is not alive, and after half a second in any case."""
        waiting = self._waiting
        if waiting is None or waiting.done() or waiting.get_loop() is not asyncio.get_running_loop():
            waiting = asyncio.ensure_future(_in_thread(lambda: outbox.wait_for_room(_SLICE), _SLICE + _GRACE))
            self._waiting = waiting
        await asyncio.wait({waiting})


def _stuck(timeout: float) -> str:
    return f"the flush has not ended within {timeout:g} s"


async def _in_thread(work: Callable[[], Any], timeout: float) -> Any:  # noqa: ASYNC109 - as above
    """Run `work` in a thread that may outlive us: a stuck one must hold back neither the loop nor the process."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[Any] = loop.create_future()

    def settle(result: Any) -> None:
        if not done.done():
            done.set_result(result)

    def run() -> None:
        try:
            result = work()
        except Exception:  # noqa: BLE001 - telemetry never breaks a run
            result = None
        if not loop.is_closed():
            loop.call_soon_threadsafe(settle, result)

    threading.Thread(target=run, name="cascade-flush", daemon=True).start()
    await asyncio.wait({done}, timeout=timeout)
    return done.result() if done.done() else None
