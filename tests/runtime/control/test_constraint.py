import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cascade.runtime.control.constraint import (
    Capacity,
    Concurrency,
    Constraint,
    Matcher,
    Pause,
    RateLimit,
    RefusedError,
    Scope,
    parse_constraint,
    parse_topic,
)
from cascade.telemetry.topics import control_filter, control_topic
from cascade.telemetry.wire import decode_incoming

PREFIX = control_filter("local", "default").removesuffix("#")
GLOBAL = Scope("global")


def message(kind: str, params: Any = None, **more: Any) -> dict[str, Any]:
    return {"id": "c1", "type": kind, "params": {} if params is None else params, **more}


@pytest.mark.parametrize(
    ("payload", "expected"),
    [
        (message("pause"), Pause(GLOBAL, "c1", None)),
        ({"type": "pause"}, Pause(GLOBAL, "pause", None)),
        (message("pause", expires_at=1_800_000_000.5), Pause(GLOBAL, "c1", 1_800_000_000.5)),
        (message("concurrency", {"limit": 4}), Concurrency(GLOBAL, "c1", None, 4)),
        (
            decode_incoming(b'{"type": "concurrency", "params": {"limit": 4.0}}'),
            Concurrency(GLOBAL, "concurrency", None, 4),
        ),
        (
            decode_incoming(b'{"type": "concurrency", "params": {"limit": 4e0}}'),
            Concurrency(GLOBAL, "concurrency", None, 4),
        ),
        (
            decode_incoming(b'{"type": "concurrency", "params": {"limit": 1E6}}'),
            Concurrency(GLOBAL, "concurrency", None, 10**6),
        ),
        (decode_incoming(b'\xef\xbb\xbf{"type": "pause"}\r\n'), Pause(GLOBAL, "pause", None)),
        (message("pause") | {"id": "\u00e9" * 256}, Pause(GLOBAL, "\u00e9" * 126 + "\u2026", None)),
        (message("rate_limit", {"rate": "10/s"}), RateLimit(GLOBAL, "c1", None, 10.0, 1.0, "10/s")),
        (message("rate_limit", {"rate": "1000/s"}), RateLimit(GLOBAL, "c1", None, 1000.0, 50.0, "1000/s")),
        (
            message("rate_limit", {"rate": " 2.5 / m ", "burst": 3}),
            RateLimit(GLOBAL, "c1", None, 2.5 / 60, 3.0, "2.5 / m"),
        ),
        (message("rate_limit", {"rate": "001000000.0/s"}), RateLimit(GLOBAL, "c1", None, 1e6, 5e4, "001000000.0/s")),
        (message("rate_limit", {"rate": "60000000/m"}), RateLimit(GLOBAL, "c1", None, 1e6, 5e4, "60000000/m")),
        (message("rate_limit", {"rate": "10/s", "burst": 4e0}), RateLimit(GLOBAL, "c1", None, 10.0, 4.0, "10/s")),
        (message("rate_limit", {"rate": "1/h"}), RateLimit(GLOBAL, "c1", None, 1 / 3600, 1.0, "1/h")),
        (message("resource", {"name": "gpu", "capacity": 2}), Capacity(GLOBAL, "c1", None, "gpu", 2.0)),
        (message("resource", {"name": "gpu", "capacity": 0}), Capacity(GLOBAL, "c1", None, "gpu", 0.0)),
    ],
    ids=str,
)
def test_valid_messages(payload: dict[str, Any], expected: Any) -> None:
    assert parse_constraint(GLOBAL, payload["type"], payload) == expected
    assert expected.type == payload["type"]


