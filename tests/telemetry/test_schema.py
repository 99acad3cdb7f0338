"""The schemas equal the types of the code, and have all keys of real runs."""

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any, get_type_hints

import pytest
from jsonschema import Draft202012Validator

import cascade as cs
from cascade.connectors.memory import MemoryConnector
from cascade.spec import metadata
from cascade.spec.value_types import MAX_TRACESTATE
from cascade.telemetry import schema
from tests.lab.schemas import closed_validator
from tests.lab.workflows import recorded

MESSAGE = schema.load("message")
VALID = closed_validator()


@pytest.mark.parametrize("name", schema.NAMES)
def test_each_schema_is_valid(name: str) -> None:
    Draft202012Validator.check_schema(schema.load(name))


def test_the_schemas_are_current(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pydantic", reason="pydantic makes the schemas, and is installed for developers only")
    from docs import schemas

    monkeypatch.setattr(sys, "argv", ["schemas", "--check"])
    schemas.main()


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(ValueError, match="choose from message"):
        schema.load("nonsense")


@cs.task
def item(value: int) -> int:
    return value


@cs.task
async def fails() -> None:
    raise ValueError("broken")


@cs.task
def uses(connection: str = cs.inject("database")) -> str:
    return connection


@cs.resource(name="database")
def database() -> Iterator[str]:
    yield "open"
    raise RuntimeError("teardown")


@cs.task
def nested() -> None:
    cs.run(item(1), connector=MemoryConnector(), log_level="OFF")


SHAPES: dict[str, Callable[[], Any]] = {
    "chain": lambda: item(item(item(1))),
    "map in parts": lambda: item.map(value=list(range(9))).with_label("nine"),
    "retries": lambda: fails().with_retry(max_attempts=3, delay=0.002),
    "failed resource": uses,
    "skipped": lambda: item(item(1).run_if(item(0))),
    "nested run": nested,
    "param": lambda: item(cs.Param("token", default=3)),
}


class Capturing(MemoryConnector):
    """Captures all kinds of values."""

    capture = frozenset({"params", "arguments", "results"})


@pytest.mark.parametrize("shape", SHAPES)
def test_a_run_sends_only_keys_of_the_schema(shape: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CASCADE_TRACE_PART_SIZE", "2")
    connector, resources = Capturing(), [database] if shape == "failed resource" else []
    with contextlib.suppress(ValueError, RuntimeError, cs.DependencyMissingError):
        cs.run(SHAPES[shape](), connector=connector, log_level="OFF", resources=resources)
    assert len(connector.payloads) >= 4
    for payload in connector.payloads:
        assert [error.message for error in VALID.iter_errors(payload)] == []
        body = payload["body"]
        own = metadata.BY_VALUE[body.get("event") or body.get("state") or body["action"]]
        assert set(body["metadata"]) <= set(get_type_hints(own))
        named = MESSAGE["$defs"][body["type"]]["properties"]["metadata"]["properties"]
        assert set(body["metadata"]) <= set(named)


@pytest.mark.parametrize("value", metadata.BY_VALUE)
def test_a_message_without_a_required_key_is_refused(value: str) -> None:
    required = sorted(metadata.BY_VALUE[value].__required_keys__)
    ends = value not in {"PENDING", "RUNNING", "ENGINE_STARTED"}
    assert {"start_ns", "end_ns", "result"} <= set(required) or not ends
    payload = next(iter(recorded())).payload
    for key in required:
        body = dict(payload["body"]) if value == "ENGINE_STARTED" else body_of(value)
        body["metadata"] = {name: some(name) for name in required if name != key}
        errors = [error.message for error in Draft202012Validator(MESSAGE).iter_errors({**payload, "body": body})]
        assert errors, f"{value} without {key} is accepted"
        body["metadata"][key] = some(key)
        assert VALID.is_valid({**payload, "body": body})


def body_of(value: str) -> dict[str, Any]:
    ended = {"duration_ms": None, "error": None}
    if value.startswith("ENGINE"):
        return {"type": "LifecycleEvent", "event": value, "status": "Succeeded", **ended}
    if value in {"ACQUIRE", "RELEASE"}:
        return {"type": "ResourceEvent", "resource_name": "database", "action": value, "current_usage": {}}
    return {"type": "TaskStateEvent", "task_id": "a", "task_name": "a", "state": value, **ended}


def some(key: str) -> Any:
    values = {"kind": "task", "target": "a", "result": "success", "reason": "paused", "counts": {"completed": 1}}
    return values.get(key, 1)


@pytest.mark.parametrize(("length", "fits"), [(MAX_TRACESTATE, True), (MAX_TRACESTATE + 1, False)])
def test_the_longest_tracestate_of_a_run_fits(length: int, fits: bool) -> None:
    longest = "a=" + "b" * (length - 2)
    started = recorded()[0].payload
    assert VALID.is_valid(started | {"tracestate": longest}) is fits
    link = {"trace_id": "a" * 32, "span_id": "b" * 16, "tracestate": longest}
    body = {**started["body"], "metadata": {**started["body"]["metadata"], "links": [link]}}
    assert VALID.is_valid(started | {"body": body}) is fits
