"""JSON Schemas (2020-12) of the messages. `make docs` generates them from the dataclasses and TypedDicts of `cascade.spec`."""

import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
NAMES = ("message", "LifecycleEvent", "TaskStateEvent", "ResourceEvent", "ControlEvent", "state", "control")


def load(name: str = "message") -> dict[str, Any]:
    """Return a schema.

    Args:
        name: "message" for all messages of a run, the type of a body for one kind of message, "state" for the retained
            state of a run, or "control" for a constraint.

    Raises:
        ValueError: The name is unknown.
    """
    if name not in NAMES:
        raise ValueError(f"schema {name!r} does not exist: choose from {', '.join(NAMES)}")
    return dict(json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8")))
