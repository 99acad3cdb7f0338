"""How big things on the wire may be, and how a message that is too big becomes small enough."""

import json
from typing import Any

MAX_NAME_BYTES = 256
"""A task's name is a span's name, and a label in every dashboard."""
MAX_VALUE_BYTES = 2_000
"""Grafana Tempo cuts attribute values at 2,048 bytes by default."""
MAX_ERROR_BYTES = 2_000
MAX_STACK_BYTES = 16 * 1024
"""Deep enough for some 150 frames; what is cut is in the middle."""
MAX_LINKS = 128
"""The OpenTelemetry SDK's default limit of links in a span."""
MAX_CONTROL_EVENTS = 64
"""What became of constraints, in a run's last message and on its span: half of the SDK's default limit of events."""
MAX_LATER_ERRORS = 20
"""Errors after the first one, in a run's last message and on its span, such as those of teardowns."""
MAX_TIME = 1e11
"""Unix seconds until the year 5138; a time in milliseconds is beyond it."""
MAX_LISTED_TASKS = 20
"""Running tasks, and waiting tasks, that a run's retained state lists: one screen of a dashboard."""
MAX_MESSAGE_BYTES = 256 * 1024
"""The strictest broker in wide use (AWS IoT takes 128 KiB, Azure Event Grid 512 KiB) splits here or nearby."""

# What goes first is least missed; ids, times and states always stay.
_EXPENDABLE = (
    "arguments",
    "output",
    "params",
    "tasks",
    "inputs",
    "links",
    "attempts",
    "waits",
    "control",
    "later_errors",
    "exception",
    "parts",
)
_MAY_BE_BIG = frozenset(_EXPENDABLE)  # most messages have nothing that grows: no look at the whole is needed
_LISTS = frozenset({"links", "waits"})
FEW = 16
"""Entries of each of these lists that fit into any message. A link has at most 8,500 bytes, a wait 3,500."""


def size_of(payload: dict[str, Any]) -> int:
    """A payload's size on the wire, in bytes."""
    return len(json.dumps(payload, separators=(",", ":"), default=str))


def shrink(payload: dict[str, Any], limit: int = MAX_MESSAGE_BYTES) -> dict[str, Any]:
    """The payload itself, or a copy without so much of its metadata that it fits; `truncated` names what went."""
    metadata = payload["body"].get("metadata", {})
    if _MAY_BE_BIG.isdisjoint(metadata):
        return payload
    grown = _MAY_BE_BIG.intersection(metadata)
    # To measure a message takes as long as to encode it.
    is_small = limit >= MAX_MESSAGE_BYTES and grown <= _LISTS and all(len(metadata[key]) <= FEW for key in grown)
    if is_small or size_of(payload) <= limit:
        return payload
    kept, gone = dict(metadata), list(metadata.get("truncated", ()))
    small = {**payload, "body": {**payload["body"], "metadata": kept}}
    for key in _EXPENDABLE:
        if key in kept:
            del kept[key]
            kept["truncated"] = gone = [*gone, key]
            if size_of(small) <= limit:
                break
    return small
