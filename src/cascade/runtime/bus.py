"""The bus of *events* within a process; `cascade.messaging.bus` has the other MessageBus, of texts for people."""

import logging
from collections import defaultdict
from collections.abc import Awaitable, Callable
from typing import Any

from cascade.runtime.events import Event
from cascade.runtime.gates import Gates

logger = logging.getLogger(__name__)

Handler = Callable[[Any], None]
Drain = Callable[[str], Awaitable[None]]


class MessageBus:
    """Hands each event to its subscribers, at once and in the order of their subscription.

    A handler must be quick. One that raises is logged, the first time, and disturbs nobody. `gates` are those of
    subscribers that may hold back the start of tasks.
    """

    def __init__(self) -> None:
        self._handlers: dict[type[Event], list[tuple[int, Handler]]] = defaultdict(list)
        self._routes: dict[tuple[type[Event], bool], tuple[Handler, ...]] = {}
        self._of_failures: set[int] = set()
        self._count = 0
        self._drains: list[Drain] = []
        self.gates = Gates()
        self._reported: set[Handler] = set()

    def subscribe(self, event_type: type[Event], handler: Handler, *, failures_only: bool = False) -> None:
        """Call `handler` for each event of the type or of a subclass of it; `Event` itself brings all events.

        With `failures_only` not for those whose status is "Succeeded": with nobody else there, they are not made.
        """
        self._count += 1
        self._handlers[event_type].append((self._count, handler))
        if failures_only:
            self._of_failures.add(self._count)
        self._routes.clear()

    def publish(self, event: Event) -> None:
        for handler in self.handlers(type(event), succeeded=getattr(event, "status", None) == "Succeeded"):
            try:
                handler(event)
            except Exception:  # noqa: BLE001 - a subscriber must never harm a run
                self._report(handler, event)

    def handlers(self, event_type: type[Event], *, succeeded: bool = False) -> tuple[Handler, ...]:
        """Who would get such an event; with nobody there, the engine does not even make it."""
        route = self._routes.get((event_type, succeeded))
        if route is None:
            found = sorted((pair for base in event_type.__mro__ for pair in self._handlers.get(base, ())), key=_number)
            needless = self._of_failures if succeeded else ()
            route = tuple(handler for number, handler in found if number not in needless)
            self._routes[event_type, succeeded] = route
        return route

    def on_drain(self, drain: Drain) -> None:
        """Register what must be awaited at a run's end: `await drain(run_id)`, bounded in time by itself."""
        self._drains.append(drain)

    async def drain(self, run_id: str) -> None:
        for drain in self._drains:
            try:
                await drain(run_id)
            except Exception:
                logger.exception("A subscriber failed to hand over the last events of run %s", run_id)

    def _report(self, handler: Handler, event: Event) -> None:
        if handler not in self._reported:
            self._reported.add(handler)
            logger.exception(  # noqa: LOG004 - called from the handler in publish
                "Event handler %r failed on %s; its further failures are not logged", handler, type(event).__name__
            )


def _number(pair: tuple[int, Handler]) -> int:
    return pair[0]
