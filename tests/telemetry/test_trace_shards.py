"""Tests of the assignment of children to parts."""

import math
import sys
from types import FrameType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cascade.telemetry.trace_budget import SPAN_BYTES, Child, Part, PartLimits
from cascade.telemetry.trace_shards import MAX_LISTED_PARTS, TraceShards, part_limits_from_environment

LIMITS = PartLimits(children=7, spans=60, bytes=40_000)


def parts_of_a_map(limits: PartLimits = LIMITS, size: int = 0) -> TraceShards:
    parts = TraceShards(limits)
    parts.activate()
    parts.expect("", "run", 1)
    parts.start("m", "map(step)")
    parts.expect("m", "map(step)", size)
    return parts


def end(parts: TraceShards, task_id: str, child: Child, *, spans: int = 1, size: int = 400, at: int = 1) -> list[Part]:
    return parts.end(task_id, child, spans, size, at, at + 1, ran=True)


costs = st.tuples(st.integers(1, 30), st.integers(300, 30_000))
steps = st.lists(
    st.one_of(st.tuples(st.just("start"), costs), st.tuples(st.just("end"), st.integers(0, 99))), max_size=200
)


@settings(max_examples=300)
@given(steps, st.booleans())
def test_each_child_is_in_one_part_and_each_root_is_in_one_message(
    steps: list[tuple[str, Any]], is_known: bool
) -> None:
    """Children start and end in any order and with any cost."""
    started = sum(kind == "start" for kind, _ in steps)
    parts = parts_of_a_map(size=started if is_known else started + 1)
    running: list[tuple[int, Child, tuple[int, int]]] = []
    members: dict[int, list[int]] = {}
    roots: list[int] = []

    def finish(position: int) -> None:
        index, child, (spans, size) = running.pop(position)
        ended = end(parts, f"m/{index}", child, spans=spans, size=size)
        roots.extend(part.number for part in ended)
        for part in ended:
            assert not any(other.part is part for _, other, _ in running), "its last child has ended"
        assert parts.child(f"m/{index}") is child, "the last message of a child needs its part"

    index = last = 0
    for kind, value in steps:
        if kind == "start":
            child = parts.start(f"m/{index}", "step", "m", index)
            assert child.part.number in {last, last + 1}, "parts are filled one after another"
            last = child.part.number
            assert parts.child(f"m/{index}") is child
            members.setdefault(child.part.number, []).append(index)
            running.append((index, child, value))
            budget = child.part.budget
            planned = budget.bytes + budget.reserved_bytes
            assert planned <= LIMITS.bytes or child.part.children == 1, "only a child alone exceeds the budget"
            index += 1
        elif running:
            finish(value % len(running))
    while running:
        finish(0)

    listed, count = parts.close("m")
    rootless = [part.number for part in listed if not part.has_ended]
    assert sorted(roots + rootless) == list(range(1, count + 1)), "each root is in one message"
    assert not (is_known and rootless), "no part is open after the last start"
    assert [(part.first, part.last) for part in listed] == [
        (members[part.number][0], members[part.number][-1]) for part in listed
    ]
    assert all(len(indexes) <= LIMITS.children for indexes in members.values())
    assert sorted(index for indexes in members.values() for index in indexes) == list(range(started))


def test_a_part_ends_with_its_last_child_if_no_further_child_can_start() -> None:
    parts = parts_of_a_map(PartLimits(children=2), size=5)
    children = [parts.start(f"m/{index}", "step", "m", index) for index in range(4)]
    assert [child.part.number for child in children] == [0, 0, 1, 1]
    assert end(parts, "m/2", children[2], at=10) == []
    (ended,) = end(parts, "m/3", children[3], at=20)
    assert (ended.number, ended.first, ended.last, ended.start_ns, ended.end_ns) == (1, 2, 3, 10, 21)
    last = parts.start("m/4", "step", "m", 4)
    assert [part.number for part in end(parts, "m/4", last)] == [2], "it is not full, but all items have started"
    assert [part.has_ended for part in parts.close("m")[0]] == [True, True]


def test_an_open_part_ends_if_the_next_child_starts_in_a_new_one() -> None:
    parts = parts_of_a_map(PartLimits(children=9, bytes=30_000), size=9)
    first, second = (parts.start(f"m/{index}", "step", "m", index) for index in range(2))
    assert (first.part.number, second.part.number) == (0, 1)
    assert end(parts, "m/1", second, size=5_000) == [], "the part has room for another child"
    assert end(parts, "m/0", first, size=100_000) == []
    third = parts.start("m/2", "step", "m", 2)
    assert third.part.number == 2, "the expected cost is now larger than the room"
    assert [part.number for part in end(parts, "m/2", third)] == [1, 2], "the part of this child is full"


def test_cheap_children_fill_parts_up_to_the_limit_of_children() -> None:
    parts = parts_of_a_map(PartLimits(), size=100_000)
    children: dict[int, Child] = {}
    for index in range(100_000):
        children[index] = parts.start(f"m/{index}", "step", "m", index)
        if index >= 64:
            end(parts, f"m/{index - 64}", children.pop(index - 64))
    assert parts.close("m")[1] == math.ceil(100_000 / 2_000) - 1, "part 0 is not listed"


