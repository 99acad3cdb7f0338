"""Encoding of `logging` records as OTLP log records, with the names and severities of the handler of the SDK."""

import logging
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

from opentelemetry.proto.common.v1.common_pb2 import AnyValue, InstrumentationScope, KeyValue
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord, ResourceLogs, ScopeLogs
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.trace import get_current_span

from cascade.connectors.otel.encode import SCOPE, VERSION
from cascade.connectors.otel.protobuf import field, key_value
from cascade.runtime.log_records import OF_TASK, extra_of, message_of
from cascade.runtime.task_context import TaskContext
from cascade.telemetry import attributes as a
from cascade.telemetry.limits import MAX_NAME_BYTES, MAX_STACK_BYTES, MAX_VALUE_BYTES, truncate
from cascade.telemetry.redact import MASK, is_masked
from cascade.telemetry.sanitize import error_message, masked, masked_name, sanitize, stack_text

_RESOURCE_LOGS, _SCOPE_LOGS = 1, 2


def encode_request(resource: bytes, items: Iterable[bytes]) -> bytes:
    """Return an encoded `ExportLogsServiceRequest` that groups the items by scope.

    An item is an encoded `ScopeLogs` that starts with its scope, of less than 128 bytes. `resource` is an encoded
    `ResourceLogs` without records.
    """
    scopes: defaultdict[bytes, list[bytes]] = defaultdict(list)
    for item in items:
        end = 2 + item[1]
        scopes[item[:end]].append(item[end:])
    listed = (field(_SCOPE_LOGS, scope + b"".join(records)) for scope, records in scopes.items())
    return field(_RESOURCE_LOGS, resource + b"".join(listed))


MAX_BODY_BYTES = MAX_STACK_BYTES
"""Bytes of the text of a record."""
MAX_EXTRAS = 64
"""Extra attributes of a record: half of the default limit of the SDK."""
MAX_SCOPE_BYTES = 100
"""Bytes of the name and version of a logger. The encoded scope must have less than 128 bytes."""
_MAX_VERSION = 40

_RESERVED = (*{a.CODE_FILE_PATH, a.CODE_LINE_NUMBER, a.CODE_STACKTRACE, a.CODE_FUNCTION_NAME}, "cascade.", "exception.")
_MAX_TIME = 2**63
_FATAL4 = 24
_SUBLEVELS = 3  # OTLP has three levels between two levels of Python


def encode_record(record: logging.LogRecord, task: TaskContext) -> bytes:
    """Encode a record of the running task as a `ScopeLogs` with one record.

    The span of the record is the current span, which may be a span of the user. Secrets in texts are masked, then the
    texts are cut.

    Raises:
        Exception: A field of the record has an unexpected type.
    """
    now = time.time_ns()
    given = {name: value for name, value in extra_of(record).items() if not _is_of_task(name, value, task)}
    extra, dropped = _extra_attributes(given)
    varying = LogRecord(
        time_unix_nano=_nanoseconds(record.created, now),
        observed_time_unix_nano=now,
        severity_text="WARN" if record.levelname == "WARNING" else truncate(record.levelname, MAX_NAME_BYTES),
        body=AnyValue(string_value=masked(message_of(record), MAX_BODY_BYTES)),
        attributes=[*extra, *_exception_attributes(record)],
        dropped_attributes_count=dropped,
        **_span_fields(task),
    )
    parts = (
        varying.SerializeToString(),
        _call_site_fields(severity(record.levelno), record.pathname, record.funcName or "", record.lineno),
        _task_fields(task.run_id, task.task_id, task.name, task.attempt, task.map_index, task.label),
    )
    return _scope(masked_name(record.name)) + field(ScopeLogs.LOG_RECORDS_FIELD_NUMBER, b"".join(parts))


def encode_resource(attributes: Mapping[str, Any], schema_url: str = "") -> bytes:
    """Return an encoded `ResourceLogs` without records."""
    resource = Resource(attributes=_key_values(attributes.items()))
    return ResourceLogs(resource=resource, schema_url=schema_url).SerializeToString()


