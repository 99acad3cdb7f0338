"""Event bus, and the combined backpressure of its subscribers. `cascade.messaging.bus` has another MessageBus."""

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from cascade._internal_errors import raise_in_tests
from cascade._loggers import get_logger
from cascade.runtime.events import Event
from cascade.runtime.guard import FAULTS, is_own_cancellation
from cascade.runtime.protocols import Backpressure
from cascade.telemetry.sanitize import error_text

logger = get_logger(__name__)

Handler = Callable[[Any], None]
Drain = Callable[[str], Awaitable[None]]

ROOM_PAUSE = 0.01
"""Seconds between two calls of a source's `room` while the source stays full. Without it, a `room` that returns at once
would block the event loop."""


class MessageBus:
    """Event bus. It calls the handlers of each event at once, in the order of their subscription.

    A handler must be quick. The first exception of a handler is logged; no exception affects the run.

    Attributes:
        backpressure: The combined backpressure of the subscribers: while it is full, no task starts.
        captured: The kinds of values of tasks that subscribers read: some of `arguments`, `results`. Events of tasks have
            arguments and outputs only if it is not empty.
        measures_threads: Whether a subscriber reads `RunFinished.starved`.
        measures_tasks: Whether a subscriber reads `cpu_seconds` and `queue_seconds` of tasks.
    """

    measures_threads = measures_tasks = False

    def __init__(self) -> None:
        self._subscriptions: dict[type[Event], list[_Subscription]] = defaultdict(list)
        self._routes: dict[tuple[type[Event], bool, bool], tuple[Handler, ...]] = {}
        self._count = 0
        self._drains: list[Drain] = []
        self.backpressure = CombinedBackpressure()
        self.captured: frozenset[str] = frozenset()
        self._reported: set[Handler] = set()

    def subscribe(
        self,
        event_type: type[Event],
        handler: Handler,
        *,
        failures_only: bool = False,
        of_items: bool | None = None,
    ) -> None:
        """Call `handler` for each event of the type or of a subclass. `Event` receives all events.

        The engine does not make an event that has no handler.

        Args:
            event_type: The class of the events.
            handler: Called in the thread that publishes the event.
            failures_only: Excludes the events whose status is "Succeeded".
            of_items: True selects only the events of a map's items, False excludes them.
        """
        self._count += 1
        subscription = _Subscription(self._count, handler, failures_only=failures_only, of_items=of_items)
        self._subscriptions[event_type].append(subscription)
        self._routes.clear()

    def publish(self, event: Event) -> None:
        """Call the handlers of an event."""
        kind, succeeded = type(event), getattr(event, "status", None) == "Succeeded"
        self.call(self.handlers(kind, succeeded=succeeded, item=getattr(event, "map_id", None) is not None), event)

    def call(self, handlers: tuple[Handler, ...], event: Event) -> None:
        """Call these handlers, which `handlers` has returned for the event."""
        for handler in handlers:
            try:
                handler(event)
            except FAULTS as error:
                raise_in_tests(error)
                self._report(handler, event)

    def handlers(self, event_type: type[Event], *, succeeded: bool = False, item: bool = False) -> tuple[Handler, ...]:
        """Return the handlers of an event of this type, by success and by whether it is of a map's item."""
        route = self._routes.get((event_type, succeeded, item))
        if route is None:
            found = sorted(each for base in event_type.__mro__ for each in self._subscriptions.get(base, ()))
            route = tuple(each.handler for each in found if each.takes(succeeded=succeeded, item=item))
            self._routes[event_type, succeeded, item] = route
        return route

    def capture(self, values: frozenset[str]) -> None:
        """Add to `captured`: the events of tasks have arguments and outputs from now on, if `values` is not empty."""
        self.captured |= values

    def measure(self, *, tasks: bool = False) -> None:
        """Measure the worker threads of the runs that start from now on, for `RunFinished.starved`.

        With `tasks`, the CPU time and the waiting time of each task too.
        """
        self.measures_threads, self.measures_tasks = True, self.measures_tasks or tasks

    def on_drain(self, drain: Drain) -> None:
        """Register a coroutine function to await at the end of a run, as `drain(run_id)`. It must limit its own time."""
        self._drains.append(drain)

    async def drain(self, run_id: str) -> None:
        task = asyncio.current_task()
        for drain in self._drains:
            try:
                await drain(run_id)
            except FAULTS as error:
                if is_own_cancellation(error, task):
                    raise
                raise_in_tests(error)
                logger.exception("A subscriber failed to drain the last events of run %s", run_id)

    def _report(self, handler: Handler, event: Event) -> None:
        if handler not in self._reported:
            self._reported.add(handler)
            logger.exception(  # noqa: LOG004 - called from the handler in publish
                "Event handler %r failed on %s; its further failures are not logged", handler, type(event).__name__
            )


@dataclass(frozen=True, order=True)
class _Subscription:
    number: int
    handler: Handler = field(compare=False)
    failures_only: bool = field(compare=False)
    of_items: bool | None = field(compare=False)

    def takes(self, *, succeeded: bool, item: bool) -> bool:
        return not (succeeded and self.failures_only) and self.of_items in {None, item}


class CombinedBackpressure:
    """Full while one of its sources is full. A source that raises is removed, with a warning."""

    def __init__(self, *sources: Backpressure) -> None:
        self._sources = list(sources)

    def add(self, source: Backpressure) -> None:
        self._sources.append(source)

    def is_full(self) -> bool:
        source: Backpressure | None = None
        try:
            for source in self._sources:  # a generator for `any` costs as much as the rest
                if source.is_full():
                    return True
        except FAULTS as error:
            raise_in_tests(error)
            self._remove(source, error)
            return self.is_full()
        return False

    async def room(self) -> None:
        """Wait for each source that is full. A source whose `room` returns at once is called again after `ROOM_PAUSE`."""
        task, now = asyncio.current_task(), asyncio.get_running_loop().time
        for source in list(self._sources):
            start = now()
            try:
                if source.is_full():
                    await source.room()
                    if now() - start < ROOM_PAUSE and source.is_full():
                        await asyncio.sleep(ROOM_PAUSE)
            except FAULTS as error:
                if is_own_cancellation(error, task):
                    raise
                raise_in_tests(error)
                self._remove(source, error)

    def _remove(self, source: Backpressure | None, error: BaseException) -> None:
        self._sources = [each for each in self._sources if each is not source]
        logger.warning("%s no longer delays tasks: %s", type(source).__name__, error_text(error))