def test_children_that_start_before_the_first_one_ends_have_a_reservation() -> None:
    parts = parts_of_a_map(PartLimits(), size=500)
    children = [parts.start(f"m/{index}", "step", "m", index) for index in range(500)]
    for child in children:
        child.charge(20, 20 * 400)
    for index, child in enumerate(children):
        end(parts, f"m/{index}", child)
    for child in children:
        assert child.part.budget.bytes < 2_600_000


def test_a_nested_run_is_a_cost_of_its_outer_task() -> None:
    outer = parts_of_a_map(PartLimits(), size=10)
    item = outer.start("m/0", "step", "m", 0)
    before = item.part.budget.bytes
    nested = TraceShards(PartLimits(), item)
    nested.activate()
    child = nested.start("a", "task")
    child.charge(3, 3_000)
    end(nested, "a", child, size=500)
    assert item.spans == 1 + 3 + 1, "the marker of the start, the task's own, the task"
    spent = item.bytes
    assert 3_500 < spent < 6_000
    end(outer, "m/0", item, size=400)
    assert item.part.budget.bytes == before + spent + 400


def test_a_nested_run_leaves_a_full_trace() -> None:
    outer = parts_of_a_map(PartLimits(bytes=100_000), size=10)
    item = outer.start("m/0", "step", "m", 0)
    nested = TraceShards(PartLimits(bytes=100_000), item)
    nested.activate()
    numbers = []
    for index in range(100):
        child = nested.start(str(index), "task")
        numbers.append(child.part.number)
        end(nested, str(index), child, size=10_000)
    assert numbers[0] == 0
    assert max(numbers) >= 5
    assert item.part.budget.bytes <= PartLimits(bytes=100_000).max_bytes


def test_spans_after_the_end_of_a_child_count_for_its_trace() -> None:
    parts = parts_of_a_map(size=3)
    child = parts.start("m/0", "step", "m", 0)
    end(parts, "m/0", child)
    before = child.part.budget.bytes
    child.charge(1, 5_000)
    assert child.part.budget.bytes == before + 5_000


def test_a_span_may_end_in_a_signal_handler_while_another_one_is_counted() -> None:
    """A finalizer may end a span, too. It runs in the same thread, at any point of `charge`."""
    parts = parts_of_a_map(size=1)
    child = parts.start("m/0", "step", "m", 0)
    before, calls = child.part.budget.bytes, 0

    def interrupt(frame: FrameType, event: str, _: object) -> None:
        nonlocal calls
        if event == "call" and frame.f_code is Child.add_cost.__code__:
            sys.setprofile(None)
            calls += 1
            child.charge(1, 1_000)

    sys.setprofile(interrupt)
    try:
        child.charge(1, 10)
    finally:
        sys.setprofile(None)
    assert (calls, child.part.budget.bytes) == (1, before + 1_010)


def test_a_full_trace_has_no_room_for_spans_of_the_program() -> None:
    parts = parts_of_a_map(size=1)
    child = parts.start("m/0", "step", "m", 0)
    count = 0
    while child.has_room(1_000):
        child.charge(1, 1_000)
        count += 1
    assert count > 50
    assert child.part.budget.bytes < LIMITS.max_bytes
    assert child.allowance()[1] >= 2 * SPAN_BYTES, "the child's own span has room"


def test_dropped_spans_add_to_the_reservations_of_later_children() -> None:
    parts = parts_of_a_map(PartLimits(), size=300)
    children = [parts.start(f"m/{index}", "step", "m", index) for index in range(100)]
    for index, child in enumerate(children):
        for _ in range(100):
            child.leave_out(1_000, parts.run)
        end(parts, f"m/{index}", child)
    assert parts.run.left_out == 10_000
    later = [parts.start(f"m/{index}", "step", "m", index) for index in range(100, 300)]
    assert {child.reserved_bytes >= 90_000 for child in later} == {True}
    assert later[-1].part.number >= 7, "25 of them in each part"


def test_a_run_without_a_subscriber_is_not_split() -> None:
    parts = TraceShards(PartLimits(children=1))
    assert not parts.is_active
    assert parts.number_of("any") == 0


def test_the_last_message_of_a_map_lists_a_limited_number_of_parts() -> None:
    parts = parts_of_a_map(PartLimits(children=1), size=1_000)
    for index in range(200):
        child = parts.start(f"m/{index}", "step", "m", index)
        if index < 199:
            end(parts, f"m/{index}", child)
    listed, count = parts.close("m")
    assert count == 199
    assert len(listed) == MAX_LISTED_PARTS
    assert listed[-1].number == 199, "a part without a root in a message is always listed"
    assert [part.number for part in listed[:-1]] == list(range(1, MAX_LISTED_PARTS))


@pytest.mark.parametrize("name", ["CASCADE_TRACE_PART_SIZE", "CASCADE_TRACE_PART_BYTES"])
@pytest.mark.parametrize("value", ["0", "-1", "many", "1.5", "99999999999", "²"])
def test_an_invalid_limit_is_refused_with_its_variable(name: str, value: str) -> None:
    with pytest.raises(ValueError, match=f"{name}='{value}' must be a number"):
        part_limits_from_environment({name: value})


def test_limits_come_from_the_environment() -> None:
    assert part_limits_from_environment({}) == PartLimits(2_000, 5_000, 2_500_000)
    given = {"CASCADE_TRACE_PART_SIZE": " 10 ", "CASCADE_TRACE_PART_BYTES": "7"}
    assert part_limits_from_environment(given) == PartLimits(10, 5_000, 7)
