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
from cascade.connectors.otel import answers
from cascade.connectors.otel.answers import Reply
from cascade.connectors.otel.endpoint import server_of
from cascade.connectors.otel.options import ExportOptions, Signal
from cascade.connectors.otel.proxy import grpc_proxy_of
from cascade.connectors.otel.tls import tls_context

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
_IDLE: int = grpc.ChannelConnectivity.IDLE.value[0]  # the connection is closed, after an answer or without one
_READY: int = grpc.ChannelConnectivity.READY.value[0]
_NOT_REACHED = ("failed to connect", "errors resolving", "DNS resolution failed")
_CUT = ("Socket closed", "GOAWAY", "Connection reset", "Broken pipe", "recvmsg", "sendmsg")
_NOTICED = 0.1  # seconds after which a channel has noticed the end of its connection
_ALMOST = 0.9  # of the timeout; a deadline that a server reports comes earlier than ours
_OPTIONS = (
    ("grpc.primary_user_agent", "Cascade-OTLP-Exporter-Python"),
    ("grpc.max_send_message_length", -1),
    # Retrying, and when, is the queue's business.
    ("grpc.enable_retries", 0),
    # Channels share connections, and how long a failed one is left alone: ours must dial afresh when asked to.
    ("grpc.use_local_subchannel_pool", 1),
    # Finds a connection that a network swallowed while a call is on it; never pings between calls, which servers punish.
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
)
_REASONS = {
    "Connection refused": "connection refused",
    "CERTIFICATE_VERIFY_FAILED": "certificate verify failed",
    "Domain name not found": "host name cannot be resolved",
    "Tls handshake failed": "TLS failed: is the server's port a plain one?",
}
_PAGE = re.compile(r"failed to connect.*http1\.x server.*?\b(\d{3})\b")  # an answer in HTTP/1.1
_LATER_PAGES = {"502", "503", "504"}
_DETAILS = "grpc-status-details-bin"


_AFTER_FORK = " (gRPC was in use at a fork, which it may not survive: use the protocol http/protobuf)"


class _Use:
    """Whether channels are open, and whether that was so at a fork of this process or of its parent."""

    def __init__(self) -> None:
        self.channels: weakref.WeakSet[GrpcTransport] = weakref.WeakSet()
        self.was_forked = False

    def forked(self) -> None:
        self.was_forked = self.was_forked or bool(self.channels)


_use = _Use()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_parent=_use.forked, after_in_child=_use.forked)


class GrpcTransport:
    """Calls a collector's Export method over one channel."""

    def __init__(self, options: ExportOptions) -> None:
        self._options = options
        self._credentials = None if options.insecure else _credentials(options)
        self._metadata = tuple(_metadatum(name, value) for name, value in options.headers.items())
        self._lock = threading.Lock()
        self._channel: grpc.Channel | None = None

    def send(self, body: bytes, timeout: float) -> Reply:
        try:
            with no_fork:
                return self._call(self._connected(), body, timeout)
        except Exception as error:  # noqa: BLE001 - the transport's contract: a failure is a reply
            return Reply("refused", answers.shortened(f"{type(error).__name__}: {error}"))

    def close(self) -> None:
        if self._channel is not None:
            with no_fork:
                self._disconnect(self._channel)

    def _call(self, channel: grpc.Channel, body: bytes, timeout: float) -> Reply:
        method = channel.unary_unary(_METHODS[self._options.signal], None, None)
        began = time.monotonic()
        try:
            answer = method(body, timeout=timeout, metadata=self._metadata)
        except grpc.RpcError as error:
            call = cast("grpc.Call", error)
            is_late = time.monotonic() - began > timeout * _ALMOST
            reply = _failure(call, timeout, is_dead=_is_unanswered(channel, call, is_late=is_late))
            if reply.dead or _page(call):
                self._disconnect(channel)
            return reply
        return answers.accepted(self._options.signal, cast("bytes", answer))

    def _connected(self) -> grpc.Channel:
        with self._lock:
            if self._channel is None:
                self._channel = self._dial()
                _use.channels.add(self)
            return self._channel

    def _disconnect(self, channel: grpc.Channel) -> None:
        """Drop a channel without a connection: it would repeat its error for a while instead of connecting again."""
        with self._lock:
            if self._channel is channel:
                self._channel = None
        channel.close()

    def _dial(self) -> grpc.Channel:
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
    """The option that sets the proxy: gRPC's own parser accepts neither quotes nor an address without a scheme.

    A socket of this machine has no proxy.
    """
    is_socket = target.startswith(("unix:", "unix-abstract:"))
    proxy = "" if is_socket else grpc_proxy_of(*server_of(target))
    return ("grpc.http_proxy", os.fsencode(proxy)) if proxy else ("grpc.enable_http_proxy", 0)


