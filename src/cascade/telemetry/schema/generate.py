"""Write the JSON Schemas from the dataclasses; with `--check`, fail if the files are not current."""

import json
import sys
from dataclasses import MISSING, fields
from types import NoneType, UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from cascade.spec.telemetry import ActiveTask, ControlAction, Header, LastError, RetainedRunState
from cascade.telemetry.identity import MAX_TRACESTATE
from cascade.telemetry.limits import MAX_LISTED_TASKS
from cascade.telemetry.schema import FOLDER
from cascade.telemetry.wire import BODIES, VERSION

DIALECT = "https://json-schema.org/draft/2020-12/schema"
_URN = f"urn:cascade:telemetry:{VERSION}"

_SPAN_ID, _TRACE_ID = {"type": "string", "pattern": "^[0-9a-f]{16}$"}, {"type": "string", "pattern": "^[0-9a-f]{32}$"}
_TRACESTATE = {"type": "string", "minLength": 1, "maxLength": MAX_TRACESTATE}
_COUNT, _NANOSECONDS = {"type": "integer", "minimum": 0}, {"type": "integer", "minimum": 0}
_TEXT = {"type": "string"}
_TIMESTAMP = {"type": "string", "pattern": r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z$"}
_RESULT = {"enum": ["success", "failure", "error", "timeout", "cancellation", "skip"]}


def _object(required: list[str], **properties: Any) -> dict[str, Any]:
    return {"type": "object", "required": required, "properties": properties}


def _list_of(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items}


_CONSTRAINT = _object(["scope", "type", "id"], scope=_TEXT, type=_TEXT, id=_TEXT)
_CONTROL = _object(
    ["action", "scope", "type", "time_ns"],
    action={"enum": list(get_args(ControlAction))},
    scope=_TEXT,
    type=_TEXT,
    id=_TEXT,
    reason=_TEXT,
    params={"type": "object"},
    time_ns=_NANOSECONDS,
)
_EXCEPTION = _object(["type", "message"], type=_TEXT, message=_TEXT, stacktrace=_TEXT)
_LINK = {"trace_id": _TRACE_ID, "span_id": _SPAN_ID, "tracestate": _TRACESTATE}
_WINDOW = {"start_ns": _NANOSECONDS, "end_ns": _NANOSECONDS}

_PART: dict[str, Any] = {
    "part": {"type": "integer", "minimum": 1},
    "trace_id": _TRACE_ID,
    "span_id": _SPAN_ID,
    "first": _COUNT,
    "last": _COUNT,
    **_WINDOW,
}

# What a dataclass cannot say of a header field.
_HEADER_DETAILS: dict[str, dict[str, Any]] = {
    "v": {"type": "string", "pattern": r"^1\.[0-9]+$"},
    "ts": _TIMESTAMP,
    "seq": _COUNT,
    "trace_id": _TRACE_ID,
    "span_id": _SPAN_ID,
    "parent_span_id": {"type": "string", "pattern": "^([0-9a-f]{16})?$"},
    "trace_flags": {"type": "integer", "minimum": 0, "maximum": 255},
    "tracestate": _TRACESTATE,
}
_OPTIONAL = frozenset({"tracestate"})
"""Header fields that a message has only with a value."""

# The documented keys of `metadata`, for all kinds of messages together; others may come.
_METADATA: dict[str, Any] = {
    "kind": {"enum": ["task", "map"]},
    "map_id": _TEXT,
    "map_index": _COUNT,
    "map_size": _COUNT,
    "label": {"type": "string", "minLength": 1},
    "reason": _TEXT,
    "attempt": {"type": "integer", "minimum": 1},
    "max_attempts": _COUNT,
    "attempt_count": _COUNT,
    "delay_ms": {"type": "number", "minimum": 0},
    "span_id": _SPAN_ID,
    **_WINDOW,
    "result": _RESULT,
    "function": _TEXT,
    "links": _list_of(_object(["trace_id", "span_id"], **_LINK)),
    "link_count": _COUNT,
    "exception": _EXCEPTION,
    "waits": _list_of(
        _object(
            ["reason", "span_id", "start_ns", "end_ns"],
            reason=_TEXT,
            span_id=_SPAN_ID,
            constraint=_CONSTRAINT,
            **_WINDOW,
        )
    ),
    "constraint": _CONSTRAINT,
    "attempts": _list_of(
        _object(
            ["attempt", "span_id", "start_ns", "end_ns"],
            attempt={"type": "integer", "minimum": 1},
            span_id=_SPAN_ID,
            result=_RESULT,
            exception=_EXCEPTION,
            **_WINDOW,
        )
    ),
    "target": _TEXT,
    "tasks": {"type": "object", "additionalProperties": _COUNT},
    "inputs": _list_of(_TEXT),
    "counts": {"type": "object", "additionalProperties": _COUNT},
    "dropped": _COUNT,
    "left_out": {"type": "integer", "minimum": 1},
    "control": _list_of(_CONTROL),
    "control_count": _COUNT,
    "hold_start_ns": _NANOSECONDS,
    "later_errors": _list_of(
        _object(["type", "message", "time_ns"], type=_TEXT, message=_TEXT, stacktrace=_TEXT, time_ns=_NANOSECONDS)
    ),
    "parts": _list_of(_object(list(_PART), **_PART, ended={"const": True})),
    "part_count": _COUNT,
    "ended_parts": _list_of(
        _object(
            [*_PART, "name", "parent"],
            **_PART,
            name=_TEXT,
            parent=_object(["trace_id", "span_id"], **_LINK),
            task_id=_TEXT,
        )
    ),
    "truncated": _list_of(_TEXT),
}


def schemas() -> dict[str, dict[str, Any]]:
    """All schemas by name."""
    bodies = {name: _body(name, kind) for name, kind in BODIES.items()}
    header = {f.name: _HEADER_DETAILS.get(f.name) or schema_of(get_type_hints(Header)[f.name]) for f in fields(Header)}
    message = {
        "$schema": DIALECT,
        "$id": f"{_URN}:message",
        "title": "Cascade telemetry message",
        "type": "object",
        "required": [*(name for name in header if name not in _OPTIONAL), "body"],
        "properties": {**header, "body": {"oneOf": [{"$ref": f"#/$defs/{name}"} for name in bodies]}},
        "$defs": {name: {k: v for k, v in body.items() if not k.startswith("$")} for name, body in bodies.items()},
    }
    return {"message": message, **bodies, "state": _state()}


def _state() -> dict[str, Any]:
    """The schema of a run's retained state."""
    listed = {"type": "array", "maxItems": MAX_LISTED_TASKS, "items": {"$ref": "#/$defs/ActiveTask"}}
    state = _part(
        RetainedRunState,
        counts=_object(list(_COUNTS), **dict.fromkeys(_COUNTS, _COUNT)),
        running=listed,
        waiting=listed,
        end_time={"anyOf": [_TIMESTAMP, {"type": "null"}]},
        duration_ms=schema_of(float | None),
        last_error={"anyOf": [{"$ref": "#/$defs/LastError"}, {"type": "null"}]},
    )
    parts = {kind.__name__: _part(kind) for kind in (ActiveTask, LastError)}
    return {"$schema": DIALECT, "$id": f"{_URN}:state", **state, "required": list(state["properties"]), "$defs": parts}


_COUNTS = ("pending", "running", "completed", "failed", "cancelled", "skipped")
# Details of fields of the state that a dataclass does not have, beside those of the header.
_STATE_DETAILS: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("start_time", "end_time", "time"), _TIMESTAMP),
    **dict.fromkeys(("tasks", "map_index", "map_size"), _COUNT),
    "attempt": {"type": "integer", "minimum": 1},
    "constraint": _CONSTRAINT,
}


