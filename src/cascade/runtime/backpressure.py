"""Backpressure: full telemetry queues stop the start of tasks."""

from cascade._loggers import get_logger
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
