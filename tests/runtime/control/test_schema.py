"""The published schema of constraints and the parser accept the same payloads."""

import json
from dataclasses import fields
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from cascade.runtime.control.constraint import (
    CONSTRAINT_CLASSES,
    MAX_COUNT,
    Constraint,
    RefusedError,
    Scope,
    parse_constraint,
)
from cascade.telemetry.schema import load
from cascade.telemetry.wire import decode_incoming

VALID = Draft202012Validator(load("control"))

numbers = (
    st.sampled_from(
        [
            0,
            1,
            1.5,
            4.0,
            4e0,
            -0.0,
            1e6,
            1e300,
            2,
            0.5,
            -1,
            MAX_COUNT,
            MAX_COUNT + 1,
            1e12,
            1.1e12,
            1e11,
            1.1e11,
            True,
            10**400,
        ]
    )
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
)
others: st.SearchStrategy[Any] = (
    st.none() | st.booleans() | st.text(max_size=5) | st.lists(st.integers(), max_size=2) | st.just({})
)
texts = st.sampled_from(["", "gpu", "é" * 128, "é" * 129, "x" * 256, "x" * 257]) | st.text(max_size=20)
digits = st.text("0123456789", max_size=11)
rates = st.builds(
    "{}{}{}{}{}{}".format,
    st.sampled_from(["", " ", "-", "+"]),
    digits,
    st.sampled_from(["", ".", "e3"]) | digits.map(".{}".format),
    st.sampled_from(["/", " / ", "/ ", "", "//"]),
    st.sampled_from(["s", "m", "h", "d", "S", "sec", ""]),
    st.sampled_from(["", " ", "\n"]),
) | st.sampled_from(
    [
        *("10/s", "2.5/m", "0/s", "0.0/h", "٣/s", "0.000000001/h", "10/s\n", "10/s\u2028", "\x1c10/s", "\ufeff10/s"),
        *("1000000/s", "1000000.0/s", "1000000.000000001/s", "1000001/s", "001000000/s", "0001000000/s", "000000001/s"),
        *("60000000/m", "60000000.0/m", "60000000.1/m", "059999999.9/m", "60000001/m", "060000000/m", "999999999/h"),
    ]
)
objects = st.fixed_dictionaries(
    {},
    optional={
        "limit": numbers | others,
        "rate": rates | numbers | others,
        "burst": numbers | others,
        "name": texts | others,
        "capacity": numbers | others,
        "else": others,
    },
)
fitting = {
    "pause": st.just({}),
    "concurrency": st.fixed_dictionaries({"limit": numbers}),
    "rate_limit": st.fixed_dictionaries({"rate": rates}, optional={"burst": numbers}),
    "resource": st.fixed_dictionaries({"name": texts, "capacity": numbers}),
}


def messages(kind: str) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries(
        {},
        optional={
            "type": st.just(kind) | st.sampled_from([*fitting, "nonsense"]) | others,
            "params": fitting[kind] | objects | others,
            "id": texts | others,
            "expires_at": numbers | others,
            "else": others,
        },
    ) | st.fixed_dictionaries(
        {"type": st.just(kind), "params": fitting[kind]},
        optional={"expires_at": numbers, "id": texts, "expire_at": numbers, "Type": others},
    )


def is_accepted(kind: str, payload: dict[str, Any]) -> bool:
    try:
        parse_constraint(Scope("global"), kind, payload)
    except RefusedError:
        return False
    return True


def test_each_type_has_parameters_in_these_tests() -> None:
    assert set(fitting) == {constraint.type for constraint in CONSTRAINT_CLASSES}


@pytest.mark.parametrize("kind", fitting)
def test_the_parser_accepts_what_the_schema_accepts(kind: str) -> None:
    @given(messages(kind))
    @example({"type": kind})
    @example({"type": kind, "params": None})
    @example({"type": kind, "params": {}, "expires_at": None})
    @example({"type": kind, "params": None, "expire_at": 1})
    def same(payload: dict[str, Any]) -> None:
        assert is_accepted(kind, payload) == (VALID.is_valid(payload) and payload.get("type") == kind)

    same()


def test_numbers_that_are_not_json_are_refused() -> None:
    for data in (b'{"type":"pause","expires_at":NaN}', b'{"type":"pause","expires_at":-Infinity}'):
        assert not decode_incoming(data)
    infinite = json.loads('{"type":"pause","expires_at":1e999}')
    assert not VALID.is_valid(infinite)
    assert not is_accepted("pause", infinite)


def test_the_params_of_each_class_are_those_of_the_schema() -> None:
    common = {field.name for field in fields(Constraint)}
    for kind in CONSTRAINT_CLASSES:
        own = {field.name: 1 for field in fields(kind) if field.name not in common}
        known = load("control")["$defs"][kind.__name__]["properties"]
        params = known["params"] if kind.type != "pause" else known["params"]["anyOf"][0]
        assert set(kind(Scope("global"), "id", None, **own).params) == set(params["properties"])
        assert common - {"scope"} < set(known)
