"""JSON Schemas of the package for tests, which accept no unknown key."""

from typing import Any


def closed(schema: Any) -> Any:
    """Return a copy of a schema that refuses unknown keys. The published ones accept them: changes within 1.x are additive."""
    if isinstance(schema, list):
        return [closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    found = {
        key: {name: closed(part) for name, part in value.items()} if key in {"properties", "$defs"} else closed(value)
        for key, value in schema.items()
    }
    if schema.get("type") == "object" and "properties" in schema:
        found.setdefault("additionalProperties", False)
    return found
