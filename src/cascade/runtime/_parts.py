"""The parts of a run's trace: from when to when each lasted, to be told by the last message of what was split."""

from typing import Any

from cascade.telemetry.identity import RUN, RunTrace


class Parts:
    """Widens a part's window with each child that ends in it; part 0 has no root of its own and is not kept."""

    def __init__(self, trace: RunTrace) -> None:
        self._trace = trace
        self._windows: dict[tuple[str, int], tuple[int, int]] = {}

    def widen(self, task_id: str, map_id: str | None, map_index: int | None, start_ns: int, end_ns: int) -> None:
        """A child has ended."""
        parent_id = RUN if map_id is None else map_id
        if part := self._trace.part_of(task_id, map_id, map_index):
            first, last = self._windows.get((parent_id, part), (start_ns, end_ns))
            self._windows[parent_id, part] = min(first, start_ns), max(last, end_ns)

    def below(self, parent_id: str, size: int) -> list[dict[str, Any]]:
        """The parts of a parent that has `size` children: their roots' ids, the numbers of the children, the window."""
        keys = sorted(key for key in self._windows if key[0] == parent_id) if self._windows else ()
        return [self._told(parent_id, part, size, *self._windows.pop((parent_id, part))) for _, part in keys]

    def _told(self, parent_id: str, part: int, size: int, start_ns: int, end_ns: int) -> dict[str, Any]:
        root, first = self._trace.part_root(parent_id, part), part * self._trace.part_size
        return {
            "part": part,
            "trace_id": root.trace_id,
            "span_id": root.span_id,
            "first": first,
            "last": max(first, min(first + self._trace.part_size, size) - 1),
            "start_ns": start_ns,
            "end_ns": end_ns,
        }
