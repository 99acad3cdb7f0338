"""Amounts of system resources: capacities, amounts in use, and requests that wait."""

import asyncio
import math
from collections import defaultdict, deque
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real


@dataclass(eq=False, slots=True)
class _Request:
    amounts: dict[str, float]
    granted: asyncio.Future[None]


class ResourceManager:
    """Grants amounts of named resources, first come, first served per resource.

    A request gets all its amounts at once or waits, so that no order of requests can lead to a deadlock. Names without
    a capacity are unlimited. While a capacity is steered, the steered amount replaces it, and larger requests wait. To be
    used in one event loop at a time.
    """

    def __init__(self, capacity: Mapping[str, float] | None = None) -> None:
        self._capacity: dict[str, float] = {}
        self._steered: dict[str, float] = {}
        self._used: dict[str, float] = defaultdict(float)
        self._queues: dict[str, deque[_Request]] = defaultdict(deque)
        self.set_capacity(capacity or {})

    @property
    def usage(self) -> dict[str, float]:
        """Amounts in use, by name, of the resources that have a capacity."""
        return {name: self._used[name] for name in (self._capacity | self._steered)}

    def set_capacity(self, capacity: Mapping[str, float]) -> None:
        """Set the whole amount of the given resources; more may be in use until it is released.

        Raises:
            ValueError: An amount is no finite number from zero up.
        """
        checked = {name: _amount("Capacity", name, value) for name, value in capacity.items()}
        self._capacity.update(checked)
        self._grant(checked)

    def steer(self, name: str, capacity: float | None) -> None:
        """Let another capacity hold for a while, or with None the set one again.

        Who waits for more than there is then, and will never be more, gets the error that `acquire` has for it.
        """
        if capacity is None:
            self._steered.pop(name, None)
        else:
            self._steered[name] = _amount("Capacity", name, capacity)
        for request in list(self._queues.get(name, ())):
            self._serve_or_refuse(request)

    def check(self, requirements: Mapping[str, object]) -> None:
        """Raise ValueError, as `acquire` would, for amounts that can never be had."""
        self._checked(requirements)

    def try_acquire(self, requirements: Mapping[str, float]) -> bool:
        """Take the amounts if they can be had without waiting."""
        amounts = self._checked(requirements)
        if any(self._waiting(name) for name in amounts if self._is_limited(name)) or not self._fits(amounts):
            return False
        self._take(amounts)
        return True

    async def acquire(self, requirements: Mapping[str, float]) -> None:
        """Wait until all amounts are there, and take them.

        Raises:
            ValueError: More is asked for than there is in the whole, or an amount is no number.
        """
        if self.try_acquire(requirements):
            return
        request = _Request(self._checked(requirements), asyncio.get_running_loop().create_future())
        for name in request.amounts:
            self._queues[name].append(request)
        try:
            await request.granted
        except asyncio.CancelledError:
            granted = request.granted
            if granted.done() and not granted.cancelled() and granted.exception() is None:
                await self.release(request.amounts)
            self._grant(request.amounts)
            raise

    async def release(self, requirements: Mapping[str, float]) -> None:
        """Give the amounts back and let the next in line go on."""
        self.give_back(requirements)

    def give_back(self, requirements: Mapping[str, float]) -> None:
        for name, amount in requirements.items():
            self._used[name] = max(0.0, self._used[name] - amount)
        self._grant(requirements)

    def _is_limited(self, name: str) -> bool:
        return name in self._capacity or name in self._steered

    def _available(self, name: str) -> float:
        return self._steered.get(name, self._capacity.get(name, math.inf))

    def _checked(self, requirements: Mapping[str, object]) -> dict[str, float]:
        amounts = {name: _amount("Amount", name, value) for name, value in requirements.items()}
        if (excess := self._excess(amounts)) is not None:
            raise excess
        return amounts

    def _excess(self, amounts: Mapping[str, float]) -> ValueError | None:
        """The error for amounts that can never be had; that a capacity is steered below them will pass."""
        for name, amount in amounts.items():
            whole = self._capacity.get(name, math.inf)
            if amount > max(whole, self._steered.get(name, 0.0)):
                return ValueError(f"Resource '{name}': {amount:g} exceeds total system capacity of {whole:g}")
        return None

    def _waiting(self, name: str) -> bool:
        """Whether a request waits. Requests that are over are removed at the head of the queue."""
        queue = self._queues.get(name)
        while queue and queue[0].granted.done():
            queue.popleft()
        return bool(queue)

    def _fits(self, amounts: Mapping[str, float]) -> bool:
        # A tenth of a millionth absorbs the rounding of sums like 0.1 + 0.2.
        return all(self._used[name] + amount <= self._available(name) * (1 + 1e-9) for name, amount in amounts.items())

    def _take(self, amounts: Mapping[str, float]) -> None:
        for name, amount in amounts.items():
            self._used[name] += amount

    def _grant(self, names: Mapping[str, float]) -> None:
        """Serve the heads of these lines; whoever is served uncovers other heads."""
        open_names = list(names)
        while open_names:
            name = open_names.pop()
            if not self._waiting(name):
                continue
            head = self._queues[name][0]
            if self._is_first_everywhere(head) and self._fits(head.amounts):
                self._take(head.amounts)
                head.granted.set_result(None)
                open_names.extend(head.amounts)

    def _serve_or_refuse(self, request: _Request) -> None:
        if request.granted.done():
            return
        if (excess := self._excess(request.amounts)) is not None:
            request.granted.set_exception(excess)
            self._grant(request.amounts)
        elif self._is_first_everywhere(request) and self._fits(request.amounts):
            self._take(request.amounts)
            request.granted.set_result(None)
            self._grant(request.amounts)

    def _is_first_everywhere(self, request: _Request) -> bool:
        """Whether it stands at the head of each line that is one: where there is no limit, nobody waits for another."""
        return all(
            self._waiting(name) and self._queues[name][0] is request
            for name in request.amounts
            if self._is_limited(name)
        )


def _amount(what: str, name: str, value: object) -> float:
    shown = f"a {type(value).__name__}"
    if isinstance(value, Real) and not isinstance(value, bool):
        if math.isfinite(amount := float(value)) and amount >= 0:
            return amount
        shown = repr(value)
    raise ValueError(f"{what} of resource '{name}' must be a number from zero up, got {shown}")
