"""Encodes messages as dicts and as JSON, and decodes them."""

import json
import math
from collections.abc import Mapping
from dataclasses import MISSING, fields
from datetime import UTC, datetime
from operator import attrgetter
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from cascade.spec.telemetry import Body, ControlEvent, Header, LifecycleEvent, ResourceEvent, TaskState, TaskStateEvent
from cascade.telemetry.limits import MAX_TIME

VERSION = "1.0"
BODIES: dict[str, type[Any]] = {c.__name__: c for c in (LifecycleEvent, TaskStateEvent, ResourceEvent, ControlEvent)}


def _getter(kind: type[Any]) -> tuple[tuple[str, ...], Any]:
    names = tuple(field.name for field in fields(kind))
    return names, attrgetter(*names)


_HEADER = _getter(Header)
_GETTERS = {kind: _getter(kind) for kind in BODIES.values()}


def encode(header: Header, body: Body) -> dict[str, Any]:
    """Return a message as a dict: the fields of the header, and `body` with its `type`."""
    return encode_header(header) | {"body": encode_body(body)}


def encode_header(header: Header) -> dict[str, Any]:
    """Return the fields of the header of a message."""
    names, values = _HEADER
    found = dict(zip(names, values(header), strict=True))
    if not header.tracestate:
        del found["tracestate"]
    return found


def encode_body(body: Body) -> dict[str, Any]:
    """Return the body of a message, with its `type`."""
    names, values = _GETTERS[type(body)]
    return {"type": type(body).__name__, **dict(zip(names, values(body), strict=True))}


