"""Cache backend in the memory of the process."""

import time
from typing import Any


class InMemoryCacheBackend:
    """Keeps values by key. A value with a `ttl` expires after that many seconds; `get` deletes it."""

    def __init__(self) -> None:
        self._store: dict[str, Any] = {}
        self._expiry: dict[str, float] = {}

    def get(self, key: str) -> Any:
        expires_at = self._expiry.get(key)
        if expires_at is not None and time.time() >= expires_at:
            self._store.pop(key, None)
            self._expiry.pop(key, None)
        return self._store.get(key)

    def set(self, key: str, value: Any, ttl: float | None = None) -> None:
        self._store[key] = value
        if ttl is None:
            self._expiry.pop(key, None)
        else:
            self._expiry[key] = time.time() + ttl
