"""Folds the messages of a run into the numbers and names that the live view shows."""

from collections import Counter, deque
from collections.abc import Mapping
from typing import Any, NamedTuple

Message = Mapping[str, Any]

MAX_FAILURES = 8
"""Failed tasks, and failed items of a map, that the view may show."""
_MAX_FINISHED = 100
"""Ended tasks that the view may show: the lines of a tall terminal."""
_RATE_SECONDS = 10.0
"""Seconds over which the rate of a map is measured."""
_MIN_RATE_SECONDS = 2.0
_SAMPLES = 100


class Active(NamedTuple):
    """A task or item that runs or waits. `text` is the reason of its wait."""

    label: str
    start_ns: int
    text: str = ""


class Retry(NamedTuple):
    """A task or item between two attempts. `attempt` is the next of `attempts`, and starts at `until_ns`."""

    label: str
    start_ns: int
    attempt: int
    attempts: int
    until_ns: int
    error: str


class Ended(NamedTuple):
    """A task or item that has ended. `text` is its error, or the reason of its skip."""

    label: str
    start_ns: int
    length_ns: int
    text: str = ""
    is_skipped: bool = False


class Tasks:
    """The tasks of a run, or the items of a map.

    Attributes:
        done: The number of tasks that have a value. `cached` of these come from the cache.
        skipped: The number of tasks without a value that did not run.
        running: The tasks that run, by id.
        waiting: The tasks that wait before their start, by id.
        retries: The tasks that wait between two attempts, by id.
        failures: The latest failed tasks.
    """

    def __init__(self) -> None:
        self.done = self.cached = self.failed = self.skipped = self.cancelled = 0
        self.running: dict[str, Active] = {}
        self.waiting: dict[str, Active] = {}
        self.retries: dict[str, Retry] = {}
        self.failures: deque[Ended] = deque(maxlen=MAX_FAILURES)

    @property
    def ended(self) -> int:
        return self.done + self.failed + self.skipped + self.cancelled

    def start(self, task_id: str, body: Message) -> None:
        """Fold a message RUNNING."""
        self._forget(task_id)
        self.running[task_id] = Active(label_of(body), body["metadata"].get("start_ns", 0))

    def wait(self, task_id: str, body: Message) -> None:
        """Fold a message PENDING."""
        self._forget(task_id)
        metadata, label = body["metadata"], label_of(body)
        if metadata.get("reason") != "retry":
            self.waiting[task_id] = Active(label, metadata.get("start_ns", 0), wait_text(metadata))
            return
        end_ns, attempt = metadata.get("end_ns", 0), metadata.get("attempt", 0) + 1
        until_ns = end_ns + round(metadata.get("delay_ms", 0) * 1e6)
        attempts = metadata.get("max_attempts", 0) + 1
        self.retries[task_id] = Retry(label, end_ns, attempt, attempts, until_ns, body["error"] or "")

    def end(self, task_id: str, body: Message) -> Ended | None:
        """Fold the last message of a task. Return None for a cancelled one."""
        self._forget(task_id)
        metadata, state = body["metadata"], body["state"]
        reason = metadata.get("reason", "")
        if metadata.get("result") == "cancellation":
            self.cancelled += 1
            return None
        start_ns, end_ns = metadata.get("start_ns", 0), metadata.get("end_ns", 0)
        if state == "FAILED":
            self.failed += 1
            failure = Ended(label_of(body), start_ns, end_ns - start_ns, body["error"] or "")
            if failure.text:  # without it, an item of this map has failed
                self.failures.append(failure)
            return failure
        is_cached = reason == "CacheHit"
        self.done += state == "COMPLETED" or is_cached
        self.cached += is_cached
        self.skipped += state == "SKIPPED" and not is_cached
        return Ended(body["task_name"], start_ns, end_ns - start_ns, reason, is_skipped=state == "SKIPPED")

    def _forget(self, task_id: str) -> None:
        self.running.pop(task_id, None)
        if self.waiting:
            self.waiting.pop(task_id, None)
        if self.retries:
            self.retries.pop(task_id, None)


