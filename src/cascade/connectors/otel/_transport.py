"""The protocol of transports, which send encoded OTLP requests to a peer."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Literal, Protocol

from cascade.connectors.otel._environment import report
from cascade.connectors.otel._options import ExportOptions
from cascade.telemetry.safe import error_message

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


class Transport(Protocol):
    """Sends encoded OTLP requests to a peer. Called from the exporting threads; any number may send at once."""

    def send(self, body: bytes, timeout: float) -> Reply:
        """Send one request and wait for its answer, both within `timeout` seconds. Never raises."""
        ...

    def close(self) -> None:
        """Close the connections. Never raises."""
        ...


class Unusable:
    """Takes the place of a transport that could not be opened: each reply is a refusal with the reason."""

    def __init__(self, error: Exception) -> None:
        self._reply = Reply("refused", f"cannot export: {error_message(error, 200)}", dead=True)

    def send(self, body: bytes, timeout: float) -> Reply:  # noqa: ARG002 - the protocol's
        return self._reply

    def close(self) -> None:
        pass


def prepare(options: ExportOptions) -> None:
    """Import the modules of a transport, so that no sending thread imports them first; report the options' problems.

    A child that is forked while another thread imports a module can never import it.
    """
    report(*options.problems)
    if options.protocol == "grpc":
        with _quiet_grpc():
            import_module("cascade.connectors.otel._grpc")
    else:
        import_module("cascade.connectors.otel._http")


def opened(open_transport: Callable[[], Transport]) -> Transport:
    """The transport that `open_transport` returns, or an `Unusable` with its error, so that no exporting thread ends."""
    try:
        return open_transport()
    except Exception as error:  # noqa: BLE001 - whatever opens it
        return Unusable(error)


def takes_no_such_signal(reply_reason: str) -> bool:
    """Whether a peer's answer means that it supports no such signal, as Jaeger's does for metrics and logs."""
    return reply_reason.partition(" ")[0].rstrip(":") in _NO_SUCH_SIGNAL


def open_transport(options: ExportOptions) -> Transport:
    """The transport for these options; gRPC, a slow import, is loaded only when it is the protocol.

    Raises:
        OSError: When a certificate or key cannot be loaded.
    """
    if options.protocol == "grpc":
        with _quiet_grpc():
            from cascade.connectors.otel._grpc import GrpcTransport

        return GrpcTransport(options)
    from cascade.connectors.otel._http import HttpTransport

    return HttpTransport(options)


@contextmanager
def _quiet_grpc() -> Iterator[None]:
    """Import gRPC with a log level, which its C core reads at import; else it writes errors to stderr that replies have."""
    name = "GRPC_VERBOSITY"
    is_ours = name not in os.environ
    os.environ.setdefault(name, "ERROR")
    try:
        yield
    finally:
        if is_ours:
            os.environ.pop(name, None)
