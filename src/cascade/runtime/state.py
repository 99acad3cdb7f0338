"""The default state backend, in memory."""

from typing import Any


class InMemoryStateBackend:
    """Stores the results and skips of one run in two dicts."""

    def __init__(self, run_id: str) -> None:
        self.run_id = run_id
        self._results: dict[str, Any] = {}
        self._skipped: dict[str, str] = {}

    def put_result(self, node_id: str, result: Any) -> None:
        self._results[node_id] = result

    def get_result(self, node_id: str) -> Any:
        return self._results.get(node_id)

    def has_result(self, node_id: str) -> bool:
        return node_id in self._results

    def discard_result(self, node_id: str) -> None:
        self._results.pop(node_id, None)

    def mark_skipped(self, node_id: str, reason: str) -> None:
        self._skipped[node_id] = reason

    def get_skip_reason(self, node_id: str) -> str | None:
        return self._skipped.get(node_id)
