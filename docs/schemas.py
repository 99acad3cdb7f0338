"""Generates the JSON Schemas of the package from its dataclasses and TypedDicts, with pydantic.

The dataclasses and TypedDicts do not depend on pydantic. `Keywords` and the docstrings of attributes contain the keywords
and descriptions that types do not express. This module passes them to pydantic.
"""

import ast
import inspect
import json
import sys
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Annotated, Any, NotRequired, get_args, get_origin, get_type_hints

import typing_extensions
from pydantic import Field, TypeAdapter
from typing_extensions import is_typeddict

from cascade.runtime.control import constraint
from cascade.runtime.control.constraint import Constraint, Pause
from cascade.spec import metadata, value_types
from cascade.spec.telemetry import ActiveTask, Header, LastError, RetainedRunState
from cascade.spec.value_types import Keywords
from cascade.telemetry.limits import MAX_LISTED_TASKS, MAX_TIME
from cascade.telemetry.schema import FOLDER
from cascade.telemetry.wire import BODIES, VERSION

DIALECT = "https://json-schema.org/draft/2020-12/schema"
_URN = f"urn:cascade:telemetry:{VERSION}"
_TIMESTAMP = {"type": "string", "pattern": r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z$"}

Schema = dict[str, Any]


def _plain(kind: str, alias: Any) -> Schema:
    """Return the schema of an alias of `spec.value_types`, such as `TraceId`: a JSON type with the keywords of the alias."""
    return {"type": kind, **get_args(alias)[1]}


_COUNT, _ORDINAL = _plain("integer", value_types.Count), _plain("integer", value_types.Ordinal)


def schemas() -> dict[str, Schema]:
    """Return all schemas by name: messages, each kind of body, the state of a run, and constraints."""
    bodies = {name: _body(name, kind) for name, kind in BODIES.items()}
    header = {field.name: _HEADER.get(field.name) or _of_field(Header, field.name) for field in fields(Header)}
    definitions = {name: definition for body in bodies.values() for name, definition in body.get("$defs", {}).items()}
    message = {
        "$schema": DIALECT,
        "$id": f"{_URN}:message",
        "title": "Cascade telemetry message",
        "type": "object",
        "required": [*(name for name in header if name != "tracestate"), "body"],
        "properties": {**header, "body": {"oneOf": [{"$ref": f"#/$defs/{name}"} for name in bodies]}},
        "$defs": {
            **{name: {key: part for key, part in body.items() if key[0] != "$"} for name, body in bodies.items()},
            **definitions,
        },
    }
    return {"message": message, **bodies, "state": _state(), "control": _control()}


# Schemas that the types of the header's fields do not express. `tracestate` is absent if the spans have none.
_HEADER: dict[str, Schema] = {
    "v": {"type": "string", "pattern": r"^1\.[0-9]+$"},
    "ts": _TIMESTAMP,
    "seq": _COUNT,
    "trace_id": _plain("string", value_types.TraceId),
    "span_id": _plain("string", value_types.SpanId),
    "parent_span_id": {"type": "string", "pattern": "^([0-9a-f]{16})?$"},
    "trace_flags": {"type": "integer", "minimum": 0, "maximum": 255},
    "tracestate": _plain("string", value_types.TraceState),
}


def _body(name: str, kind: type[Any]) -> Schema:
    """Return the schema of a body. Its metadata has the keys of all its messages; `allOf` has the keys of each message."""
    properties = {field.name: _of_field(kind, field.name) for field in fields(kind)}
    by_value = {value: metadata.BY_VALUE[value] for value in _values(kind) if value in metadata.BY_VALUE}
    definitions: Schema = {}
    for typed in dict.fromkeys(by_value.values()):
        own = _json_schema(_for_pydantic(typed))
        definitions |= own.pop("$defs", {})
        definitions[typed.__name__] = own
    known = [definitions[typed.__name__] for typed in dict.fromkeys(by_value.values())]
    keys = {key: part for one in known for key, part in one["properties"].items()}
    required = [key for key in keys if all(key in one["required"] for one in known)]
    properties["metadata"] = {"type": "object", "required": required, "properties": keys}
    found = {
        "$schema": DIALECT,
        "$id": f"{_URN}:{name}",
        "title": name,
        "description": _summary(kind),
        "type": "object",
        "required": ["type", *properties],
        "properties": {"type": {"const": name}, **properties},
        "allOf": [
            {
                "if": {"properties": {_DISCRIMINATOR[name]: {"const": value}}},
                "then": {"properties": {"metadata": {"$ref": f"#/$defs/{typed.__name__}"}}},
            }
            for value, typed in by_value.items()
        ],
        "$defs": definitions,
    }
    return {key: part for key, part in found.items() if part}


_DISCRIMINATOR = {
    "LifecycleEvent": "event",
    "TaskStateEvent": "state",
    "ResourceEvent": "action",
    "ControlEvent": "action",
}


def _values(kind: type[Any]) -> tuple[str, ...]:
    return get_args(get_type_hints(kind)[_DISCRIMINATOR[kind.__name__]])


def _state() -> Schema:
    """Return the schema of a run's retained state."""
    listed = {"type": "array", "maxItems": MAX_LISTED_TASKS, "items": {"$ref": "#/$defs/ActiveTask"}}
    states = ("pending", "running", "completed", "failed", "cancelled", "skipped")
    state = _dataclass(
        RetainedRunState,
        counts={"type": "object", "required": list(states), "properties": dict.fromkeys(states, _COUNT)},
        running=listed,
        waiting=listed,
        end_time={"anyOf": [_TIMESTAMP, {"type": "null"}]},
        duration_ms=_json_schema(float | None),
        last_error={"anyOf": [{"$ref": "#/$defs/LastError"}, {"type": "null"}]},
    )
    parts = {kind.__name__: _dataclass(kind) for kind in (ActiveTask, LastError)}
    return {"$schema": DIALECT, "$id": f"{_URN}:state", **state, "required": list(state["properties"]), "$defs": parts}


# Schemas that the types of the state's fields do not express, in addition to those of the header.
_OF_STATE: dict[str, Schema] = {
    **dict.fromkeys(("start_time", "end_time", "time"), _TIMESTAMP),
    **dict.fromkeys(("tasks", "map_index", "map_size"), _COUNT),
    "attempt": _ORDINAL,
}


def _dataclass(kind: type[Any], **details: Schema) -> Schema:
    """Return the schema of a dataclass of the state. A field whose default is None is omitted instead of null."""
    known = _HEADER | _OF_STATE | {"constraint": _json_schema(_for_pydantic(metadata.ConstraintRef))} | details
    return {
        "title": kind.__name__,
        "description": _summary(kind),
        "type": "object",
        "required": [field.name for field in fields(kind) if field.default is MISSING],
        "properties": {
            field.name: known.get(field.name) or _without_null(_of_field(kind, field.name)) for field in fields(kind)
        },
    }


# Schemas that the types of a constraint's fields do not express. The parser computes the other fields.
_OF_CONSTRAINT: dict[str, Schema] = {
    "id": {
        "maxLength": constraint.MAX_NAME,
        "description": "All messages about the constraint contain it. Default: the type.",
    },
    "expires_at": {
        "description": "Unix seconds at which the constraint ends. Null or absent: it applies until it is cleared."
    },
}
_PARAMS: dict[str, Schema] = {
    "limit": {"type": "integer", "minimum": 1, "maximum": constraint.MAX_COUNT},
    "rate": {
        "type": "string",
        "pattern": f"^{constraint.RATE}$",
        "not": {"pattern": constraint.ZERO_RATE},
        "description": f"Starts per second, minute or hour: above zero, at most {constraint.MAX_COUNT:,} per second.",
        "examples": ["10/s", "2.5/m", "1/h"],
    },
    "burst": {
        "anyOf": [{"type": "number", "minimum": 1, "maximum": constraint.MAX_COUNT}, {"type": "null"}],
        "description": "Number of tasks that may start at once after a time without starts.",
    },
    "name": {"type": "string", "minLength": 1, "maxLength": constraint.MAX_NAME},
    "capacity": {"type": "number", "minimum": 0, "maximum": constraint.MAX_CAPACITY},
}
_OPTIONAL = {"burst"}


def _control() -> Schema:
    """Return the schema of constraints. `parse_constraint` accepts exactly the payloads that the schema accepts.

    The schema does not cover the topic. Its type must be that of the payload, and a resource has no scope `task`.
    """
    return {
        "$schema": DIALECT,
        "$id": f"urn:cascade:control:{VERSION}",
        "title": "Cascade constraint",
        "oneOf": [{"$ref": f"#/$defs/{kind.__name__}"} for kind in constraint.CONSTRAINT_CLASSES],
        "$defs": {kind.__name__: _constraint(kind) for kind in constraint.CONSTRAINT_CLASSES},
    }


def _constraint(kind: type[Constraint]) -> Schema:
    names = [field.name for field in fields(kind) if field.name in _PARAMS]
    params = {
        "type": "object",
        "required": [name for name in names if name not in _OPTIONAL],
        "properties": {name: _PARAMS[name] for name in names},
        "additionalProperties": False,
    }
    common = {name: _of_field(Constraint, name) | details for name, details in _OF_CONSTRAINT.items()}
    common["expires_at"]["anyOf"][0] |= {"minimum": 0, "maximum": MAX_TIME}
    return {
        "title": kind.__name__,
        "description": _summary(kind),
        "type": "object",
        "required": ["type"] if kind is Pause else ["type", "params"],
        "properties": {
            "type": {"const": kind.type},
            **common,
            "params": {"anyOf": [params, {"type": "null"}]} if kind is Pause else params,
        },
        "additionalProperties": False,
    }


def _for_pydantic(typed: type[Any]) -> Any:
    """Return a TypedDict of typing_extensions with descriptions, because pydantic requires it before Python 3.12."""
    documented = keys_of(typed.__name__)
    hints = get_type_hints(typed, include_extras=True)
    make: Any = typing_extensions.TypedDict  # type checkers accept literal names only
    found = make(typed.__name__, {key: _converted(hint, description=documented[key]) for key, hint in hints.items()})
    found.__doc__ = _summary(typed)
    return found


def _converted(hint: Any, **details: Any) -> Any:
    """Return a type with pydantic's form of TypedDicts and `Keywords`."""
    if get_origin(hint) is NotRequired:
        return NotRequired[_converted(get_args(hint)[0], **details)]
    if get_origin(hint) is Annotated:
        plain, *extras = get_args(hint)
        keywords = {key: value for extra in extras if isinstance(extra, Keywords) for key, value in extra.items()}
        return Annotated[plain, Field(json_schema_extra=keywords, **details)]
    if is_typeddict(hint):
        found = _for_pydantic(hint)
    elif arguments := get_args(hint):
        origin = get_origin(hint)
        found = origin[tuple(map(_converted, arguments))] if origin in {list, dict} else hint
    else:
        found = hint
    return Annotated[found, Field(**details)] if details else found


_SOURCES = inspect.getsource(value_types) + inspect.getsource(metadata)
_CLASSES = {node.name: node for node in ast.parse(_SOURCES).body if isinstance(node, ast.ClassDef)}


def keys_of(name: str) -> dict[str, str]:
    """Return the keys of a TypedDict with the docstrings of their attributes, inherited keys first."""
    found: dict[str, str] = {}
    for base in _CLASSES[name].bases:
        if ast.unparse(base) in _CLASSES:
            found |= keys_of(ast.unparse(base))
    body = _CLASSES[name].body
    for node, following in zip(body, [*body[1:], None], strict=True):
        match node, following:
            case ast.AnnAssign(target=ast.Name(id=key)), ast.Expr(value=ast.Constant(value=str(docstring))):
                found[key] = docstring
            case ast.AnnAssign(), _:
                raise TypeError(f"{name}.{ast.unparse(node)} has no docstring")
    return found


def tables_of_metadata() -> str:
    """Return a Markdown table for each TypedDict: its keys, whether they are required, and their descriptions."""
    kinds = [kind for name, kind in vars(metadata).items() if name in _CLASSES and name[0] != "_" and keys_of(name)]
    return "\n".join(_table_of(kind) for kind in sorted(kinds, key=lambda kind: "Metadata" not in kind.__name__))


def _table_of(kind: Any) -> str:
    lines = [f"`{kind.__name__}`. {_summary(kind)}", "", "| key | required | meaning |", "|---|---|---|"]
    for key, meaning in keys_of(kind.__name__).items():
        lines.append(f"| `{key}` | {'yes' if key in kind.__required_keys__ else ''} | {meaning} |")
    return "\n".join(lines) + "\n"


def _of_field(kind: type[Any], name: str) -> Schema:
    return _json_schema(get_type_hints(kind)[name])


def _json_schema(hint: Any) -> Schema:
    """Return the schema of a type without the titles that pydantic generates."""
    found: Schema = _without_titles(TypeAdapter(hint).json_schema())
    return found


def _without_titles(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_without_titles(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: {name: _without_titles(part) for name, part in value.items()}
        if key in {"properties", "$defs"}
        else _without_titles(value)
        for key, value in schema.items()
        if key != "title"
    }


def _without_null(schema: Schema) -> Schema:
    options = [option for option in schema.get("anyOf", ()) if option != {"type": "null"}]
    return options[0] if options else schema


def _summary(kind: type[Any]) -> str:
    return (kind.__doc__ or "").partition("\n")[0]


def main() -> None:
    """Write the schemas; with `--check`, fail if the files are not current."""
    for name, schema in schemas().items():
        path, wanted = FOLDER / f"{name}.json", json.dumps(schema, indent=2) + "\n"
        if "--check" not in sys.argv:
            path.write_text(wanted, encoding="utf-8")
        elif not path.exists() or path.read_text(encoding="utf-8") != wanted:
            sys.exit(f"{Path(path).name} is not current: make docs")


if __name__ == "__main__":
    main()