class MapProgress(Tasks):
    """A map that runs, and its items."""

    def __init__(self, name: str, size: int, start_ns: int) -> None:
        super().__init__()
        self.name, self.size, self.start_ns = name, size, start_ns
        self._samples: deque[tuple[float, int]] = deque(maxlen=_SAMPLES)

    def rate(self, now: float) -> float | None:
        """Return the items that were executed per second in the last seconds; None if it is not known. Called for each frame.

        Values from the cache do not count: the next items may not be in the cache.
        """
        executed = self.ended - self.cached - self.skipped
        samples = self._samples
        samples.append((now, executed))
        while len(samples) > 1 and now - samples[0][0] > _RATE_SECONDS:
            samples.popleft()
        seconds = now - samples[0][0]
        if seconds < _MIN_RATE_SECONDS or executed == samples[0][1]:
            return None
        return (executed - samples[0][1]) / seconds

    def reasons(self) -> Counter[str]:
        """Return the numbers of waiting items by reason."""
        return Counter(item.text for item in self.waiting.values())


class RunProgress(Tasks):
    """State of one run.

    Attributes:
        target: The name of the run.
        size: The number of tasks; a map counts once.
        maps: The maps that run, by id.
        finished: The latest tasks that have succeeded or were skipped.
    """

    def __init__(self, started: Message) -> None:
        """`started` is the first message of the run."""
        super().__init__()
        metadata = started["body"]["metadata"]
        self.target = metadata.get("target", "")
        self.start_ns = metadata.get("start_ns", 0)
        self.size = sum(metadata.get("tasks", {}).values())
        self.maps: dict[str, MapProgress] = {}
        self.finished: deque[Ended] = deque(maxlen=_MAX_FINISHED)

    @property
    def is_ticking(self) -> bool:
        """Whether the view changes with time: a task runs, or waits for its next attempt."""
        return bool(self.running or self.retries or any(one.running or one.retries for one in self.maps.values()))

    def add(self, payload: Message) -> None:
        """Fold a message of a task; other messages have no effect."""
        body = payload["body"]
        if "task_id" not in body:
            return
        task_id, state, metadata = body["task_id"], body["state"], body["metadata"]
        map_id = metadata.get("map_id")
        tasks: Tasks | None = self if map_id is None else self.maps.get(map_id)
        if tasks is None:  # an item of a map that has ended
            return
        if state == "RUNNING":
            if metadata.get("kind") == "map":
                self.waiting.pop(task_id, None)
                start_ns = metadata.get("start_ns", 0)
                self.maps[task_id] = MapProgress(label_of(body), metadata.get("map_size", 0), start_ns)
            else:
                tasks.start(task_id, body)
        elif state == "PENDING":
            tasks.wait(task_id, body)
        elif tasks is self:
            self._end_task(task_id, body)
        else:
            tasks.end(task_id, body)

    def _end_task(self, task_id: str, body: Message) -> None:
        ended = self.end(task_id, body)
        items = self.maps.pop(task_id, None)
        if ended is None:
            return
        if items is not None:
            self.failures.extend(items.failures)
        if body["state"] != "FAILED":
            self.finished.append(ended)


def label_of(body: Message) -> str:
    """Return the name of a task, with the label or the index of an item."""
    metadata, name = body["metadata"], body["task_name"]
    item = metadata.get("label", metadata.get("map_index"))
    return name if item is None else f"{name}[{item}]"


_REASONS = {
    "resource": "resources",
    "executor": "a free worker",
    "telemetry": "telemetry to be sent",
    "concurrency": "the concurrency limit",
    "rate_limit": "the rate limit",
}


def wait_text(metadata: Mapping[str, Any]) -> str:
    """Return why a task waits: `"paused (task/load)"`, `"waits for resources"`."""
    reason, constraint = metadata.get("reason", ""), metadata.get("constraint")
    text = "paused" if reason == "paused" else f"waits for {_REASONS.get(reason, reason)}"
    return text if constraint is None else f"{text} ({constraint['scope']})"
