"""Masks secrets: by the names of keys, and by the shape of texts.

`cascade.redact` of `cascade.telemetry.rules` extends the rules. The terminal, the log in JSON, the messages, the spans and the exported log records share these rules.
"""

import json
from collections.abc import Set as AbstractSet
from typing import Any

from cascade.telemetry._secret_keys import MASK, hides, is_secret, mask_mapping
from cascade.telemetry._secret_texts import mask_items, redact_text
from cascade.telemetry.limits import MAX_VALUE_BYTES
from cascade.telemetry.safe import safe

__all__ = ["MASK", "captured", "hides", "is_secret", "redact", "redact_text", "without_captured"]


def redact(value: Any) -> Any:
    """A copy of a JSON value in which secrets are masked, at any depth."""
    match value:
        case dict():
            return {redact_text(key): redact(item) for key, item in mask_mapping(value).items()}
        case list():
            return [redact(item) for item in mask_items(value)]
        case str():
            return redact_text(value)
        case _:
            return value


def captured(value: Any, limit: int = MAX_VALUE_BYTES) -> Any:
    """A value of the user's, safe, masked and small: at most `limit` bytes of JSON."""
    depth, items = 8, 100
    while True:
        shown = safe(value, depth=depth, items=items)
        if len(json.dumps(shown)) <= limit:
            return shown
        if depth <= 1 and items <= 1:
            return f"<{type(value).__module__}.{type(value).__qualname__}, too big>"
        depth, items = max(1, depth // 2), max(1, items // 3)


_VALUES = {"params": "params", "arguments": "arguments", "output": "results"}


def without_captured(payload: dict[str, Any], *, keep: AbstractSet[str]) -> dict[str, Any]:
    """The payload, or a copy without the user's values that are not in `keep` (of params, arguments, results)."""
    metadata = payload["body"].get("metadata", {})
    unwanted = [key for key, kind in _VALUES.items() if key in metadata and kind not in keep]
    if not unwanted:
        return payload
    kept = {key: value for key, value in metadata.items() if key not in unwanted}
    return {**payload, "body": {**payload["body"], "metadata": kept}}
