"""Keep secrets from leaving: by the names of keys, and by the looks of texts."""

import json
import re
from collections.abc import Set as AbstractSet
from itertools import pairwise
from typing import Any

from cascade.telemetry.limits import MAX_VALUE_BYTES
from cascade.telemetry.safe import safe

MASK = "***"

# fmt: off
_SECRET_WORDS = frozenset({
    "password", "passwd", "pwd", "passphrase", "secret", "secrets", "token", "apikey", "authorization", "auth",
    "bearer", "credential", "credentials", "cookie", "cookies", "session", "privatekey", "accesskey", "signature",
    "pin", "cvv", "ssn", "dsn",
})
_SECRET_PAIRS = frozenset({("api", "key"), ("private", "key"), ("access", "key"), ("secret", "key"), ("session", "id")})
_MEASURES = frozenset({
    "count", "counts", "per", "limit", "length", "max", "min", "number", "size", "usage", "used", "rate", "budget",
})
# fmt: on
_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")

_IN_URL = re.compile(r"(?P<scheme>\b[a-zA-Z][a-zA-Z0-9+.-]*://)[^/\s@:]*(?::[^/\s@]*)?@")
# A word of prose has neither a digit nor a capital within: "a basic idea" is none.
_IN_HEADER = re.compile(r"\b(?P<kind>(?i:Bearer|Basic))\s+(?=[A-Za-z._~+/-]*[0-9A-Z=])[A-Za-z0-9._~+/=-]{4,}")
_IN_PAIR = re.compile(
    r"(?P<key>\b[\w-]*(?:password|passwd|pwd|secret|token|api[_-]?key|access[_-]?key)\"?'?\s*[=:]\s*)(?P<q>[\"']?)[^\s\"'&,;)}]+",
    re.IGNORECASE,
)
_SUSPICIOUS = re.compile(r"://|bearer|basic|passw|pwd|secret|token|key", re.IGNORECASE)


def is_secret(key: str) -> bool:
    """Whether a key, in snake, camel or kebab case, names a secret: `dbPassword` does, `token_count` does not."""
    words = [word.lower() for word in _WORDS.findall(key)]
    if any(word in _MEASURES for word in words):
        return False
    return any(word in _SECRET_WORDS for word in words) or any(pair in _SECRET_PAIRS for pair in pairwise(words))


def redact(value: Any) -> Any:
    """A copy of a JSON value in which secrets are masked, at any depth."""
    match value:
        case dict():
            return {key: MASK if is_secret(key) else redact(item) for key, item in value.items()}
        case list():
            return [redact(item) for item in value]
        case str():
            return redact_text(value)
        case _:
            return value


def redact_text(text: str) -> str:
    """A text in which passwords of URLs, credentials of headers and `password=…` are masked."""
    if not _SUSPICIOUS.search(text):
        return text
    text = _IN_URL.sub(rf"\g<scheme>{MASK}@", text)
    text = _IN_HEADER.sub(rf"\g<kind> {MASK}", text)
    return _IN_PAIR.sub(rf"\g<key>\g<q>{MASK}", text)


def captured(value: Any, limit: int = MAX_VALUE_BYTES) -> Any:
    """A value of the user's, safe, masked and small: at most `limit` bytes of JSON."""
    depth, items = 8, 100
    while True:
        shown = redact(safe(value, depth=depth, items=items))
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
