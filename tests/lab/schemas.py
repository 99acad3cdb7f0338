"""The JSON Schema of messages for tests, which accepts no unknown key."""

from functools import cache
from typing import Any

from jsonschema import Draft202012Validator

from cascade.telemetry.schema import load


@cache
def closed_validator() -> Draft202012Validator:
    """Return a validator that refuses unknown keys. The published schema accepts them: changes within 1.x are additive."""
    return Draft202012Validator(_closed(load("message")))


def _closed(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    found = {
        key: {name: _closed(part) for name, part in value.items()} if key in {"properties", "$defs"} else _closed(value)
        for key, value in schema.items()
    }
    if schema.get("type") == "object" and "properties" in schema:
        found.setdefault("additionalProperties", False)
    return found
