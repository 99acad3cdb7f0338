"""Fixtures with an engine that records its events."""

from collections.abc import Callable
from typing import Any, TypeVar

import pytest

from cascade.adapters.executors.local import LocalExecutor
from cascade.adapters.solvers.native import NativeSolver
from cascade.runtime.bus import MessageBus
from cascade.runtime.engine import Engine
from cascade.runtime.events import Event

E = TypeVar("E", bound=Event)


class Recorder:
    """Records all events of a bus, in order."""

    def __init__(self, bus: MessageBus) -> None:
        self.events: list[Event] = []
        bus.subscribe(Event, self.events.append)

    def of(self, kind: type[E], name: str | None = None) -> list[E]:
        return [e for e in self.events if isinstance(e, kind) and (name is None or getattr(e, "task_name", "") == name)]

    def event_names(self) -> list[str]:
        """Return the class of each event, and the name of its task."""
        return [f"{type(e).__name__} {getattr(e, 'task_name', '')}".strip() for e in self.events]


class RecordedEngine:
    """An engine with a local executor, and the events that it has published."""

    def __init__(self, **options: Any) -> None:
        self.bus = MessageBus()
        self.recorder = Recorder(self.bus)
        self.executor = LocalExecutor()
        self.engine = Engine(NativeSolver(), self.executor, self.bus, **options)
        self.run = self.engine.run
        self.of = self.recorder.of


@pytest.fixture
def make_recorded() -> Callable[..., RecordedEngine]:
    return RecordedEngine


@pytest.fixture
def recorded() -> RecordedEngine:
    return RecordedEngine()
