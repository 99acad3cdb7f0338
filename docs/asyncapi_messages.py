"""The messages of the AsyncAPI document: their schemas, headers and examples."""

import json
from collections.abc import Callable, Iterator
from typing import Any

from cascade.connectors.mqtt.packets import CONTENT_TYPE, SESSION_ID, traceparent
from cascade.runtime.control.constraint import CONSTRAINT_CLASSES
from cascade.telemetry.run_state import RunStateFold, encode_state
from cascade.telemetry.schema import load
from docs.example_run import PAUSE, messages

BINDING = "0.2.0"
_TRACEPARENT = {
    "type": "object",
    "properties": {
        "traceparent": {
            "type": "string",
            "pattern": "^00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$",
            "description": "The span of the message in the form of W3C Trace Context; a user property of MQTT.",
        },
        "tracestate": {
            "type": "string",
            "description": "The W3C tracestate of that span, if it has one; a user property of MQTT.",
        },
    },
}
_SESSION = {
    "type": "object",
    "properties": {
        SESSION_ID: {
            "type": "string",
            "pattern": "^[0-9a-f]{16}$",
            "description": "The session of the connector that publishes the message, or that has set it as its Last Will; a user property of MQTT.",
        },
    },
}
_ENDED = ("COMPLETED", "FAILED", "SKIPPED")

# By name: the type of the body, the field that distinguishes its messages, the values of this field, and a summary.
_EVENTS: dict[str, tuple[str, str, tuple[str, ...], str]] = {
    "RunStarted": ("LifecycleEvent", "event", ("ENGINE_STARTED",), "A run starts."),
    "RunStopped": ("LifecycleEvent", "event", ("ENGINE_STOPPED",), "A run has ended; self-contained."),
    "TaskHeld": ("TaskStateEvent", "state", ("PENDING",), "A task must wait, with the reason."),
    "TaskStarted": ("TaskStateEvent", "state", ("RUNNING",), "A task or one of its attempts starts."),
    "TaskEnded": ("TaskStateEvent", "state", _ENDED, "A task has ended or was skipped; self-contained."),
    "ResourceAcquired": ("ResourceEvent", "action", ("ACQUIRE",), "The setup of a resource has ended; self-contained."),
    "ResourceReleased": (
        "ResourceEvent",
        "action",
        ("RELEASE",),
        "The teardown of a resource has ended; self-contained.",
    ),
    "ControlDecided": (
        "ControlEvent",
        "action",
        ("APPLIED", "REFUSED", "EXPIRED", "CLEARED"),
        "The decision about a constraint.",
    ),
}
QOS_1 = ("RunStarted", "RunStopped", "TaskEnded", "ResourceAcquired", "ResourceReleased", "ControlDecided")
"""Messages with QoS 1."""
QOS_0 = tuple(name for name in _EVENTS if name not in QOS_1)

_PARAMS: dict[str, tuple[dict[str, Any], ...]] = {
    "pause": (PAUSE, {"type": "pause", "expires_at": 1_764_003_600}),
    "concurrency": ({"id": "quota", "type": "concurrency", "params": {"limit": 4}},),
    "rate_limit": (
        {"id": "api", "type": "rate_limit", "params": {"rate": "10/s"}},
        {"type": "rate_limit", "params": {"rate": "1/h", "burst": 3}},
    ),
    "resource": ({"id": "night", "type": "resource", "params": {"name": "gpu", "capacity": 2}},),
}
CONSTRAINTS = {f"{kind.__name__}Constraint": kind.type for kind in CONSTRAINT_CLASSES}
"""Types of constraints by the names of their messages."""


def all_messages() -> dict[str, Any]:
    payloads = [message.payload for message in messages()]
    found = {name: _event(name, payloads) for name in _EVENTS}
    found |= {name: _constraint(name) for name in CONSTRAINTS}
    found |= _states(payloads)
    found["Cleared"] = _text("Cleared", "", "Clears the retained message of the topic.")
    found["Online"] = _presence("Online", "online", "The process is connected.")
    found["Offline"] = _presence("Offline", "offline", "The process is no longer connected.")
    found["Forgotten"] = _presence("Forgotten", "", "Clears the retained message of a process that has disconnected.")
    return found