def _part(kind: type[Any], **details: dict[str, Any]) -> dict[str, Any]:
    """The schema of a dataclass of the state. A field whose default is None is left out instead of null."""
    hints, known = get_type_hints(kind), _HEADER_DETAILS | _STATE_DETAILS | details
    plain = {
        name: (schema_of(hint).get("anyOf") or [schema_of(hint)])[0]
        for name, hint in hints.items()
        if name not in known
    }
    return {
        "title": kind.__name__,
        "description": (kind.__doc__ or "").partition("\n")[0],
        "type": "object",
        "required": [field.name for field in fields(kind) if field.default is MISSING],
        "properties": {name: known.get(name) or plain[name] for name in hints},
    }


def _body(name: str, kind: type[Any]) -> dict[str, Any]:
    hints = get_type_hints(kind)
    properties = {field.name: schema_of(hints[field.name]) for field in fields(kind)}
    properties["metadata"] = {"type": "object", "properties": _METADATA}
    return {
        "$schema": DIALECT,
        "$id": f"{_URN}:{name}",
        "title": name,
        "description": (kind.__doc__ or "").partition("\n")[0],
        "type": "object",
        "required": ["type", *properties],
        "properties": {"type": {"const": name}, **properties},
    }


_PLAIN = {str: "string", int: "integer", float: "number", bool: "boolean", NoneType: "null"}


def schema_of(hint: Any) -> dict[str, Any]:
    if hint in _PLAIN:
        return {"type": _PLAIN[hint]}
    if get_origin(hint) is Literal:
        return {"enum": list(get_args(hint))}
    if get_origin(hint) is UnionType or type(None) in get_args(hint):
        return {"anyOf": [schema_of(option) for option in get_args(hint)]}
    if get_origin(hint) is dict:
        value = get_args(hint)[1]
        return {"type": "object"} if value is Any else {"type": "object", "additionalProperties": schema_of(value)}
    raise TypeError(f"no schema for {hint!r}: teach this function")


def write(schemas: dict[str, dict[str, Any]], module: str) -> None:
    """Write schemas to their files; with `--check`, fail if the files are not current. `module` is who does it."""
    stale = []
    for name, schema in schemas.items():
        path, wanted = FOLDER / f"{name}.json", json.dumps(schema, indent=2) + "\n"
        if "--check" not in sys.argv:
            path.write_text(wanted, encoding="utf-8")
        elif not path.exists() or path.read_text(encoding="utf-8") != wanted:
            stale.append(path.name)
    if stale:
        sys.exit(f"not current: {', '.join(stale)}; run python -m {module}")


def main() -> None:
    write(schemas(), "cascade.telemetry.schema.generate")


if __name__ == "__main__":
    main()
