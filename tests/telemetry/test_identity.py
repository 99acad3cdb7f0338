from dataclasses import replace
from hashlib import sha256
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cascade.telemetry.identity import (
    SpanRef,
    item_id,
    new_run_id,
    parse_traceparent,
    parse_tracestate,
    place_run,
    setup_id,
    span_id,
    teardown_id,
    trace_id,
)
from cascade.telemetry.trace_budget import PartLimits
from cascade.telemetry.trace_shards import TraceShards
from tests.telemetry.strategies import HEX, texts

RUN = "0f8fad5b-d9cb-469f-a165-70867728950e"


def test_ids_equal_the_published_test_vectors() -> None:
    assert trace_id(RUN) == "0f8fad5bd9cb469fa16570867728950e"
    assert span_id(RUN) == sha256(f"{RUN}//0".encode()).hexdigest()[:16]
    assert span_id(RUN, "task", 2) == sha256(f"{RUN}/task/2".encode()).hexdigest()[:16]
    assert item_id("m", 7) == "m/7"
    assert (setup_id("db"), teardown_id("db")) == ("setup:db", "teardown:db")
    assert span_id(RUN, setup_id("database")) == "d2d5611d19f6504d"
    assert span_id(RUN, teardown_id("database")) == "39ed3009eba0091b"


run_ids = st.binary(min_size=16, max_size=16).filter(any).map(lambda bits: str(UUID(bytes=bits)))


@given(st.binary(min_size=16, max_size=16).filter(any))
def test_a_run_id_has_all_random_bits_in_the_form_of_a_uuid(bits: bytes) -> None:
    run_id = new_run_id(lambda _: bits)
    assert UUID(run_id).bytes == bits
    assert run_id == str(UUID(run_id))
    assert trace_id(run_id) == bits.hex()


def test_a_run_id_is_never_zero() -> None:
    source = iter([bytes(16), bytes(15) + b"\x01"])
    assert new_run_id(lambda size: next(source)[:size]) == "00000000-0000-0000-0000-000000000001"


def test_no_bit_of_a_run_id_is_fixed() -> None:
    """Each bit has both values in 200 random ids, with an error probability of 2**-192."""
    found = [UUID(new_run_id()).int for _ in range(200)]
    ones = zeros = 0
    for bits in found:
        ones, zeros = ones | bits, zeros | ~bits
    assert ones & zeros & ((1 << 128) - 1) == (1 << 128) - 1
    assert len(set(found)) == len(found)


@given(run_ids | st.uuids(version=4).map(str), texts, st.integers(0, 100))
def test_ids_are_stable_and_valid(run_id: str, task_id: str, attempt: int) -> None:
    found = span_id(run_id, task_id, attempt)
    assert found == span_id(run_id, task_id, attempt)
    assert len(found) == 16
    assert int(found, 16)
    assert trace_id(run_id) == run_id.replace("-", "")


@given(st.sets(st.tuples(run_ids, texts, st.integers(0, 9)), min_size=2, max_size=50))
def test_ids_are_distinct(keys: set[tuple[str, str, int]]) -> None:
    assert len({span_id(*key) for key in keys}) == len(keys)


@given(st.text())
def test_a_run_id_that_is_not_a_uuid_has_a_valid_trace_id(run_id: str) -> None:
    assert len(trace_id(run_id)) == 32
    assert int(trace_id(run_id), 16)


hexes = st.text(HEX, min_size=32, max_size=32).filter(lambda text: int(text, 16))


@given(hexes, hexes.map(lambda text: text[:16]).filter(lambda text: int(text, 16)), st.integers(0, 255))
def test_a_parsed_traceparent_equals_the_span(trace: str, span: str, flags: int) -> None:
    assert parse_traceparent(SpanRef(trace, span, flags).traceparent) == SpanRef(trace, span, flags)