@pytest.mark.parametrize(
    ("kind", "payload", "reason"),
    [
        (
            "pause",
            message("concurrency", {"limit": 1}),
            "type 'concurrency' differs from the type of the topic, 'pause'",
        ),
        ("pause", {}, "type None differs"),
        ("stop", message("stop"), "type 'stop' is unknown: choose from pause, concurrency, rate_limit, resource"),
        ("pause", message("pause", {"for": 3}), "unknown key 'for' in params; allowed keys: none$"),
        (
            "pause",
            message("pause", expire_at=1),
            r"unknown key 'expire_at' \(did you mean 'expires_at'\?\); allowed keys: type",
        ),
        ("pause", message("pause", ExpiresAt=1), r"unknown key 'ExpiresAt' \(did you mean 'expires_at'\?\)"),
        ("pause", message("pause", limit=1), "unknown key 'limit'; allowed keys: type, params, id, expires_at$"),
        ("pause", message("pause", **{"": 1}), "unknown key ''; allowed keys: type, params, id, expires_at$"),
        ("pause", message("pause", **{"k" * 9000: 1}), "; allowed keys: type"),
        ("pause", message("pause") | {7: 1}, "unknown key 7; allowed"),
        (
            "concurrency",
            message("concurrency", {"limits": 1}),
            r"unknown key 'limits' in params \(did you mean 'limit'\?\); allowed keys: limit$",
        ),
        ("concurrency", message("concurrency", {"limit": 4.5}), "got 4.5; use pause"),
        ("concurrency", message("concurrency", {"limit": 1e300}), "got 1e"),
        ("concurrency", message("concurrency", {"limit": float("inf")}), "got inf"),
        ("rate_limit", message("rate_limit", {"rate": "1000000.1/s"}), "up to 1,000,000/s"),
        ("rate_limit", message("rate_limit", {"rate": "60000001/m"}), "up to 1,000,000/s"),
        ("pause", message("pause", [1]), r"params must be an object, got \[1\]"),
        ("concurrency", {"type": "concurrency"}, "params must be an object, got None"),
        (
            "concurrency",
            message("concurrency", {"limit": 0}),
            "limit must be an integer .*; use pause to stop all tasks",
        ),
        ("concurrency", message("concurrency", {"limit": -1}), "got -1"),
        ("concurrency", message("concurrency", {"limit": 1.5}), "got 1.5"),
        ("concurrency", message("concurrency", {"limit": True}), "got True"),
        ("concurrency", message("concurrency", {"limit": 10**9}), "got 1000000000"),
        ("concurrency", message("concurrency", {"limit": 10**100}), "got a huge number"),
        (
            "concurrency",
            message("concurrency", {"limit": "4", "more": 1}),
            "unknown key 'more' in params; allowed keys: limit$",
        ),
        ("rate_limit", message("rate_limit", {"rate": 10}), "rate must be like '10/s'"),
        ("rate_limit", message("rate_limit", {"rate": "0/s"}), "above zero"),
        ("rate_limit", message("rate_limit", {"rate": "-1/s"}), "'-1/s'"),
        ("rate_limit", message("rate_limit", {"rate": "1/d"}), "'1/d'"),
        ("rate_limit", message("rate_limit", {"rate": "nan/s"}), "'nan/s'"),
        ("rate_limit", message("rate_limit", {"rate": "9999999/s"}), "up to 1,000,000/s"),
        ("rate_limit", message("rate_limit", {"rate": "1/s", "burst": 0}), "burst must be"),
        ("rate_limit", message("rate_limit", {"rate": "1/s", "burst": float("nan")}), "burst must be"),
        ("resource", message("resource", {"name": "", "capacity": 1}), "name must be a resource name"),
        ("resource", message("resource", {"name": "gpu"}), "capacity must be a number"),
        ("resource", message("resource", {"name": "gpu", "capacity": float("inf")}), "capacity must be"),
        ("resource", message("resource", {"name": "gpu", "capacity": -1}), "capacity must be"),
        ("pause", message("pause", expires_at="soon"), "expires_at must be in Unix seconds, got 'soon'"),
        ("pause", message("pause", expires_at=float("nan")), "expires_at"),
        ("pause", message("pause", expires_at=1_800_000_000_000), "expires_at must be in Unix seconds"),
        ("pause", message("pause") | {"id": 7}, "id must be a string"),
        ("pause", message("pause") | {"id": "x" * 300}, "id must be a string"),
        ("pause", decode_incoming(b"{"), "not JSON"),
        ("pause", decode_incoming(b"\xff"), "not in UTF-8"),
        ("pause", decode_incoming(b"[" * 16_000), "nested too deeply" if sys.version_info < (3, 14) else "not JSON"),
        ("pause", decode_incoming(b'"' + b"x" * 2**20 + b'"'), "1,048,578 bytes, more than 16,384"),
        ("pause", decode_incoming(b"{}"), "empty object"),
        ("pause", decode_incoming(b'{"type": "pause", "expires_at": NaN}'), "NaN"),
        ("pause", decode_incoming(b"7"), "must be a JSON object, not int"),
    ],
    ids=lambda value: str(value)[:50],
)
def test_invalid_messages_are_refused_with_the_reason(kind: str, payload: dict[str, Any], reason: str) -> None:
    with pytest.raises(RefusedError, match=reason) as refused:
        parse_constraint(GLOBAL, kind, payload)
    assert len(str(refused.value)) < 300


