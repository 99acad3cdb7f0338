"""Numbers of tasks of a run by outcome, for its last message, its span and its result.

A map counts in addition to its items. It does not count if it failed because of an item.
"""

from collections import Counter

from cascade.runtime.events import TaskExecutionFinished, TaskSkipped

COUNTED = ("completed", "failed", "cancelled", "skipped", "cached", "retried", "held_back")
"""`cached` tasks are skipped tasks whose value comes from a cache. `retried` counts repeated attempts, `held_back` waits."""

CACHE_HIT = "CacheHit"


def count_finished(event: TaskExecutionFinished, counts: Counter[str]) -> None:
    """Count a task that was executed."""
    if event.status == "Succeeded":
        counts["completed"] += 1
    elif event.status == "Cancelled":
        counts["cancelled"] += 1
    elif event.kind != "map" or event.error is not None:  # the event of an item counts the failure of its map
        counts["failed"] += 1


def count_skipped(event: TaskSkipped, counts: Counter[str]) -> None:
    """Count a task that was skipped."""
    counts["skipped"] += 1
    if event.reason == CACHE_HIT:
        counts["cached"] += 1