def all_schemas() -> dict[str, Any]:
    """Return the schemas of the messages. They are valid in draft 7 of JSON Schema, which AsyncAPI needs."""
    message: dict[str, Any] = json.loads(json.dumps(load("message")).replace("#/$defs/", "#/components/schemas/"))
    header = {name: part for name, part in message["properties"].items() if name != "body"}
    found: dict[str, Any] = {"Header": {"type": "object", "required": message["required"], "properties": header}}
    found |= message["$defs"]
    found |= {f"{name}Constraint": schema for name, schema in load("control")["$defs"].items()}
    state: dict[str, Any] = json.loads(json.dumps(load("state")).replace("#/$defs/", "#/components/schemas/"))
    parts: dict[str, Any] = state.pop("$defs")
    return found | parts | {state["title"]: {key: part for key, part in state.items() if not key.startswith("$")}}


def _states(payloads: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the state of an active run with a waiting task, and the final state."""
    fold, active = RunStateFold(payloads[0]), dict[str, Any]()
    for payload in payloads:
        fold.add(payload)
        if payload["body"].get("state") == "PENDING":
            active = encode_state(fold.state(0))
    results = [status for status in load("state")["properties"]["status"]["enum"] if status != "running"]
    active_state = _state("RunActive", "The state of an active run.", {"const": "running"}, active)
    final_state = _state("RunOver", "The final state of a run.", {"enum": results}, encode_state(fold.state(0)))
    return {"RunActive": active_state, "RunOver": final_state}


def _state(name: str, summary: str, status: dict[str, Any], example: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": name,
        "summary": summary,
        "contentType": CONTENT_TYPE,
        "payload": {"allOf": [_reference("RetainedRunState"), {"type": "object", "properties": {"status": status}}]},
        "bindings": _binding(CONTENT_TYPE),
        "examples": [{"payload": json.loads(json.dumps(example))}],
    }


def _event(name: str, payloads: list[dict[str, Any]]) -> dict[str, Any]:
    kind, field, values, summary = _EVENTS[name]
    body = {"type": "object", "required": ["type", field], "properties": {field: {"enum": list(values)}}}
    examples = _last_of_each(payloads, lambda payload: _is(payload["body"], kind, field, values), field)
    return {
        "name": name,
        "summary": summary,
        "contentType": CONTENT_TYPE,
        "headers": _TRACEPARENT,
        "payload": {
            "allOf": [
                {"$ref": "#/components/schemas/Header"},
                {"type": "object", "properties": {"body": {"allOf": [_reference(kind), body]}}},
            ]
        },
        "bindings": _binding(CONTENT_TYPE),
        "examples": [
            {
                "name": payload["body"][field].capitalize(),
                "headers": {"traceparent": traceparent(payload).decode()},
                "payload": payload,
            }
            for payload in examples
        ],
    }


def _is(body: dict[str, Any], kind: str, field: str, values: tuple[str, ...]) -> bool:
    return body["type"] == kind and body[field] in values


def _last_of_each(
    payloads: list[dict[str, Any]], matches: Callable[[dict[str, Any]], bool], field: str
) -> Iterator[dict[str, Any]]:
    """Yield the last payload for each value of a field of the body, which has the most metadata."""
    yield from {payload["body"][field]: payload for payload in payloads if matches(payload)}.values()


def _constraint(name: str) -> dict[str, Any]:
    return {
        "name": name,
        "summary": load("control")["$defs"][name.removesuffix("Constraint")]["description"],
        "contentType": CONTENT_TYPE,
        "payload": _reference(name),
        "bindings": _binding(CONTENT_TYPE),
        "examples": [{"payload": payload} for payload in _PARAMS[CONSTRAINTS[name]]],
    }


def _text(name: str, text: str, summary: str) -> dict[str, Any]:
    """Return a message that is not JSON."""
    return {
        "name": name,
        "summary": summary,
        "contentType": "text/plain",
        "payload": {"type": "string", "const": text},
        "examples": [{"payload": text}],
    }


def _presence(name: str, text: str, summary: str) -> dict[str, Any]:
    example = {"headers": {SESSION_ID: "4bf92f3577b34da6"}, "payload": text}
    return _text(name, text, summary) | {"headers": _SESSION, "examples": [example]}


def _reference(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


def _binding(content_type: str) -> dict[str, Any]:
    return {"mqtt": {"contentType": content_type, "bindingVersion": BINDING}}
