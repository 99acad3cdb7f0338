"""The flush at a run's end: bounded, in a thread beside the event loop."""

import asyncio
import math
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from cascade.connectors.otel._outbox import Outbox
from cascade.connectors.otel._routes import Route
from cascade.connectors.otel._signals import Signals
from cascade.connectors.otel._tally import FlushReport
from cascade.connectors.otel.provider import Tracing
from cascade.connectors.otel.provider_flush import flush_of

_SLICE = 0.5
"""Seconds that one message waits for room: half of the publish queue's limit for one message."""

_GRACE = 1.0
"""Seconds beyond its bound after which a flush is taken to be stuck."""


async def flush(
    tracing: Tracing,
    routes: Sequence[Route],
    timeout: float,  # noqa: ASYNC109 - the bound is its purpose
    signals: Signals,
    *,
    has_spans: bool,
    strict: bool,
) -> tuple[FlushReport, str]:
    """Flush the spans of the routes, and beside them the other signals, in `timeout` seconds.

    Returns the report of the spans and a warning about other signals, which may be empty. With an application's provider
    the report has no counts, and its reason is for a strict connector: `ProviderFlush` logs.
    """
    if tracing.is_own:
        done = await _in_thread(lambda: _flushed(routes, timeout, signals), timeout + _GRACE)
        return done or (FlushReport(reason=_stuck(timeout)), "")
    run = partial(flush_of(tracing.provider).run, timeout, has_spans=has_spans, strict=strict)
    others = _in_thread(lambda: signals.start_flush(timeout)(math.inf), timeout + _GRACE)
    problem, warning = await asyncio.gather(_in_thread(run, timeout + _GRACE), others)
    return FlushReport(reason=problem or "" if strict else ""), warning or ""


def _flushed(routes: Sequence[Route], timeout: float, signals: Signals) -> tuple[FlushReport, str]:
    # Spans and logs begin before the first wait: silent destinations cost one wait and not one each.
    flushes = [route.outbox.start_flush(timeout, tally=route.tally) for route in routes]
    wait_for_others = signals.start_flush(timeout)
    report = sum((flush.wait() for flush in flushes), FlushReport())
    # Where spans are not delivered, the other signals cost the run no further time.
    return report, wait_for_others(time.monotonic() if report.pending else math.inf)


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
    """Run `work` in a daemon thread; return its result, or None after `timeout` seconds. Its exceptions are raised."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[Any] = loop.create_future()

    def settle(result: Any, error: Exception | None) -> None:
        if not done.done():
            done.set_result(result) if error is None else done.set_exception(error)

    def run() -> None:
        result: Any = None
        error: Exception | None = None
        try:
            result = work()
        except Exception as caught:  # noqa: BLE001 - raised again where it is awaited
            error = caught
        with suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(settle, result, error)

    threading.Thread(target=run, name="cascade-flush", daemon=True).start()
    await asyncio.wait({done}, timeout=timeout)
    if not done.done():
        done.cancel()
        return None
    return done.result()
