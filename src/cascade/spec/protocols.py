"""Protocols of caches, state backends and connectors. They depend on no other part of Cascade."""

from collections.abc import Awaitable, Callable
from typing import Any, Protocol, runtime_checkable

MessageCallback = Callable[[str, dict[str, Any]], Awaitable[None]]
"""Callback for incoming messages. The connector calls `await callback(topic, payload)` in the event loop that subscribed.

`cascade.telemetry.wire.decode_incoming` returns the payload for the bytes of a message: an empty dict for an empty message,
which clears the retained message of the topic, and an `InvalidPayload` if the message is not a JSON object."""


class LazyFactory(Protocol):
    """Factory of lazy results. `.map(**lists)` returns one lazy result for all items of the lists."""

    @property
    def name(self) -> str: ...

    def map(self, **kwargs: Any) -> Any: ...


class CachePolicy(Protocol):
    """Stores the values of tasks for later runs. The engine calls both methods in the event loop of the run.

    `inputs` has all arguments by name. The names of positional arguments are "0", "1", …. If a keyword argument has the
    name of a position of the same call, as in `f(a, **{"0": b})`, its name is `**0`.

    A method with the parameter `task_name` also receives the name of the task, by keyword. An exception of either method is
    logged once for each task name of a run. The task runs as without a cache. `cascade.spec.caching.ResultCache` describes
    caches that store None, use the function of the task, or wait for a disk.
    """

    def check(self, task_id: str, inputs: dict[str, Any]) -> Any:
        """Return the stored value of the task, or None to run it."""
        ...

    def save(self, task_id: str, inputs: dict[str, Any], output: Any) -> None:
        """Store the output of a task that succeeded."""
        ...


class CacheBackend(Protocol):
    """Storage of a cache policy. `ttl` is in seconds; a value without it does not expire."""

    def get(self, key: str) -> Any: ...

    def set(self, key: str, value: Any, ttl: float | None = None) -> None: ...


class StateBackend(Protocol):
    """Stores the results and the skipped tasks of one run. The engine creates it with `cls(run_id=…)`.

    All methods are called in the event loop and must not block.
    """

    def put_result(self, node_id: str, result: Any) -> None: ...

    def get_result(self, node_id: str) -> Any: ...

    def has_result(self, node_id: str) -> bool: ...

    def mark_skipped(self, node_id: str, reason: str) -> None: ...

    def get_skip_reason(self, node_id: str) -> str | None: ...


@runtime_checkable
class Connector(Protocol):
    """Sends telemetry and, if the server supports it, receives control messages.

    The engine calls `connect` before the first event of a run, and always calls `disconnect` after the last one. Messages of
    one run are published one at a time and in order. Each method may raise: the run continues, and one warning is logged.
    """

    async def connect(self) -> None: ...

    async def disconnect(self) -> None:
        """Send the remaining messages within a bounded time, and close the connection."""
        ...

    async def publish(self, topic: str, payload: dict[str, Any], qos: int = 0) -> None:
        """Send one message, in the form of `cascade.telemetry.wire`. `qos` is 1 for messages that must arrive, else 0.

        The connector must not change the payload: the other connectors of the run get the same object.
        """
        ...

    async def subscribe(self, topic: str, callback: MessageCallback) -> None:
        """Call `callback` for each message on `topic`.

        Returns when the callback has received the retained messages of the topic, or after a bounded time. Returns at once
        if the server is known to be unreachable. A subscription ends with the last `disconnect`.
        """
        ...
