"""Folds the messages of a run into its state, which new subscribers receive as a `RetainedRunState`."""

import threading
from collections.abc import Iterator, Mapping
from dataclasses import fields
from itertools import chain, islice
from typing import Any

from cascade.spec.telemetry import ActiveTask, LastError, RetainedRunState, RunStateStatus
from cascade.telemetry.limits import MAX_LISTED_TASKS
from cascade.telemetry.wire import timestamp

_Tasks = dict[str, tuple[str, Mapping[str, Any]]]
"""Name and metadata of tasks by id, in the order of their messages."""

_ENDS = {"COMPLETED": "completed", "SKIPPED": "skipped"}
_COUNTED = ("completed", "failed", "cancelled", "skipped")
_IDENTITY = ("run_id", "org_id", "project_id", "source", "trace_id")


class RunStateFold:
    """Folds the messages of one run into its state.

    `add` takes about a microsecond for runs of any size. The memory grows with the number of tasks that run or wait at the
    same time. All methods may be called in any thread.
    """

    def __init__(self, started: Mapping[str, Any]) -> None:
        """`started` is the payload of the first message of the run, ENGINE_STARTED."""
        metadata = started["body"]["metadata"]
        self._lock = threading.Lock()
        # The payload itself is not kept: it may be large, and the states of ended runs may wait for a broker.
        self._constant: dict[str, Any] = {name: started[name] for name in _IDENTITY}
        self._constant |= {"target": metadata.get("target", ""), "start_time": timestamp(metadata.get("start_ns", 0))}
        self._constant["tags"] = tuple(metadata.get("tags", ()))
        self._latest: tuple[str, int] = (started["ts"], started["seq"])
        self._status: RunStateStatus = "running"
        self._end: tuple[str, float] | None = None  # time and duration
        self._tasks = sum(metadata.get("tasks", {}).values())
        self._ended: dict[str, int] = dict.fromkeys(_COUNTED, 0)
        self._running: tuple[_Tasks, _Tasks] = ({}, {})
        self._waiting: tuple[_Tasks, _Tasks] = ({}, {})
        self._delays: dict[str, tuple[int, bool]] = {}  # of retries: end in nanoseconds, and True for an item
        self._last_error: LastError | None = None
        self._first_failure: LastError | None = None

    @property
    def is_over(self) -> bool:
        """Whether the run has ended."""
        return self._end is not None

    def add(self, payload: Mapping[str, Any]) -> None:
        """Fold the next message of the run."""
        body = payload["body"]
        with self._lock:
            self._latest = (payload["ts"], payload["seq"])
            if "task_id" in body:
                self._add_task(body, payload["ts"])
            elif "resource_name" in body:
                if "exception" in body["metadata"]:
                    self._fail(body, payload["ts"])
            elif body.get("event") == "ENGINE_STOPPED":
                self._stop(body, payload["ts"])

    def state(self, now_ns: int, listed: int = MAX_LISTED_TASKS) -> RetainedRunState:
        """Return the state at a time in nanoseconds since the Unix epoch, with at most `listed` running and waiting tasks."""
        with self._lock:
            self._end_delays(now_ns)
            end_time, duration_ms = self._end or (None, None)
            active = {"pending": _count(self._waiting), "running": _count(self._running)}
            return RetainedRunState(
                **self._constant,
                ts=self._latest[0],
                seq=self._latest[1],
                status=self._status,
                end_time=end_time,
                duration_ms=duration_ms,
                tasks=self._tasks,
                counts=active | self._ended,
                running=tuple(_listed(self._running, listed)),
                waiting=tuple(_listed(self._waiting, listed)),
                last_error=self._last_error,
            )

    def next_change_ns(self) -> int | None:
        """Return the end of the next delay of a retry, in nanoseconds since the Unix epoch. No message reports that change."""
        with self._lock:
            return min((until_ns for until_ns, _ in self._delays.values()), default=None)

    def _add_task(self, body: Mapping[str, Any], ts: str) -> None:
        metadata, task_id, state = body["metadata"], body["task_id"], body["state"]
        is_item = "map_id" in metadata
        running, waiting = self._running[is_item], self._waiting[is_item]
        if self._delays:
            self._delays.pop(task_id, None)
        if state == "RUNNING":
            if waiting:
                waiting.pop(task_id, None)
            running[task_id] = (body["task_name"], metadata)
            if "map_size" in metadata:
                self._tasks += metadata["map_size"]
        elif state == "PENDING":
            running.pop(task_id, None)
            if metadata.get("reason") == "retry":
                self._fail(body, ts)
                metadata = _delay(metadata)
                self._delays[task_id] = (metadata["until_ns"], is_item)
            waiting[task_id] = (body["task_name"], metadata)
        else:
            if running.pop(task_id, None) is None:
                waiting.pop(task_id, None)
            if state == "FAILED":
                self._end_failed(body, ts)
            else:
                self._ended[_ENDS[state]] += 1

    def _end_failed(self, body: Mapping[str, Any], ts: str) -> None:
        metadata = body["metadata"]
        if metadata.get("result") == "cancellation":
            self._ended["cancelled"] += 1
        elif (
            body["error"] is not None or metadata.get("kind") != "map"
        ):  # the message of an item has the failure of a map
            self._ended["failed"] += 1
            self._fail(body, ts)
            self._first_failure = self._first_failure or self._last_error

    def _end_delays(self, now_ns: int) -> None:
        """Move the tasks whose delay is over to the running ones. No message reports the start of their attempts."""
        due = [(task_id, is_item) for task_id, (until_ns, is_item) in self._delays.items() if until_ns <= now_ns]
        for task_id, is_item in due:
            del self._delays[task_id]
            name, delay = self._waiting[is_item].pop(task_id)
            metadata = {"kind": delay["kind"], "start_ns": delay["until_ns"], "attempt": delay["attempt"] + 1}
            if is_item:
                metadata |= {"map_id": delay["map_id"], "map_index": delay["map_index"]}
            if "label" in delay:
                metadata["label"] = delay["label"]
            self._running[is_item][task_id] = (name, metadata)

    def _stop(self, body: Mapping[str, Any], ts: str) -> None:
        metadata = body["metadata"]
        self._status = metadata.get("result") or _RESULTS[body["status"]]
        self._end = (timestamp(metadata.get("end_ns", 0)), body["duration_ms"])
        for tasks in (*self._running, *self._waiting, self._delays):
            tasks.clear()
        counts = metadata.get("counts", {})
        self._ended = {name: counts.get(name, count) for name, count in self._ended.items()}
        if body["error"] is None:
            return
        last = self._last_error
        self._fail(body, ts)
        error = self._last_error
        for known in (self._first_failure, last):  # these have the task or the resource of the error
            if known and error and (known.type, known.message) == (error.type, error.message):
                self._last_error = known
                return

    def _fail(self, body: Mapping[str, Any], ts: str) -> None:
        metadata = body["metadata"]
        exception = metadata.get("exception") or {}
        is_cancelled = metadata.get("result") == "cancellation"
        self._last_error = LastError(
            type="cancellation" if is_cancelled else exception.get("type", ""),
            message=exception.get("message") or body.get("error") or "",
            time=ts,
            task_id=body.get("task_id"),
            task_name=body.get("task_name"),
            map_index=metadata.get("map_index"),
            label=metadata.get("label"),
            resource_name=body.get("resource_name"),
        )


