"""OTLP over gRPC."""

import os
import re
import threading
import time
import weakref
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

import grpc

from cascade._forks import no_fork
from cascade._internal_errors import raise_in_tests
from cascade.connectors.otel import reply as replies
from cascade.connectors.otel.endpoint import server_of
from cascade.connectors.otel.network import grpc_proxy_of, tls_context
from cascade.connectors.otel.options import ExportOptions, Signal
from cascade.connectors.otel.reply import Reply

_METHODS: dict[Signal, str] = {
    "traces": "/opentelemetry.proto.collector.trace.v1.TraceService/Export",
    "metrics": "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export",
    "logs": "/opentelemetry.proto.collector.logs.v1.LogsService/Export",
}
_RETRYABLE = {
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.ABORTED,
    grpc.StatusCode.OUT_OF_RANGE,
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DATA_LOSS,
}
_IDLE: int = grpc.ChannelConnectivity.IDLE.value[0]  # the connection has ended, with or without a response
_READY: int = grpc.ChannelConnectivity.READY.value[0]
_UNREACHABLE = ("failed to connect", "errors resolving", "DNS resolution failed")
_BROKEN = ("Socket closed", "GOAWAY", "Connection reset", "Broken pipe", "recvmsg", "sendmsg")
_STATE_DELAY = 0.1  # seconds within which a channel updates its state after its connection has ended
_LATE_FRACTION = 0.9  # of the timeout; a DEADLINE_EXCEEDED before this time is a response of the server
_OPTIONS = (
    ("grpc.primary_user_agent", "Cascade-OTLP-Exporter-Python"),
    ("grpc.max_send_message_length", -1),
    # The queue retries.
    ("grpc.enable_retries", 0),
    # Otherwise a new channel shares the failed connection of an earlier one, and its backoff.
    ("grpc.use_local_subchannel_pool", 1),
    # Detects a lost connection during a call. Between calls there are no pings, because servers close connections for them.
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
)
_REASONS = {
    "Connection refused": "connection refused",
    "CERTIFICATE_VERIFY_FAILED": "certificate verify failed",
    "Domain name not found": "host name cannot be resolved",
    "Tls handshake failed": "TLS failed: is the server's port a plain one?",
}
_HTTP1_RESPONSE = re.compile(r"failed to connect.*http1\.x server.*?\b(\d{3})\b")
_RETRYABLE_HTTP = {"502", "503", "504"}
_DETAILS = "grpc-status-details-bin"
_AFTER_FORK = " (gRPC was in use at a fork, which it may not survive: use the protocol http/protobuf)"


class ForkState:
    """Records whether channels were open at a fork of this process or of its parent."""

    def __init__(self) -> None:
        self.transports: weakref.WeakSet[GrpcTransport] = weakref.WeakSet()
        self.was_forked = False

    def record_fork(self) -> None:
        self.was_forked = self.was_forked or bool(self.transports)


fork_state = ForkState()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_parent=fork_state.record_fork, after_in_child=fork_state.record_fork)


class GrpcTransport:
    """Calls the Export method of a collector over one channel."""

    def __init__(self, options: ExportOptions) -> None:
        self._options = options
        self._credentials = None if options.insecure else _credentials(options)
        self._metadata = tuple(_metadatum(name, value) for name, value in options.headers.items())
        self._lock = threading.Lock()
        self._channel: grpc.Channel | None = None

    def send(self, body: bytes, timeout: float) -> Reply:
        try:
            with no_fork:
                return self._call(self._open_channel(), body, timeout)
        except Exception as error:  # noqa: BLE001 - the transport's contract: a failure is a reply
            raise_in_tests(error)
            return Reply("refused", replies.shortened(f"{type(error).__name__}: {error}"))

    def close(self) -> None:
        if self._channel is not None:
            with no_fork:
                self._drop(self._channel)

    def _call(self, channel: grpc.Channel, body: bytes, timeout: float) -> Reply:
        method = channel.unary_unary(_METHODS[self._options.signal], None, None)
        began = time.monotonic()
        try:
            response = method(body, timeout=timeout, metadata=self._metadata)
        except grpc.RpcError as error:
            call = cast("grpc.Call", error)
            is_late = time.monotonic() - began > timeout * _LATE_FRACTION
            reply = _failure(call, timeout, is_unanswered=_is_unanswered(channel, call, is_late=is_late))
            if reply.unanswered or _http1_status(call):
                self._drop(channel)
            return reply
        return replies.accepted(self._options.signal, cast("bytes", response))

    def _open_channel(self) -> grpc.Channel:
        with self._lock:
            if self._channel is None:
                self._channel = self._new_channel()
                fork_state.transports.add(self)
            return self._channel

    def _drop(self, channel: grpc.Channel) -> None:
        """Close a failed channel: it would return the same error for a while instead of connecting again."""
        with self._lock:
            if self._channel is channel:
                self._channel = None
        channel.close()

    def _new_channel(self) -> grpc.Channel:
        target = _target(self._options.endpoint)
        options = (*_OPTIONS, _proxy_option(target))
        compression = grpc.Compression.Gzip if self._options.compression == "gzip" else grpc.Compression.NoCompression
        if self._credentials is None:
            return grpc.insecure_channel(target, options, compression)
        return grpc.secure_channel(target, self._credentials, options, compression)