def task_body(
    task_id: str,
    task_name: str,
    state: TaskState,
    duration_ms: float | None,
    error: str | None,
    metadata: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the body of a `TaskStateEvent` at a fifth of the cost of its object and `encode_body`."""
    return {
        "type": "TaskStateEvent",
        "task_id": task_id,
        "task_name": task_name,
        "state": state,
        "duration_ms": duration_ms,
        "error": error,
        "metadata": metadata,
    }


def decode(payload: Mapping[str, Any]) -> tuple[Header, Body]:
    """Return the header and the body of a message. Unknown fields are ignored.

    Raises:
        ValueError: The payload is not a message of version 1. The text has the field and its value.
    """
    if not isinstance(payload, Mapping):
        raise ValueError(f"a message must be an object, got {type(payload).__name__}")
    if str(payload.get("v", "")).partition(".")[0] != VERSION.partition(".")[0]:
        raise ValueError(f"v={payload.get('v')!r} is not supported: the version must be 1.x, such as {VERSION}")
    body = payload.get("body")
    if not isinstance(body, Mapping):
        raise ValueError(f"body must be an object, got {body!r}")
    kind = BODIES.get(str(body.get("type")))
    if kind is None:
        raise ValueError(f"body.type={body.get('type')!r}: choose from {', '.join(BODIES)}")
    return _build(Header, payload, ""), _build(kind, body, "body.")


def _build(kind: type[Any], data: Mapping[str, Any], where: str) -> Any:
    known = {name: _checked(data[name], hint, where + name) for name, hint in _HINTS[kind].items() if name in data}
    try:
        return kind(**known)
    except TypeError:
        missing = next(
            field.name
            for field in fields(kind)
            if field.name not in known and field.default is MISSING and field.default_factory is MISSING
        )
        raise ValueError(f"{where}{missing} is missing") from None


_HINTS = {kind: get_type_hints(kind) for kind in (Header, *BODIES.values())}


def _checked(value: Any, hint: Any, name: str) -> Any:
    if not _fits(value, hint):
        raise ValueError(f"{name}={value!r}: expected {hint}")
    return value


def _fits(value: Any, hint: Any) -> bool:
    """Return whether a JSON value has a type. Any string fits a Literal, because later versions 1.x may add choices."""
    if get_origin(hint) in {Union, UnionType}:
        return any(_fits(value, option) for option in get_args(hint))
    if get_origin(hint) is Literal:
        return isinstance(value, str)
    kind = get_origin(hint) or hint
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, (int, float) if kind is float else kind)


_second = (-1, "")


def timestamp(ns: int) -> str:
    """Return nanoseconds since the Unix epoch as ISO 8601 in UTC with microseconds: `2026-11-23T22:49:00.123456Z`."""
    global _second  # noqa: PLW0603 - a cache of the latest second, because many messages have the same one
    whole, rest = divmod(ns, 1_000_000_000)
    known, prefix = _second
    if known != whole:
        prefix = datetime.fromtimestamp(whole, UTC).strftime("%Y-%m-%dT%H:%M:%S")
        _second = whole, prefix
    return f"{prefix}.{rest // 1000:06d}Z"


def parse_timestamp(text: str) -> int:
    """Return a timestamp of a message as nanoseconds since the Unix epoch. Raises ValueError if it is invalid."""
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError(f"{text!r} has no time zone")
    whole = math.floor(moment.timestamp())
    return whole * 1_000_000_000 + moment.microsecond * 1000


# `json.dumps` would create an encoder for each call with these arguments.
_encode_json = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode


def dumps(payload: Mapping[str, Any]) -> bytes:
    """Return a payload as strict JSON in UTF-8."""
    return _encode_json(payload).encode()


def loads(data: bytes | str) -> dict[str, Any]:
    """Return the payload of a JSON object.

    Raises:
        ValueError: The data is not a JSON object, not in UTF-8, or nested too deeply.
    """
    try:
        payload = json.loads(data)
    except RecursionError:
        raise ValueError("the message is nested too deeply") from None
    if not isinstance(payload, dict):
        raise ValueError(f"a message must be an object, got {type(payload).__name__}")
    return payload


MAX_RECEIVED_BYTES = 16 * 1024
"""Limit of incoming messages. A constraint has a few hundred bytes."""


class InvalidPayload(dict[str, Any]):
    """Empty payload that a connector passes to the callback of a subscription if a message is not a JSON object."""

    def __init__(self, reason: str) -> None:
        super().__init__()
        self.reason = reason


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")


# Created once, as for `dumps`.
_decode_json = json.JSONDecoder(parse_constant=_no_number).decode


def decode_incoming(data: bytes) -> dict[str, Any]:
    """Decode an incoming message for the callback of a subscription. Never raises.

    The result is an empty dict for an empty message, which clears the constraint of its topic, and `InvalidPayload` for a
    message that is not a JSON object in UTF-8. A byte order mark is ignored.
    """
    if not data:
        return {}
    if len(data) > MAX_RECEIVED_BYTES:
        return InvalidPayload(f"it has {len(data):,} bytes, more than {MAX_RECEIVED_BYTES:,}")
    try:
        payload = _decode_json(data.decode("utf-8-sig"))  # RFC 8259, 8.1, allows a byte order mark to be ignored
    except UnicodeDecodeError:
        return InvalidPayload("it is not in UTF-8")
    except RecursionError:
        return InvalidPayload("it is nested too deeply")
    except ValueError as error:
        return InvalidPayload(f"it is not JSON: {error}")
    if not isinstance(payload, dict):
        return InvalidPayload(f"it must be a JSON object, not {type(payload).__name__}")
    return payload or InvalidPayload("it is an empty object; to clear a constraint, send an empty message")


def with_expiry(payload: dict[str, Any], seconds: float, now: float) -> dict[str, Any]:
    """Return a control payload that ends when its MQTT message expires.

    The result is a copy with `expires_at`, or the payload itself if it ends earlier, is empty, or has an invalid
    `expires_at`. Other faults of the payload are not changed, so that the refusal reports them.

    Args:
        payload: The decoded message.
        seconds: Message Expiry Interval as received. Brokers subtract the time for which they held the message.
        now: Unix seconds at which the message was received.
    """
    given, end = payload.get("expires_at"), now + seconds
    is_number = isinstance(given, (int, float)) and not isinstance(given, bool)
    if payload and (given is None or (is_number and end < given <= MAX_TIME)):
        return {**payload, "expires_at": end}
    return payload
