"""Amounts of system resources: capacities, usage, and a FIFO queue of requests per resource."""

import asyncio
import math
from collections import defaultdict, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from numbers import Real


@dataclass(eq=False, slots=True)
class _Request:
    amounts: dict[str, float]
    granted: asyncio.Future[None]


class ResourceManager:
    """Grants amounts of named resources, first come, first served per resource.

    A request gets all its amounts at once or waits, so that requests cannot deadlock. Names without a
    capacity are unlimited. An override replaces a capacity; requests above the override wait. Use it in one event loop
    at a time.
    """

    def __init__(self, capacity: Mapping[str, float] | None = None) -> None:
        self._capacity: dict[str, float] = {}
        self._overrides: dict[str, float] = {}
        self._used: dict[str, float] = defaultdict(float)
        self._queues: dict[str, deque[_Request]] = defaultdict(deque)
        self.set_capacity(capacity or {})

    @property
    def usage(self) -> dict[str, float]:
        """Amounts in use, by name, of the resources that have a capacity or an override."""
        return {name: self._used[name] for name in (self._capacity | self._overrides)}

    def set_capacity(self, capacity: Mapping[str, float]) -> None:
        """Set the capacities of the given resources. Amounts above a lower capacity stay in use until their release.

        Raises:
            ValueError: An amount is not a finite number from 0.
        """
        checked = {name: _amount("Capacity", name, value) for name, value in capacity.items()}
        self._capacity.update(checked)
        self._grant_heads(checked)

    def override(self, name: str, capacity: float | None) -> None:
        """Replace the capacity of a resource. None removes the override.

        A waiting request that exceeds both the capacity and the new override gets the error of `acquire`.
        """
        if capacity is None:
            self._overrides.pop(name, None)
        else:
            self._overrides[name] = _amount("Capacity", name, capacity)
        for request in list(self._queues.get(name, ())):
            if request.granted.done():
                continue
            if (error := self._excess(request.amounts)) is not None:
                request.granted.set_exception(error)
                self._grant_heads(request.amounts)
            elif self._try_grant(request):
                self._grant_heads(request.amounts)

    def checked(self, requirements: Mapping[str, object]) -> dict[str, float]:
        """Return the amounts. Raises the ValueError of `acquire` for amounts that it can never grant."""
        amounts = {name: _amount("Amount", name, value) for name, value in requirements.items()}
        if (error := self._excess(amounts)) is not None:
            raise error
        return amounts

    def try_acquire(self, requirements: Mapping[str, float]) -> bool:
        """Acquire the amounts if they are available. Returns False if the request would wait."""
        amounts = self.checked(requirements)
        if any(self._has_waiters(name) for name in amounts if self._is_limited(name)) or not self._fits(amounts):
            return False
        self._use(amounts)
        return True

    async def acquire(self, requirements: Mapping[str, float]) -> None:
        """Wait until all amounts are available, and acquire them.

        Raises:
            ValueError: An amount exceeds the capacity, or is not a number.
        """
        if self.try_acquire(requirements):
            return
        request = _Request(self.checked(requirements), asyncio.get_running_loop().create_future())
        for name in request.amounts:
            self._queues[name].append(request)
        try:
            await request.granted
        except asyncio.CancelledError:
            granted = request.granted
            if granted.done() and not granted.cancelled() and granted.exception() is None:
                self.release_nowait(request.amounts)
            self._grant_heads(request.amounts)
            raise

    async def release(self, requirements: Mapping[str, float]) -> None:
        """Release the amounts and grant the next requests."""
        self.release_nowait(requirements)

    def release_nowait(self, requirements: Mapping[str, float]) -> None:
        """Release the amounts and grant the next requests, without an `await`."""
        for name, amount in requirements.items():
            self._used[name] = max(0.0, self._used[name] - amount)
        self._grant_heads(requirements)

    def _is_limited(self, name: str) -> bool:
        return name in self._capacity or name in self._overrides

    def _excess(self, amounts: Mapping[str, float]) -> ValueError | None:
        """Return the error for amounts above the capacity. A lower override is temporary: requests above it wait."""
        for name, amount in amounts.items():
            capacity = self._capacity.get(name, math.inf)
            if amount > max(capacity, self._overrides.get(name, 0.0)):
                return ValueError(f"Resource '{name}': {amount:g} exceeds total system capacity of {capacity:g}")
        return None

    def _has_waiters(self, name: str) -> bool:
        """Whether a request waits for the resource. Removes ended requests from the head of its queue."""
        queue = self._queues.get(name)
        while queue and queue[0].granted.done():
            queue.popleft()
        return bool(queue)

    def _fits(self, amounts: Mapping[str, float]) -> bool:
        # The tolerance of 1e-9 absorbs the rounding of sums like 0.1 + 0.2.
        return all(
            self._used[name] + amount <= self._overrides.get(name, self._capacity.get(name, math.inf)) * (1 + 1e-9)
            for name, amount in amounts.items()
        )

    def _use(self, amounts: Mapping[str, float]) -> None:
        for name, amount in amounts.items():
            self._used[name] += amount

    def _grant_heads(self, names: Iterable[str]) -> None:
        """Grant the requests at the heads of these queues, and the requests behind them."""
        pending = list(names)
        while pending:
            name = pending.pop()
            if self._has_waiters(name):
                head = self._queues[name][0]
                if self._try_grant(head):
                    pending.extend(head.amounts)

    def _try_grant(self, request: _Request) -> bool:
        """Grant a request that is at the head of the queue of each limited resource, if its amounts are available."""
        for name in request.amounts:
            if self._is_limited(name) and not (self._has_waiters(name) and self._queues[name][0] is request):
                return False
        if not self._fits(request.amounts):
            return False
        self._use(request.amounts)
        request.granted.set_result(None)
        return True


def _amount(what: str, name: str, value: object) -> float:
    shown = f"a {type(value).__name__}"
    if isinstance(value, Real) and not isinstance(value, bool):
        if math.isfinite(amount := float(value)) and amount >= 0:
            return amount
        shown = repr(value)
    raise ValueError(f"{what} of resource '{name}' must be a number from zero up, got {shown}")