def _target(endpoint: str) -> str:
    url = urlsplit(endpoint)
    if url.scheme not in {"http", "https"}:
        return endpoint
    return url.netloc if url.port else f"{url.netloc}:{443 if url.scheme == 'https' else 80}"


def _proxy_option(target: str) -> tuple[str, int | bytes]:
    """Return the option for the proxy. The parser of gRPC accepts neither quotes nor an address without a scheme.

    Unix sockets have no proxy.
    """
    is_socket = target.startswith(("unix:", "unix-abstract:"))
    proxy = "" if is_socket else grpc_proxy_of(*server_of(target))
    return ("grpc.http_proxy", os.fsencode(proxy)) if proxy else ("grpc.enable_http_proxy", 0)


def _credentials(options: ExportOptions) -> grpc.ChannelCredentials:
    files = (options.certificate, options.client_key, options.client_certificate)
    if any(files):
        tls_context(options)  # raises for a file that would make the core of gRPC write to stderr or abort the process
    roots, key, chain = (Path(name).read_bytes() if name else None for name in files)
    return grpc.ssl_channel_credentials(roots, key, chain)


def _metadatum(name: str, value: str) -> tuple[str, str | bytes]:
    return (name, value.encode()) if name.endswith("-bin") else (name, value)


def _is_unanswered(channel: grpc.Channel, call: grpc.Call, *, is_late: bool) -> bool:
    """Return whether the client library has created the status of a call, because the server sent none.

    The code and the metadata do not show it. After UNAVAILABLE from a server or a proxy, the channel is still connected. A
    response in HTTP/1.1 has a status of the proxy, although the connection fails.
    """
    match call.code():
        case grpc.StatusCode.DEADLINE_EXCEEDED:
            return is_late
        case grpc.StatusCode.UNAVAILABLE:
            return _http1_status(call) not in _RETRYABLE_HTTP and not _has_responded(channel, call.details() or "")
        case _:
            return False


def _http1_status(call: grpc.Call) -> str:
    """Return the status of a response in HTTP/1.1; empty without one."""
    found = _HTTP1_RESPONSE.match(call.details() or "")
    return found[1] if found else ""


def _has_responded(channel: grpc.Channel, details: str) -> bool:
    state, is_broken = _state(channel), any(sign in details for sign in _BROKEN)
    if state is None:
        return not is_broken and not any(sign in details for sign in _UNREACHABLE)
    # The call may end before the channel has updated its state.
    end = time.monotonic() + _STATE_DELAY
    while state == _READY and is_broken and time.monotonic() < end:
        time.sleep(_STATE_DELAY / 20)
        state = _state(channel)
    return state == _READY or (state == _IDLE and not is_broken)


def _state(channel: Any) -> int | None:
    """Return the connectivity of a channel; None if the version of grpcio, or an interceptor, does not provide it.

    The public method `subscribe` starts a thread, which fails when the channel is closed.
    """
    inner = channel
    while (below := getattr(inner, "_channel", None)) is not None:
        inner = below
    check = getattr(inner, "check_connectivity_state", None)
    return int(check(False)) if check is not None else None


def _failure(call: grpc.Call, timeout: float, *, is_unanswered: bool) -> Reply:
    code = call.code()
    packed = [cast("bytes", value) for name, value in call.trailing_metadata() or () if name == _DETAILS]
    retry_after = replies.retry_delay(packed[0]) if packed else None
    throttled = code is grpc.StatusCode.RESOURCE_EXHAUSTED and retry_after is not None
    details = call.details() or ""
    return Reply(
        "retry" if code in _RETRYABLE or throttled else "refused",
        _reason(call, timeout, is_unanswered=is_unanswered),
        retry_after,
        unanswered=is_unanswered,
        too_large=code is grpc.StatusCode.RESOURCE_EXHAUSTED and "larger than max" in details,
    )


def _reason(call: grpc.Call, timeout: float, *, is_unanswered: bool) -> str:
    code, details = call.code(), call.details() or ""
    if status := _http1_status(call):
        return f"the answer {status} is in HTTP/1.1: gRPC needs a server, or a proxy, with HTTP/2"
    if code is grpc.StatusCode.DEADLINE_EXCEEDED and is_unanswered:
        return f"no answer within {timeout:.3g} s{_AFTER_FORK if fork_state.was_forked else ''}"
    for sign, reason in _REASONS.items() if is_unanswered else ():
        if sign in details:
            return reason
    # gRPC lists all attempts to connect; the last error is the cause.
    return replies.shortened(f"{code.name}: {details.rpartition('last error: ')[2]}")
