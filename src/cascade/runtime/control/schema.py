"""Write the JSON Schema of constraints; with `--check`, fail if the file is not current.

`parse_constraint` accepts exactly the payloads that the schema accepts. The topic is outside the schema: its type must
be that of the payload, and a resource has no scope `task`.
"""

from dataclasses import fields
from typing import Any, get_type_hints

from cascade.runtime.control.constraint import (
    MAX_CAPACITY,
    MAX_COUNT,
    MAX_NAME,
    RATE,
    TYPES,
    ZERO_RATE,
    Constraint,
    Pause,
)
from cascade.telemetry.limits import MAX_TIME
from cascade.telemetry.schema.generate import DIALECT, schema_of, write
from cascade.telemetry.wire import VERSION

# The wire form of each field, by name. The parser computes the fields that are not listed.
_COMMON: dict[str, dict[str, Any]] = {
    "id": {
        "maxLength": MAX_NAME,
        "description": "All messages about the constraint contain it. Default: the type.",
    },
    "expires_at": {
        "description": "Unix seconds at which the constraint ends. Null or absent: it applies until it is cleared."
    },
}
_PARAMS: dict[str, dict[str, Any]] = {
    "limit": {"type": "integer", "minimum": 1, "maximum": MAX_COUNT},
    "rate": {
        "type": "string",
        "pattern": f"^{RATE}$",
        "not": {"pattern": ZERO_RATE},
        "description": f"Starts per second, minute or hour: above zero, at most {MAX_COUNT:,} per second.",
        "examples": ["10/s", "2.5/m", "1/h"],
    },
    "burst": {
        "anyOf": [{"type": "number", "minimum": 1, "maximum": MAX_COUNT}, {"type": "null"}],
        "description": "Number of tasks that may start at once after a time without starts.",
    },
    "name": {"type": "string", "minLength": 1, "maxLength": MAX_NAME},
    "capacity": {"type": "number", "minimum": 0, "maximum": MAX_CAPACITY},
}
_OPTIONAL = {"burst"}


def schema() -> dict[str, Any]:
    """The schema of a constraint of any type."""
    return {
        "$schema": DIALECT,
        "$id": f"urn:cascade:control:{VERSION}",
        "title": "Cascade constraint",
        "oneOf": [{"$ref": f"#/$defs/{kind.__name__}"} for kind in TYPES],
        "$defs": {kind.__name__: _of(kind) for kind in TYPES},
    }


def _of(kind: type[Constraint]) -> dict[str, Any]:
    params = _params(kind)
    return {
        "title": kind.__name__,
        "description": (kind.__doc__ or "").partition("\n")[0],
        "type": "object",
        "required": ["type"] if kind is Pause else ["type", "params"],
        "properties": {
            "type": {"const": TYPES[kind]},
            **_common(),
            "params": {"anyOf": [params, {"type": "null"}]} if kind is Pause else params,
        },
        "additionalProperties": False,
    }


def _common() -> dict[str, Any]:
    hints = get_type_hints(Constraint)
    found = {name: schema_of(hints[name]) | details for name, details in _COMMON.items()}
    found["expires_at"]["anyOf"][0] |= {"minimum": 0, "maximum": MAX_TIME}
    return found


def _params(kind: type[Constraint]) -> dict[str, Any]:
    names = [field.name for field in fields(kind) if field.name in _PARAMS]
    return {
        "type": "object",
        "required": [name for name in names if name not in _OPTIONAL],
        "properties": {name: _PARAMS[name] for name in names},
        "additionalProperties": False,
    }


def main() -> None:
    write({"control": schema()}, "cascade.runtime.control.schema")


if __name__ == "__main__":
    main()
