"""Protocols of caches, state backends and connectors. They use no other part of Cascade."""

from collections.abc import Awaitable, Callable
from typing import Any, Protocol, runtime_checkable

MessageCallback = Callable[[str, dict[str, Any]], Awaitable[None]]
"""What a connector calls for each incoming message: `await callback(topic, payload)`, in the event loop that subscribed.

`payload` is what `cascade.telemetry.wire.decode_incoming` makes of the message's bytes: empty for an empty message, which clears
what was retained, and an `InvalidPayload` for one that is no JSON object."""


class LazyFactory(Protocol):
    """Something that makes lazy results; `.map(**lists)` makes one for a whole list."""

    @property
    def name(self) -> str: ...

    def map(self, **kwargs: Any) -> Any: ...


class CachePolicy(Protocol):
    """Supplies the value of a task from an earlier run.

    `inputs` holds every argument by name; positional ones as "0", "1", …. A keyword argument that would read as a
    position of the same call, such as `f(a, **{"0": b})`, has the name `**0`.
    """

    def check(self, task_id: str, inputs: dict[str, Any]) -> Any:
        """Return the value to use instead of running the task, or None to run it."""
        ...

    def save(self, task_id: str, inputs: dict[str, Any], output: Any) -> None:
        """Keep the output of a task that succeeded."""
        ...


class CacheBackend(Protocol):
    """Where a cache policy may keep its values. `ttl` is in seconds; None keeps the value for good."""

    def get(self, key: str) -> Any: ...

    def set(self, key: str, value: Any, ttl: float | None = None) -> None: ...


class StateBackend(Protocol):
    """Holds one run's results and skips. Built as `cls(run_id=…)`; called on the event loop, so it must not block."""

    def put_result(self, node_id: str, result: Any) -> None: ...

    def get_result(self, node_id: str) -> Any: ...

    def has_result(self, node_id: str) -> bool: ...

    def mark_skipped(self, node_id: str, reason: str) -> None: ...

    def get_skip_reason(self, node_id: str) -> str | None: ...


@runtime_checkable
class Connector(Protocol):
    """Moves telemetry out and, where the other side can steer, control in.

    The engine calls `connect` before the first event of a run and `disconnect` after the last one, in a `finally`.
    Messages of one run are published one at a time and in order. Any of the four may raise: the run goes on and one
    warning is logged.
    """

    async def connect(self) -> None: ...

    async def disconnect(self) -> None:
        """Hand over what is still held, within a bounded time, and let go of the connection."""
        ...

    async def publish(self, topic: str, payload: dict[str, Any], qos: int = 0) -> None:
        """Take one message (`cascade.telemetry.wire` describes it). `qos` is 1 for what must arrive, else 0."""
        ...

    async def subscribe(self, topic: str, callback: MessageCallback) -> None:
        """Call `callback` for each message on `topic`.

        Returns when the messages that the other side already holds for the topic have been passed to the callback, or
        after a bounded time; at once if the other side is known to be dead. A subscription ends with the last `disconnect`.
        """
        ...
