"""Messages as dicts and as JSON, and back."""

import json
import math
from collections.abc import Mapping
from dataclasses import MISSING, fields
from datetime import UTC, datetime
from operator import attrgetter
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from cascade.spec.telemetry import Body, ControlEvent, Header, LifecycleEvent, ResourceEvent, TaskStateEvent
from cascade.telemetry.limits import MAX_TIME

VERSION = "1.0"
BODIES: dict[str, type[Any]] = {c.__name__: c for c in (LifecycleEvent, TaskStateEvent, ResourceEvent, ControlEvent)}


def _getter(kind: type[Any]) -> tuple[tuple[str, ...], Any]:
    names = tuple(field.name for field in fields(kind))
    return names, attrgetter(*names)


_HEADER = _getter(Header)
_GETTERS = {kind: _getter(kind) for kind in BODIES.values()}


def encode(header: Header, body: Body) -> dict[str, Any]:
    """A message as one dict: the header's fields at the top, and `body` with its `type`."""
    return encode_header(header) | {"body": encode_body(body)}


def encode_header(header: Header) -> dict[str, Any]:
    """The part of a message that is above its body."""
    names, values = _HEADER
    found = dict(zip(names, values(header), strict=True))
    if not header.tracestate:
        del found["tracestate"]
    return found


def encode_body(body: Body) -> dict[str, Any]:
    names, values = _GETTERS[type(body)]
    return {"type": type(body).__name__, **dict(zip(names, values(body), strict=True))}


def decode(payload: Mapping[str, Any]) -> tuple[Header, Body]:
    """The header and the body of a payload; fields that are not known are ignored.

    Raises:
        ValueError: It is no message of version 1, naming the field and its value.
    """
    if not isinstance(payload, Mapping):
        raise ValueError(f"a message must be an object, got {type(payload).__name__}")
    if str(payload.get("v", "")).partition(".")[0] != VERSION.partition(".")[0]:
        raise ValueError(f"v={payload.get('v')!r}: this reads version {VERSION}")
    body = payload.get("body")
    if not isinstance(body, Mapping):
        raise ValueError(f"body must be an object, got {body!r}")
    kind = BODIES.get(str(body.get("type")))
    if kind is None:
        raise ValueError(f"body.type={body.get('type')!r}: choose from {', '.join(BODIES)}")
    return _made(Header, payload, ""), _made(kind, body, "body.")


def _made(kind: type[Any], data: Mapping[str, Any], where: str) -> Any:
    known = {name: _checked(data[name], hint, where + name) for name, hint in _HINTS[kind].items() if name in data}
    try:
        return kind(**known)
    except TypeError:
        missing = next(f.name for f in fields(kind) if f.name not in known and _is_required(f))
        raise ValueError(f"{where}{missing} is missing") from None


def _is_required(field: Any) -> bool:
    return field.default is MISSING and field.default_factory is MISSING


_HINTS = {kind: get_type_hints(kind) for kind in (Header, *BODIES.values())}


def _checked(value: Any, hint: Any, name: str) -> Any:
    if not _fits(value, hint):
        raise ValueError(f"{name}={value!r}: expected {hint}")
    return value


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value from JSON has the type; a literal's choices may grow within 1.x, so any string will do there."""
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
    """Nanoseconds since the Unix epoch as ISO 8601 UTC with microseconds: `2026-11-23T22:49:00.123456Z`."""
    global _second  # noqa: PLW0603 - messages come in bursts: the part up to the second is made once a second
    whole, rest = divmod(ns, 1_000_000_000)
    known, prefix = _second
    if known != whole:
        prefix = datetime.fromtimestamp(whole, UTC).strftime("%Y-%m-%dT%H:%M:%S")
        _second = whole, prefix
    return f"{prefix}.{rest // 1000:06d}Z"


def parse_timestamp(text: str) -> int:
    """A timestamp of the wire as nanoseconds since the Unix epoch. Raises ValueError for anything else."""
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError(f"{text!r} has no time zone")
    whole = math.floor(moment.timestamp())
    return whole * 1_000_000_000 + moment.microsecond * 1000


# Made once: `json.dumps` makes one for each call that does not want all its defaults.
_encode_json = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode


def dumps(payload: Mapping[str, Any]) -> bytes:
    """A payload as strict JSON in UTF-8."""
    return _encode_json(payload).encode()


def loads(data: bytes | str) -> dict[str, Any]:
    """JSON as a payload.

    Raises:
        ValueError: It is no JSON object, or not in UTF-8, or nested too deeply.
    """
    try:
        payload = json.loads(data)
    except RecursionError:
        raise ValueError("the message is nested too deeply") from None
    if not isinstance(payload, dict):
        raise ValueError(f"a message must be an object, got {type(payload).__name__}")
    return payload


MAX_RECEIVED_BYTES = 16 * 1024
"""What comes in is a constraint of some hundred bytes."""


class InvalidPayload(dict[str, Any]):
    """What a connector hands to a subscriber's callback in the place of a message that is no JSON object; always empty."""

    def __init__(self, reason: str) -> None:
        super().__init__()
        self.reason = reason


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")


# Made once, as for `dumps`.
_decode_json = json.JSONDecoder(parse_constant=_no_number).decode


def decode_incoming(data: bytes) -> dict[str, Any]:
    """Decode an incoming message for a subscriber's callback; never raises.

    An empty message is an empty dict: it clears the constraint of its topic. A message that is no JSON object in UTF-8,
    with or without a byte order mark, is `InvalidPayload`.
    """
    if not data:
        return {}
    if len(data) > MAX_RECEIVED_BYTES:
        return InvalidPayload(f"it has {len(data):,} bytes, more than {MAX_RECEIVED_BYTES:,}")
    try:
        payload = _decode_json(data.decode("utf-8-sig"))  # RFC 8259, 8.1: a BOM may be ignored
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
    """Return a control payload that ends when the MQTT message that brought it expires.

    The result is a copy with `expires_at` set to `now + seconds`, or the payload itself if it ends earlier, is empty
    (it clears a constraint), or is invalid. Other faults of the payload stay as they are, so that the refusal names them.

    Args:
        payload: The decoded message.
        seconds: Its Message Expiry Interval as received: brokers subtract the time for which they held the message.
        now: Unix seconds at which the message was received.
    """
    given = payload.get("expires_at")
    ends = now + seconds
    if not payload or (given is not None and not _is_later(given, ends)):
        return payload
    return {**payload, "expires_at": ends}


def _is_later(given: Any, ends: float) -> bool:
    """True if `given` is a valid time after `ends`."""
    return isinstance(given, (int, float)) and not isinstance(given, bool) and ends < given <= MAX_TIME
