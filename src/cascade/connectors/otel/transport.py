"""The protocol of transports, which send encoded OTLP requests to a collector, and the factory that opens them."""

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Protocol

from opentelemetry import context
from opentelemetry.context import _SUPPRESS_HTTP_INSTRUMENTATION_KEY, _SUPPRESS_INSTRUMENTATION_KEY

from cascade.connectors.otel.answers import Reply
from cascade.connectors.otel.environment import warn_once
from cascade.connectors.otel.options import ExportOptions
from cascade.telemetry.safe import error_message

_EXPORTING = context.create_key("cascade-exporting")


class Transport(Protocol):
    """Sends encoded OTLP requests to a peer. Called from the exporting threads; any number may send at once."""

    def send(self, body: bytes, timeout: float) -> Reply:
        """Send one request and wait for its answer, both within `timeout` seconds. Never raises."""
        ...

    def close(self) -> None:
        """Close the connections. Never raises."""
        ...


class FailedTransport:
    """Takes the place of a transport that could not be open_safely: each reply is a refusal with the reason."""

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
    warn_once(*options.problems)
    if options.protocol == "grpc":
        with _quiet_grpc():
            import_module("cascade.connectors.otel.grpc")
    else:
        import_module("cascade.connectors.otel.http")


def open_safely(open_transport: Callable[[], Transport]) -> Transport:
    """The transport that `open_transport` returns, or an `FailedTransport` with its error, so that no exporting thread ends."""
    try:
        return open_transport()
    except Exception as error:  # noqa: BLE001 - whatever opens it
        return FailedTransport(error)


def open_transport(options: ExportOptions) -> Transport:
    """The transport for these options; gRPC, a slow import, is loaded only when it is the protocol.

    Raises:
        OSError: When a certificate or key cannot be loaded.
    """
    if options.protocol == "grpc":
        with _quiet_grpc():
            from cascade.connectors.otel.grpc import GrpcTransport

        return GrpcTransport(options)
    from cascade.connectors.otel.http import HttpTransport

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


@contextmanager
def suppress_instrumentation() -> Iterator[None]:
    """Make no spans and no log records of the export itself, whose failures are in the replies."""
    current = context.get_current()
    for key in (_SUPPRESS_INSTRUMENTATION_KEY, _SUPPRESS_HTTP_INSTRUMENTATION_KEY, _EXPORTING):
        current = context.set_value(key, True, current)
    token = context.attach(current)
    try:
        yield
    finally:
        context.detach(token)


def _is_not_ours(_record: logging.LogRecord) -> bool:
    return not context.get_value(_EXPORTING)


# The encoder logs a traceback for each attribute that it leaves out, urllib3 each request and each malformed header.
for _name in ("opentelemetry.exporter.otlp.proto.common._internal", "urllib3.connection", "urllib3.connectionpool"):
    logging.getLogger(_name).addFilter(_is_not_ours)