def _credentials(options: ExportOptions) -> grpc.ChannelCredentials:
    files = (options.certificate, options.client_key, options.client_certificate)
    if any(files):
        tls_context(options)  # raises for a file with which gRPC's core would write to stderr, or abort the process
    roots, key, chain = (Path(name).read_bytes() if name else None for name in files)
    return grpc.ssl_channel_credentials(roots, key, chain)


def _metadatum(name: str, value: str) -> tuple[str, str | bytes]:
    return (name, value.encode()) if name.endswith("-bin") else (name, value)


def _is_unanswered(channel: grpc.Channel, call: grpc.Call, *, is_late: bool) -> bool:
    """Whether the client library made the status of a call itself, because the server sent none.

    The two codes look the same whatever made them, and the metadata of both are empty. A server's UNAVAILABLE, and a
    proxy's page, come over an established connection; a failed connection leaves the channel without one. So does a
    page in HTTP/1.1, whose status shows that the proxy is alive.
    """
    match call.code():
        case grpc.StatusCode.DEADLINE_EXCEEDED:
            return is_late
        case grpc.StatusCode.UNAVAILABLE:
            return _page(call) not in _LATER_PAGES and not _has_answered(channel, call.details() or "")
        case _:
            return False


def _page(call: grpc.Call) -> str:
    """The status of an answer in HTTP/1.1; empty without one."""
    found = _PAGE.match(call.details() or "")
    return found[1] if found else ""


def _has_answered(channel: grpc.Channel, details: str) -> bool:
    state, is_cut = _state(channel), any(sign in details for sign in _CUT)
    if state is None:
        return not is_cut and not any(sign in details for sign in _NOT_REACHED)
    # The call may end before the channel has noticed that its connection is gone.
    end = time.monotonic() + _NOTICED
    while state == _READY and is_cut and time.monotonic() < end:
        time.sleep(_NOTICED / 20)
        state = _state(channel)
    return state == _READY or (state == _IDLE and not is_cut)


def _state(channel: Any) -> int | None:
    """The connectivity of a channel; None if this version of grpcio, or an interceptor around the channel, hides it.

    The public `subscribe` starts a thread, which fails when the channel is closed. This is the call below it.
    """
    inner = channel
    while (below := getattr(inner, "_channel", None)) is not None:
        inner = below
    check = getattr(inner, "check_connectivity_state", None)
    return int(check(False)) if check is not None else None


def _failure(call: grpc.Call, timeout: float, *, is_dead: bool) -> Reply:
    code = call.code()
    packed = [cast("bytes", value) for name, value in call.trailing_metadata() or () if name == _DETAILS]
    retry_after = answers.retry_delay(packed[0]) if packed else None
    throttled = code is grpc.StatusCode.RESOURCE_EXHAUSTED and retry_after is not None
    details = call.details() or ""
    return Reply(
        "retry" if code in _RETRYABLE or throttled else "refused",
        _explained(call, timeout, is_dead=is_dead),
        retry_after,
        dead=is_dead,
        too_large=code is grpc.StatusCode.RESOURCE_EXHAUSTED and "larger than max" in details,
    )


def _explained(call: grpc.Call, timeout: float, *, is_dead: bool) -> str:
    code, details = call.code(), call.details() or ""
    if page := _page(call):
        return f"the answer {page} is in HTTP/1.1: gRPC needs a server, or a proxy, with HTTP/2"
    if code is grpc.StatusCode.DEADLINE_EXCEEDED and is_dead:
        return f"no answer within {timeout:.3g} s{_AFTER_FORK if _use.was_forked else ''}"
    for sign, reason in _REASONS.items() if is_dead else ():
        if sign in details:
            return reason
    # gRPC lists each attempt to connect; the last error has the cause.
    return answers.shortened(f"{code.name}: {details.rpartition('last error: ')[2]}")
