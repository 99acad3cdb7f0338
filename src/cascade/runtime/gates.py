"""Several gates as one."""

from cascade._loggers import get_logger
from cascade.runtime.guard import FAULTS, is_own_cancellation
from cascade.runtime.protocols import Gate
from cascade.telemetry.safe import error_text

logger = get_logger(__name__)


class Gates:
    """Full while one of them is. A gate that raises is removed, with a warning: it no longer holds tasks back."""

    def __init__(self, *gates: Gate) -> None:
        self._gates = list(gates)

    def add(self, gate: Gate) -> None:
        self._gates.append(gate)

    def is_full(self) -> bool:
        gate: Gate | None = None
        try:
            for gate in self._gates:  # a generator for `any` costs as much as the rest
                if gate.is_full():
                    return True
        except FAULTS as error:
            self._remove(gate, error)
            return self.is_full()
        return False

    async def room(self) -> None:
        for gate in list(self._gates):
            try:
                if gate.is_full():
                    await gate.room()
            except FAULTS as error:
                if is_own_cancellation(error):
                    raise
                self._remove(gate, error)

    def _remove(self, gate: Gate | None, error: BaseException) -> None:
        self._gates = [each for each in self._gates if each is not gate]
        logger.warning("%s no longer holds tasks back: %s", type(gate).__name__, error_text(error))
