"""Several gates as one."""

from cascade.runtime.protocols import Gate


class Gates:
    """Full while one of them is."""

    def __init__(self, *gates: Gate) -> None:
        self._gates = list(gates)

    def add(self, gate: Gate) -> None:
        self._gates.append(gate)

    def is_full(self) -> bool:
        for gate in self._gates:  # noqa: SIM110 - a generator for `any` costs as much as the rest
            if gate.is_full():
                return True
        return False

    async def room(self) -> None:
        for gate in self._gates:
            if gate.is_full():
                await gate.room()