def test_a_capacity_has_no_scope_of_a_task() -> None:
    with pytest.raises(RefusedError, match="scope global or run"):
        parse_constraint(Scope("task", "x"), "resource", message("resource", {"name": "gpu", "capacity": 1}))


@pytest.mark.parametrize(
    ("below", "expected"),
    [
        ("global/pause", (GLOBAL, "pause")),
        ("run/4711/concurrency", (Scope("run", "4711"), "concurrency")),
        ("task/load*/pause", (Scope("task", "load*"), "pause")),
        ("task/a%2Fb%20c/pause", (Scope("task", "a/b c"), "pause")),
    ],
)
def test_topics(below: str, expected: Any) -> None:
    assert parse_topic(PREFIX + below, PREFIX) == expected


@pytest.mark.parametrize(
    "below", ["", "pause", "global", "global/x/pause", "task/pause", "team/x/pause", "task//pause", "task/%ff/pause"]
)
def test_topics_without_a_valid_scope_are_refused(below: str) -> None:
    with pytest.raises(RefusedError):
        parse_topic(PREFIX + below, PREFIX)


@given(st.text(min_size=1, max_size=60).filter(lambda name: name.isprintable()))
def test_each_task_name_has_a_topic_of_its_own(name: str) -> None:
    scope, kind = parse_topic(control_topic("local", "default", f"task/{name}", "pause"), PREFIX)
    assert (scope, kind) == (Scope("task", name), "pause")
    assert Matcher(scope)(("any run",), name)


@pytest.mark.parametrize(
    ("scope", "covered", "others"),
    [
        (GLOBAL, [("r", "a"), ("s", "b")], []),
        (Scope("run", "r"), [("r", "a")], [("s", "a")]),
        (Scope("task", "load_*"), [("r", "load_a")], [("r", "Load_a"), ("r", "reload_a")]),
        (Scope("task", "[ab]?"), [("r", "a1"), ("r", "[ab]?")], [("r", "c1"), ("r", "a")]),
        (Scope("task", "map(x)"), [("r", "map(x)")], [("r", "x")]),
    ],
    ids=str,
)
def test_scopes(scope: Scope, covered: list[tuple[str, str]], others: list[tuple[str, str]]) -> None:
    matches = Matcher(scope)
    assert all(matches((run_id,), name) for run_id, name in covered)
    assert not any(matches((run_id,), name) for run_id, name in others)


def outcome(scope: Scope, kind: str, payload: dict[str, Any]) -> Constraint | str:
    """Return the constraint, or the reason of the refusal."""
    try:
        Matcher(scope)
        return parse_constraint(scope, kind, payload)
    except RefusedError as refused:
        return str(refused)


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=10,
)
_kinds = st.sampled_from(["pause", "concurrency", "rate_limit", "resource"]) | st.text(max_size=10)
_payloads = st.dictionaries(
    st.sampled_from(["id", "type", "params", "expires_at"]) | st.text(max_size=5), _json | _kinds, max_size=5
)


@given(_kinds, _payloads, st.dictionaries(st.sampled_from(["limit", "rate", "burst", "name", "capacity"]), _json))
def test_arbitrary_payloads_are_parsed_or_refused(kind: str, payload: dict[str, Any], params: dict[str, Any]) -> None:
    for each in (payload, {**payload, "type": kind, "params": params}):
        found = outcome(GLOBAL, kind, each)
        assert 0 < len(found) < 400 if isinstance(found, str) else found.type == kind


@given(st.binary(max_size=200), st.text(max_size=80))
def test_arbitrary_bytes_and_topics_are_parsed_or_refused(data: bytes, below: str) -> None:
    try:
        scope, kind = parse_topic(PREFIX + below, PREFIX)
    except RefusedError:
        return
    assert outcome(scope, kind, decode_incoming(data))


def test_two_spellings_of_a_topic_are_one_scope() -> None:
    assert parse_topic(f"{PREFIX}task/lo%61d%2Dall/pause", PREFIX) == parse_topic(
        f"{PREFIX}task/load-all/pause", PREFIX
    )