def encode_state(state: RetainedRunState) -> dict[str, Any]:
    """Return the payload of a state: all fields. Tasks and the error have only the fields that are not None."""
    found = {field.name: getattr(state, field.name) for field in fields(state)}
    found["running"] = [_present(task) for task in state.running]
    found["waiting"] = [_present(task) for task in state.waiting]
    if state.last_error is not None:
        found["last_error"] = _present(state.last_error)
    return found


_RESULTS: dict[str, RunStateStatus] = {"Succeeded": "success", "Failed": "failure", "Cancelled": "cancellation"}


def _present(value: ActiveTask | LastError) -> dict[str, Any]:
    return {field.name: found for field in fields(value) if (found := getattr(value, field.name)) is not None}


def _count(tasks: tuple[_Tasks, _Tasks]) -> int:
    return sum(map(len, tasks))


def _listed(tasks: tuple[_Tasks, _Tasks], count: int) -> Iterator[ActiveTask]:
    for task_id, (name, metadata) in islice(chain(*(group.items() for group in tasks)), count):
        until_ns = metadata.get("until_ns")
        yield ActiveTask(
            task_id=task_id,
            task_name=name,
            kind=metadata.get("kind", "task"),
            start_time=timestamp(metadata.get("start_ns", 0)),
            reason=metadata.get("reason"),
            constraint=metadata.get("constraint"),
            attempt=metadata.get("attempt"),
            end_time=None if until_ns is None else timestamp(until_ns),
            map_id=metadata.get("map_id"),
            map_index=metadata.get("map_index"),
            map_size=metadata.get("map_size"),
            label=metadata.get("label"),
        )


def _delay(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return the metadata of the wait before a retry, without the stack trace, which would stay in memory."""
    end_ns = metadata["end_ns"]
    kept = {
        key: metadata[key] for key in ("kind", "reason", "attempt", "map_id", "map_index", "label") if key in metadata
    }
    return kept | {"start_ns": end_ns, "until_ns": end_ns + round(metadata["delay_ms"] * 1e6)}
