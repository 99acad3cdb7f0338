"""Hypothesis strategies for values, hostile values and messages."""

from typing import Any
from uuid import UUID

from hypothesis import strategies as st

from cascade.spec.telemetry import ControlEvent, Header, LifecycleEvent, ResourceEvent, TaskStateEvent

HEX = "0123456789abcdef"


class Hostile:
    """An object whose methods raise."""

    def __repr__(self) -> str:
        raise RuntimeError("no repr")

    __str__ = __repr__

    def __len__(self) -> int:
        raise RuntimeError("no len")

    def __iter__(self) -> Any:
        raise RuntimeError("no iter")

    def __hash__(self) -> int:
        raise RuntimeError("no hash")

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("no eq")

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError("no attributes")


class HostileDict(dict[str, Any]):
    def items(self) -> Any:
        raise RuntimeError("no items")

    def __iter__(self) -> Any:
        raise RuntimeError("no iter")


class HostileText(str):
    __slots__ = ()

    def __str__(self) -> str:
        raise RuntimeError("no text")

    def encode(self, encoding: str = "utf-8", errors: str = "strict") -> bytes:
        raise RuntimeError("no bytes")


def cycle() -> list[Any]:
    loop: list[Any] = [1]
    loop.append({"self": loop})
    return loop


def deep() -> list[Any]:
    nested: list[Any] = []
    for _ in range(5_000):
        nested = [nested]
    return nested


def joined(text: str) -> str:
    """Return the text as JSON returns it: two surrogates that form a pair are one character."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")


texts = (st.text(st.characters(), max_size=30) | st.text(st.characters(categories=["Cs", "Cc", "L"]), max_size=10)).map(
    joined
)
# Factories, because hypothesis calls `repr` of the samples.
hostile = st.sampled_from(
    [
        lambda: float("nan"),
        lambda: float("inf"),
        lambda: float("-inf"),
        lambda: 2**63,
        lambda: -(10**5000),
        lambda: b"bytes" * 1000,
        lambda: "x" * 100_000,
        lambda: "\ud800",
        Hostile,
        lambda: HostileDict(a=1),
        lambda: HostileText("abc"),
        cycle,
        deep,
        lambda: list(range(10_000)),
        lambda: {1: 2, (3, 4): 5, None: 6, Hostile: 7},
        object,
        lambda: Hostile,
        lambda: deep,
        lambda: ...,
    ]
).map(lambda make: make())  # type: ignore[no-untyped-call]
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts | st.binary(max_size=10) | hostile,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4) | st.tuples(inner, inner),
    max_leaves=12,
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)

# The keys that the schemas require. All other keys are unknown ones.
REQUIRED: dict[str, Any] = {
    "kind": "task",
    "reason": "paused",
    "target": "",
    "start_ns": 1,
    "end_ns": 2,
    "result": "success",
}
REQUIRED |= {"counts": {}, "dropped": 0}
metadata = st.dictionaries(texts.map(lambda text: f"x-{text}"), json_values, max_size=4).map(
    lambda more: REQUIRED | more
)
durations = st.none() | st.floats(0, 1e12, allow_nan=False)
ids = st.text(HEX, min_size=16, max_size=16)
amounts = st.dictionaries(texts, st.floats(0, 1e6), max_size=3)

headers = st.builds(
    Header,
    run_id=st.integers(1, 2**128 - 1).map(lambda bits: str(UUID(int=bits))),
    ts=st.just("2026-11-23T22:49:00.123456Z"),
    seq=st.integers(0, 2**40),
    org_id=texts,
    project_id=texts,
    source=texts,
    trace_id=st.text(HEX, min_size=32, max_size=32),
    span_id=ids,
    parent_span_id=ids | st.just(""),
    trace_flags=st.integers(0, 255),
    tracestate=st.sampled_from(["", "acme=t61rcWkgMzE", "a@b=1,ot=th:c"]),
)
bodies = (
    st.builds(
        LifecycleEvent,
        event=st.sampled_from(["ENGINE_STARTED", "ENGINE_STOPPED"]),
        status=st.sampled_from([None, "Succeeded", "Failed", "Cancelled"]),
        duration_ms=durations,
        error=st.none() | texts,
        metadata=metadata,
    )
    | st.builds(
        TaskStateEvent,
        task_id=texts,
        task_name=texts,
        state=st.sampled_from(["PENDING", "RUNNING", "COMPLETED", "FAILED", "SKIPPED"]),
        duration_ms=durations,
        error=st.none() | texts,
        metadata=metadata,
    )
    | st.builds(
        ResourceEvent,
        resource_name=texts,
        action=st.sampled_from(["ACQUIRE", "RELEASE"]),
        current_usage=amounts,
        metadata=metadata,
    )
    | st.builds(
        ControlEvent,
        action=st.sampled_from(["APPLIED", "REFUSED", "EXPIRED", "CLEARED"]),
        scope=texts,
        constraint_type=texts,
        constraint_id=st.none() | texts,
        reason=st.none() | texts,
        params=st.dictionaries(texts, json_values, max_size=3),
        metadata=metadata,
    )
)
