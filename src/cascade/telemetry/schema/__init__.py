"""The wire's JSON Schemas (2020-12), generated from its dataclasses by `make docs`."""

import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
NAMES = ("message", "LifecycleEvent", "TaskStateEvent", "ResourceEvent", "ControlEvent", "state", "control")


def load(name: str = "message") -> dict[str, Any]:
    """A schema by name: "message" for what goes out, or a body's type; "state" for a run's retained state; "control" for a constraint that comes in.

    Raises:
        ValueError: There is none of that name.
    """
    if name not in NAMES:
        raise ValueError(f"schema {name!r}: choose from {', '.join(NAMES)}")
    return dict(json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8")))
