"""Reply of a transport, and the OTLP responses from which it is made."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from google.protobuf.message import DecodeError
from google.rpc.error_details_pb2 import RetryInfo  # type: ignore[import-untyped]
from google.rpc.status_pb2 import Status  # type: ignore[import-untyped]
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceResponse
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceResponse
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from cascade.connectors.otel.options import Signal
from cascade.telemetry.sanitize import masked

MAX_RETRY_AFTER = 300.0  # seconds; a longer delay is reduced

_UNSUPPORTED_SIGNAL = frozenset({"404", "405", "501", "UNIMPLEMENTED"})  # the reason of a reply starts with its status


@dataclass(frozen=True, slots=True)
class Reply:
    """Outcome of one request.

    Args:
        outcome: After "retry" the same request may be sent again. The OTLP specification forbids this after "refused".
        reason: The reason of a refusal, retry or partial success.
        retry_after: Seconds that the collector demands until the next request.
        rejected: Items of an accepted request that the collector has dropped (partial success).
        unanswered: The connection failed, or no response arrived in time.
        too_large: A request with fewer items may be accepted.
    """

    outcome: Literal["accepted", "retry", "refused"]
    reason: str = ""
    retry_after: float | None = None
    rejected: int = 0
    unanswered: bool = False
    too_large: bool = False


_RESPONSES: dict[Signal, tuple[Callable[[bytes], Any], str]] = {
    "traces": (ExportTraceServiceResponse.FromString, "rejected_spans"),
    "metrics": (ExportMetricsServiceResponse.FromString, "rejected_data_points"),
    "logs": (ExportLogsServiceResponse.FromString, "rejected_log_records"),
}
_MAX_REASON = 200
_MAX_CONTENT_TYPE = 60
_PROTOBUF = "application/x-protobuf"
_BINARY = {"", _PROTOBUF, "application/protobuf", "application/vnd.google.protobuf", "application/octet-stream"}


def accepted(signal: Signal, content: bytes, content_type: str = _PROTOBUF) -> Reply:
    """Return the reply for a success status. It is a refusal if the body is not an OTLP response.

    A login page, or the page of a proxy, may have the status 200. An empty body is the encoding of a complete success.
    """
    if not content:
        return Reply("accepted")
    kind = content_type.partition(";")[0].strip().lower()
    try:
        rejected, message = _parser_of(kind)(signal, content)
    except (DecodeError, ValueError, TypeError, AttributeError, OverflowError, RecursionError):
        found = "" if kind in _BINARY else f" but {shortened(kind, _MAX_CONTENT_TYPE)}"
        return Reply("refused", f"the answer is not OTLP{found}")
    return Reply("accepted", shortened(message), rejected=max(0, rejected))


def detail(content: bytes) -> str:
    """Return the message of a `google.rpc.Status`, which is the body of an OTLP error. It is empty for another body."""
    try:
        return shortened(Status.FromString(content).message)
    except DecodeError:
        return ""


def retry_delay(content: bytes) -> float | None:
    """Return the seconds in the `RetryInfo` of a `google.rpc.Status`; None without one."""
    try:
        for packed in Status.FromString(content).details:
            info = RetryInfo()
            if packed.Unpack(info):
                seconds = float(info.retry_delay.seconds + info.retry_delay.nanos / 1e9)
                return min(max(0.0, seconds), MAX_RETRY_AFTER)
    except DecodeError:
        return None
    return None


def is_unsupported_signal(reply_reason: str) -> bool:
    """Return whether the collector does not support the signal, such as Jaeger metrics and logs."""
    return reply_reason.partition(" ")[0].rstrip(":") in _UNSUPPORTED_SIGNAL


def shortened(text: str, limit: int = _MAX_REASON) -> str:
    """Return the text of a server as one line of at most `limit` characters, with secrets masked."""
    line = " ".join(masked(text, 4 * limit).split())
    return line if len(line) <= limit else f"{line[:limit]}…"


def _parser_of(kind: str) -> Callable[[Signal, bytes], tuple[int, str]]:
    if kind in _BINARY:
        return _from_protobuf
    if kind == "application/json":
        return _from_json
    raise ValueError(f"{kind} is not a content type of OTLP")


def _from_protobuf(signal: Signal, content: bytes) -> tuple[int, str]:
    parse, counter = _RESPONSES[signal]
    partial = parse(content).partial_success
    return int(getattr(partial, counter)), str(partial.error_message)


def _from_json(signal: Signal, content: bytes) -> tuple[int, str]:
    _, counter = _RESPONSES[signal]
    first, *rest = counter.split("_")
    response = json.loads(content)
    if response and "partialSuccess" not in response:
        raise ValueError("the JSON object is not an OTLP response")
    partial = response.get("partialSuccess") or {}
    # In the JSON encoding of protobuf, null is the default value.
    rejected = partial.get(first + "".join(word.title() for word in rest)) or 0
    return int(rejected), str(partial.get("errorMessage") or "")
