"""The parts of a run's trace: the trace of each child of a run or of a map.

A part is full when its spans or its encoded bytes reach a budget, or when it has the largest number of children. The
next child that starts then belongs to a new part (`cascade.telemetry.trace_budget`).
"""

from cascade.telemetry.trace_budget import (
    SPAN_BYTES,
    Child,
    Estimate,
    Parent,
    Part,
    PartLimits,
    TraceBudget,
    without_reservation,
)

PART_EVENT = "cascade.part"
"""Name of the event on the span of a run or map for each listed part."""
MAX_LISTED_PARTS = 64
"""Parts that the last message and the span of a run or map list: half of the SDK's limit of links and of events."""

_MAX_ESTIMATES = 1_000


class TraceShards:
    """Gives each child of a run and of its maps a part, and finds the parts whose last child has ended.

    It belongs to one run and is used in the event loop of the run; `Child.charge` may be called in any thread. Without
    `activate`, which the subscriber that makes the messages calls, the run is not split. `outer` is the task that has
    started the run and whose trace the run is in, or None.
    `run` stands for the spans of the run itself, such as those of its resources, and counts what has been left out.
    """

    def __init__(self, limits: PartLimits | None = None, outer: Child | None = None) -> None:
        self.limits = limits or PartLimits()
        self.is_active = False
        budget = TraceBudget(self.limits) if outer is None else outer.part.budget  # one for each trace
        self._parents = {"": Parent("", budget, outer)}
        self.run = without_reservation(self._parents[""].current)
        self._estimates: dict[str, Estimate] = {}
        self._running: dict[str, Child] = {}
        self._last: tuple[str, Child, list[Part]] | None = None
        self._numbers: dict[str, int] = {}

    def activate(self) -> None:
        """Split the run from now on. The marker of its start counts."""
        if not self.is_active:
            self.is_active = True
            self.run.charge(1, SPAN_BYTES)

    def expect(self, parent_id: str, name: str, size: int) -> None:
        """Set the name and the number of children of the run, or of a map that was started here as a child."""
        parent = self._parents.get(parent_id) or self._new_parent(parent_id, name)
        parent.name, parent.size = name, size

    def start(
        self, task_id: str, name: str, map_id: str | None = None, index: int | None = None, attempts: int = 0
    ) -> Child:
        """Give a child of the run, or of a map, a part. `attempts` is the number of retries that its policy allows."""
        parent_id = map_id or ""
        parent = self._parents.get(parent_id) or self._new_parent(parent_id, f"map({name})")
        estimate = self._estimates.get(map_id or name) or self._new_estimate(map_id or name, attempts)
        part = parent.current
        if not self._has_room(part, estimate):
            part = self._next(parent)
        part.add(parent.started if index is None else index)
        parent.started += 1
        child = self._running[task_id] = Child(part, estimate, estimate.spans.value, estimate.bytes.value)
        if part.number and map_id is None:
            self._numbers[task_id] = part.number
        return child

    def child(self, task_id: str) -> Child | None:
        """The running child, or the one whose end was the last; None for others."""
        child = self._running.get(task_id)
        if child is None and self._last is not None and self._last[0] == task_id:
            return self._last[1]
        return child

    def number_of(self, task_id: str, map_id: str | None = None) -> int:
        """The part of a child: of a task or map from its start on, of an item while it runs; else 0."""
        child = self.child(task_id)
        if child is not None:
            return child.part.number
        return self._numbers.get(task_id, 0) if map_id is None else 0

    def end(
        self, task_id: str, child: Child, spans: int, size: int, start_ns: int, end_ns: int, *, ran: bool
    ) -> list[Part]:
        """Replace the reservation of a child by its cost: the spans and bytes of its last message, and those so far.

        Returns the parts that have ended, whose roots belong to this message. A child that has not run, such as a
        skipped one, does not count for the reservations of others.
        """
        if self._running.pop(task_id, None) is None:  # a second subscriber to the same event
            return self._last[2] if self._last is not None and self._last[0] == task_id else []
        child.end(spans, size)
        if ran:
            child.estimate.spans.learn(child.spans)
            child.estimate.bytes.learn(child.bytes)
        ended = self._leave(child, start_ns, end_ns)
        self._last = task_id, child, ended
        return ended

    def close(self, parent_id: str) -> tuple[list[Part], int]:
        """Forget a map or the run, whose last message is made. Returns the parts to list, and how many there are.

        Those whose roots no message has are listed in any case.
        """
        parent = self._parents.pop(parent_id, None)
        if parent is None:
            return [], 0
        self._estimates.pop(parent_id, None)
        for part in parent.unannounced:
            part.has_ended = False
        further = parent.parts[1:]
        if len(further) <= MAX_LISTED_PARTS:
            return further, len(further)
        rootless = sum(not part.has_ended for part in further)
        room = max(0, MAX_LISTED_PARTS - rootless)
        listed = {id(part) for part in [part for part in further if part.has_ended][:room]}
        return [part for part in further if not part.has_ended or id(part) in listed], len(further)

    def _leave(self, child: Child, start_ns: int, end_ns: int) -> list[Part]:
        part = child.part
        parent = part.parent
        part.running -= 1
        if part.number:
            part.widen(start_ns, end_ns)
            if (
                not part.running
                and not part.has_ended
                and (
                    parent.current is not part
                    or parent.started == parent.size
                    or not self._has_room(part, child.estimate)
                )
            ):
                parent.finish(part)
        if not parent.unannounced:
            return []
        ended, parent.unannounced = parent.unannounced, []
        return ended

    def _has_room(self, part: Part, estimate: Estimate) -> bool:
        if part.is_closed or part.children >= self.limits.children:
            return False
        budget = part.budget
        most_spans, most_bytes = part.full_at
        if (
            budget.bytes + budget.reserved_bytes + estimate.bytes.value <= most_bytes
            and budget.spans + budget.reserved_spans + estimate.spans.value <= most_spans
        ):
            return True
        # Any child fits into an empty part. Part 0 is empty in this sense if no other trace is around it.
        return not part.children and (part.number > 0 or (not part.parent.id and part.outer is None))

    def _next(self, parent: Parent) -> Part:
        before = parent.current
        if before.number and not before.running and not before.has_ended:
            parent.finish(before)
        budget = TraceBudget(self.limits, spans=1, size=2 * SPAN_BYTES)  # of the part's root
        part = parent.current = Part(parent, before.number + 1, budget)
        parent.parts.append(part)
        return part

    def _new_parent(self, parent_id: str, name: str) -> Parent:
        child = self._running.get(parent_id)
        around = self._parents[""].current if child is None else child.part
        parent = self._parents[parent_id] = Parent(parent_id, around.budget, around.outer, name)
        return parent

    def _new_estimate(self, key: str, attempts: int) -> Estimate:
        if len(self._estimates) >= _MAX_ESTIMATES:
            key = ""
        found = self._estimates[key] = self._estimates.get(key) or Estimate(attempts)
        return found
