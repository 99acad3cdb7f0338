"""OTLP response messages, as far as an exporter reads them."""

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
from cascade.telemetry.safe import masked

MAX_RETRY_AFTER = 300.0  # seconds; a longer `Retry-After` counts as five minutes

_NO_SUCH_SIGNAL = frozenset({"404", "405", "501", "UNIMPLEMENTED"})  # a reply's reason begins with its status


@dataclass(frozen=True, slots=True)
class Reply:
    """The outcome of one request.

    The peer has dropped `rejected` items of an `accepted` request (a partial success). `retry` is an outcome that the OTLP
    specification calls retryable, `refused` one after which it forbids to send the request again. `dead` means that no answer came: the peer
    refused the connection, was not reached, or was silent. `too_large` means that fewer items at a time may pass.
    """

    outcome: Literal["accepted", "retry", "refused"]
    reason: str = ""
    retry_after: float | None = None
    rejected: int = 0
    dead: bool = False
    too_large: bool = False


_RESPONSES: dict[Signal, tuple[Callable[[bytes], Any], str]] = {
    "traces": (ExportTraceServiceResponse.FromString, "rejected_spans"),
    "metrics": (ExportMetricsServiceResponse.FromString, "rejected_data_points"),
    "logs": (ExportLogsServiceResponse.FromString, "rejected_log_records"),
}
_MAX_REASON = 200
_MAX_KIND = 60
_PROTOBUF = "application/x-protobuf"
_BINARY = {"", _PROTOBUF, "application/protobuf", "application/vnd.google.protobuf", "application/octet-stream"}


def accepted(signal: Signal, content: bytes, content_type: str = _PROTOBUF) -> Reply:
    """The reply for a success status: refused unless the body is a response of OTLP.

    A login page or a proxy's page may come with the status 200; the items are lost then. An empty body is a success
    whatever its type: it is the encoding of a response without a partial success.
    """
    if not content:
        return Reply("accepted")
    kind = content_type.partition(";")[0].strip().lower()
    try:
        rejected, message = _reader(kind)(signal, content)
    except (DecodeError, ValueError, TypeError, AttributeError, OverflowError, RecursionError):
        found = "" if kind in _BINARY else f" but {shortened(kind, _MAX_KIND)}"
        return Reply("refused", f"the answer is not OTLP{found}")
    return Reply("accepted", shortened(message), rejected=max(0, rejected))


def detail(content: bytes) -> str:
    """The message of a `google.rpc.Status`, the body of an OTLP error; empty if it is none."""
    try:
        return shortened(Status.FromString(content).message)
    except DecodeError:
        return ""


def retry_delay(content: bytes) -> float | None:
    """The seconds in the `RetryInfo` of a `google.rpc.Status`; None without one."""
    try:
        details = Status.FromString(content).details
        for packed in details:
            info = RetryInfo()
            if packed.Unpack(info):
                seconds = float(info.retry_delay.seconds + info.retry_delay.nanos / 1e9)
                return min(max(0.0, seconds), MAX_RETRY_AFTER)
    except DecodeError:
        return None
    return None


def is_unsupported_signal(reply_reason: str) -> bool:
    """Whether a peer's answer means that it supports no such signal, as Jaeger's does for metrics and logs."""
    return reply_reason.partition(" ")[0].rstrip(":") in _NO_SUCH_SIGNAL


def shortened(text: str, limit: int = _MAX_REASON) -> str:
    """Text of a peer on one line, with secrets masked, and cut to `limit` characters."""
    line = " ".join(masked(text, 4 * limit).split())
    return line if len(line) <= limit else f"{line[:limit]}…"


def _reader(kind: str) -> Callable[[Signal, bytes], tuple[int, str]]:
    if kind in _BINARY:
        return _from_protobuf
    if kind == "application/json":
        return _from_json
    raise ValueError(f"{kind} is no content type of OTLP")


def _from_protobuf(signal: Signal, content: bytes) -> tuple[int, str]:
    parse, counter = _RESPONSES[signal]
    partial = parse(content).partial_success
    return int(getattr(partial, counter)), str(partial.error_message)


def _from_json(signal: Signal, content: bytes) -> tuple[int, str]:
    _, counter = _RESPONSES[signal]
    first, *rest = counter.split("_")
    response = json.loads(content)
    if response and "partialSuccess" not in response:
        raise ValueError("some other JSON object")
    partial = response.get("partialSuccess") or {}
    # In the JSON of protobuf, null is the default value.
    rejected = partial.get(first + "".join(word.title() for word in rest)) or 0
    return int(rejected), str(partial.get("errorMessage") or "")
