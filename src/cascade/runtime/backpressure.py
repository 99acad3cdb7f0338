"""Backpressure: full telemetry queues stop the start of tasks."""

from collections.abc import Callable

from cascade._loggers import get_logger
from cascade.runtime._task_group import TaskGroup
from cascade.runtime.guard import FAULTS, is_own_cancellation
from cascade.runtime.protocols import Backpressure
from cascade.telemetry.safe import error_text

logger = get_logger(__name__)


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
            self._remove(source, error)
            return self.is_full()
        return False

    async def room(self) -> None:
        for source in list(self._sources):
            try:
                if source.is_full():
                    await source.room()
            except FAULTS as error:
                if is_own_cancellation(error):
                    raise
                self._remove(source, error)

    def _remove(self, source: Backpressure | None, error: BaseException) -> None:
        self._sources = [each for each in self._sources if each is not source]
        logger.warning("%s no longer delays tasks: %s", type(source).__name__, error_text(error))


class StartThrottle:
    """Stops the start of tasks of one group while the backpressure is full, and calls `resume` once there is room.

    While no task of the group runs, the throttle is off: the next tasks start, and each publishes that it waits for
    telemetry.
    """

    def __init__(self, backpressure: CombinedBackpressure, group: TaskGroup, resume: Callable[[], None]) -> None:
        self._backpressure = backpressure
        self._group = group
        self._resume: Callable[[], None] | None = resume
        self._is_waiting = False

    def is_on(self) -> bool:
        """Whether no task may start now. If so, `resume` is called later."""
        if not self._group.is_busy or not self._backpressure.is_full():
            return False
        if not self._is_waiting:
            self._is_waiting = True
            self._group.spawn(self._wait())
        return True

    def close(self) -> None:
        """Drop `resume`: it refers to the owner of this object, and the cycle would keep the values of an ended run."""
        self._resume = None

    async def _wait(self) -> None:
        while self._backpressure.is_full() and not self._group.over:
            await self._backpressure.room()
        self._is_waiting = False
        if self._resume is not None:
            self._resume()