@pytest.mark.parametrize(
    "value",
    [
        None,
        "",
        "nonsense",
        f"ff-{'a' * 32}-{'b' * 16}-01",
        f"00-{'0' * 32}-{'b' * 16}-01",
        f"00-{'a' * 32}-{'0' * 16}-01",
        f"00-{'A' * 32}-{'b' * 16}-01",
        f"00-{'a' * 32}-{'b' * 16}-01-more",
        f"00-{'a' * 31}-{'b' * 16}-01",
    ],
)
def test_an_invalid_traceparent_is_ignored(value: str | None) -> None:
    assert parse_traceparent(value) is None


def test_a_traceparent_of_a_later_version_may_have_more_fields() -> None:
    assert parse_traceparent(f"01-{'a' * 32}-{'b' * 16}-01-more") == SpanRef("a" * 32, "b" * 16, 1)


def test_a_run_joins_a_trace_links_to_it_or_has_its_own() -> None:
    parent = SpanRef("a" * 32, "b" * 16, 0)
    joined, linked, alone = (place_run(RUN, parent, mode) for mode in ("join", "link", "none"))
    assert (joined.trace_id, joined.parent_span_id, joined.flags) == (parent.trace_id, parent.span_id, 0)
    assert (linked.trace_id, linked.parent_span_id, linked.links) == (trace_id(RUN), "", (parent,))
    assert (alone.trace_id, alone.parent_span_id, alone.links) == (trace_id(RUN), "", ())


STATE = "acme=t61rcWkgMzE,ot=th:c"


def test_a_tracestate_needs_a_valid_traceparent() -> None:
    header = SpanRef("a" * 32, "b" * 16).traceparent
    assert parse_traceparent(header, STATE) == SpanRef("a" * 32, "b" * 16, 1, STATE)
    assert parse_traceparent(header, "no") == parse_traceparent(header) == SpanRef("a" * 32, "b" * 16)
    assert parse_traceparent("nonsense", STATE) is None


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (STATE, STATE),
        (" acme=1 ,\t,ot=2\t", "acme=1,ot=2"),
        ("fw529a3039@dt=FfffF,a-b*c/d_=x y", "fw529a3039@dt=FfffF,a-b*c/d_=x y"),
        (",".join(f"k{n}=v" for n in range(32)), ",".join(f"k{n}=v" for n in range(32))),
        (",".join(f"k{n}=v" for n in range(33)), ""),
        (f"{'k' * 256}={'v' * 256}", f"{'k' * 256}={'v' * 256}"),
        (f"{'k' * 257}=v", ""),
        (f"k={'v' * 257}", ""),
        ("a=1,a=2", ""),
        ("A=1", ""),
        ("a", ""),
        ("a=", ""),
        ("=1", ""),
        ("a=1,b", ""),
        ("a=b=c", ""),
        ("a=\u00e9", ""),
        ("a=1\nb=2", ""),
        ("a=1," + " " * 8_190, ""),
        ("", ""),
        (None, ""),
    ],
)
def test_an_invalid_tracestate_is_ignored(value: str | None, found: str) -> None:
    assert parse_tracestate(value) == found


def test_only_a_run_that_joins_a_trace_has_its_tracestate() -> None:
    parent = SpanRef("a" * 32, "b" * 16, 1, STATE)
    joined, linked, alone = (place_run(RUN, parent, mode) for mode in ("join", "link", "none"))
    assert [trace.tracestate for trace in (joined, linked, alone)] == [STATE, "", ""]
    assert linked.links == (parent,)
    joined = replace(joined, parts=TraceShards(PartLimits(children=1)))
    for task_id in ("first", "later"):
        joined.parts.start(task_id, "task")
    assert (joined.span_of("first").tracestate, joined.span_of("later").tracestate) == (STATE, "")
    assert joined.part_root("", 1).tracestate == ""


def test_unknown_trace_flags_are_cleared() -> None:
    assert place_run(RUN, SpanRef("a" * 32, "b" * 16, 0xFF)).flags == 0x03


def test_a_run_in_its_own_trace_is_sampled_and_has_no_random_flag() -> None:
    assert place_run(RUN).flags == 0x01