def severity(level: int) -> int:
    """Return the severity number of OTLP: 5 for DEBUG, 9 for INFO, 13 for WARNING, 17 for ERROR, 21 for CRITICAL."""
    if level < logging.DEBUG:
        return 0
    if level > logging.CRITICAL + _SUBLEVELS:
        return _FATAL4
    return 1 + 4 * (level // 10) + min(level % 10, _SUBLEVELS)


def _span_fields(task: TaskContext) -> dict[str, Any]:
    current = get_current_span().get_span_context()
    if current.is_valid:
        flags = int(current.trace_flags)
        return {"trace_id": current.trace_id.to_bytes(16), "span_id": current.span_id.to_bytes(8), "flags": flags}
    span = task.current_span
    return {"trace_id": bytes.fromhex(span.trace_id), "span_id": bytes.fromhex(span.span_id), "flags": span.flags}


def _extra_attributes(extra: dict[str, Any]) -> tuple[list[KeyValue], int]:
    """Return the values of simple types, and the number of other values."""
    simple = {name: value for name, value in extra.items() if _is_simple(name, value)}
    kept = {masked_name(name): _masked(name, value) for name, value in list(simple.items())[:MAX_EXTRAS]}
    return _key_values(kept.items()), len(extra) - len(kept)


def _is_of_task(name: str, value: Any, task: TaskContext) -> bool:
    """Return whether a `TaskLogger` has added the value, which is an attribute of the task."""
    return name in OF_TASK and type(value) in {int, str} and value == getattr(task, name)


def _is_simple(name: str, value: Any) -> bool:
    return bool(name) and not name.startswith(_RESERVED) and isinstance(value, (str, int, float))


def _masked(name: str, value: Any) -> Any:
    return MASK if is_masked(name, value) else sanitize(value, limit=MAX_VALUE_BYTES)


def _exception_attributes(record: logging.LogRecord) -> list[KeyValue]:
    error = record.exc_info[1] if record.exc_info else None
    found: dict[str, str] = {}
    if error is not None:
        kind = type(error)
        name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
        found[a.EXCEPTION_TYPE] = truncate(name, MAX_NAME_BYTES)
        found[a.EXCEPTION_MESSAGE] = error_message(error, MAX_VALUE_BYTES)
        found[a.EXCEPTION_STACKTRACE] = stack_text(error)
    elif record.exc_text:  # a QueueHandler keeps only this
        found[a.EXCEPTION_STACKTRACE] = masked(record.exc_text, MAX_STACK_BYTES)
    if record.stack_info:
        found[a.CODE_STACKTRACE] = masked(record.stack_info, MAX_STACK_BYTES)
    return _key_values(found.items())


@lru_cache(maxsize=4096)
def _call_site_fields(severity_number: int, path: str, function: str, line: int) -> bytes:
    """Return the encoded fields that all records of a line of code have in common."""
    named = {
        a.CODE_FILE_PATH: truncate(path, MAX_VALUE_BYTES),
        a.CODE_FUNCTION_NAME: truncate(function, MAX_NAME_BYTES),
    }
    more: dict[str, Any] = {"severity_number": severity_number}
    return LogRecord(attributes=_key_values([*named.items(), (a.CODE_LINE_NUMBER, line)]), **more).SerializeToString()


@lru_cache(maxsize=256)
def _task_fields(run_id: str, task_id: str, name: str, attempt: int, map_index: int | None, label: str | None) -> bytes:
    """Return the encoded attributes that all records of an attempt of a task have in common."""
    ids = {a.RUN_ID: run_id, a.TASK_ID: truncate(task_id, MAX_VALUE_BYTES), a.TASK_NAME: masked_name(name)}
    more = {a.TASK_ATTEMPT: attempt or None, a.MAP_INDEX: map_index, a.TASK_LABEL: label}
    present = [(key, value) for key, value in {**ids, **more}.items() if value is not None]
    return LogRecord(attributes=_key_values(present)).SerializeToString()


@lru_cache(maxsize=1024)
def _scope(logger: str) -> bytes:
    """Return the encoded scope of a logger. Loggers of Cascade have the version of Cascade."""
    is_of_cascade = logger.partition(".")[0] == SCOPE
    version = VERSION[:_MAX_VERSION] if is_of_cascade else ""
    name = truncate(logger, MAX_SCOPE_BYTES - len(version))
    return ScopeLogs(scope=InstrumentationScope(name=name, version=version)).SerializeToString()


def _key_values(pairs: Iterable[tuple[str, Any]]) -> list[KeyValue]:
    return [key_value(truncate(key, MAX_NAME_BYTES), value) for key, value in pairs]


def _nanoseconds(seconds: Any, otherwise: int) -> int:
    """Return the time of a record since the Unix epoch; `otherwise` for an invalid time."""
    try:
        found = round(seconds * 1e9)
    except (TypeError, ValueError, OverflowError):
        return otherwise
    return found if 0 < found < _MAX_TIME else otherwise
