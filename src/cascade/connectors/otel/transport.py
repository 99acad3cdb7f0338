"""Protocol of the transports that send encoded OTLP requests, and the factory that opens them."""

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from opentelemetry import context
from opentelemetry.context import _SUPPRESS_HTTP_INSTRUMENTATION_KEY, _SUPPRESS_INSTRUMENTATION_KEY

from cascade._internal_errors import raise_in_tests
from cascade.connectors.otel.environment import warn_once
from cascade.connectors.otel.options import ExportOptions
from cascade.connectors.otel.reply import Reply
from cascade.telemetry.sanitize import error_message

_EXPORTING = context.create_key("cascade-exporting")


class Transport(Protocol):
    """Sends encoded OTLP requests to a collector. Several threads may send at the same time."""

    def send(self, body: bytes, timeout: float) -> Reply:
        """Send one request and wait for the response, both within `timeout` seconds. Never raises."""
        ...

    def close(self) -> None:
        """Close the connections. Never raises."""
        ...


class FailedTransport:
    """Replaces a transport that could not be opened. Each reply is a refusal with the reason."""

    def __init__(self, error: Exception) -> None:
        self._reply = Reply("refused", f"cannot export: {error_message(error, 200)}", unanswered=True)

    def send(self, body: bytes, timeout: float) -> Reply:  # noqa: ARG002 - the protocol's
        return self._reply

    def close(self) -> None:
        pass


def prepare(options: ExportOptions) -> None:
    """Log the problems of the options, and import the transport.

    A sending thread must not import it: a child that is forked during the import cannot import the module.
    """
    warn_once(*options.problems)
    _import_transport(options)


def open_transport(options: ExportOptions) -> Transport:
    """Return the transport for the protocol of the options.

    Raises:
        OSError: A certificate or key cannot be loaded.
    """
    return _import_transport(options)(options)


def open_safely(open_transport: Callable[[], Transport]) -> Transport:
    """Return an opened transport, or a `FailedTransport` if an error is raised, so that the sending thread continues."""
    try:
        return open_transport()
    except Exception as error:  # noqa: BLE001 - an error of any library
        raise_in_tests(error)
        return FailedTransport(error)


def _import_transport(options: ExportOptions) -> Callable[[ExportOptions], Transport]:
    """Import one transport only, because the import of gRPC is slow."""
    if options.protocol != "grpc":
        from cascade.connectors.otel.http import HttpTransport

        return HttpTransport
    # The core of gRPC reads its log level at import. By default it writes the errors of the replies to stderr.
    variable = "GRPC_VERBOSITY"
    is_unset = variable not in os.environ
    os.environ.setdefault(variable, "ERROR")
    try:
        from cascade.connectors.otel.grpc import GrpcTransport
    finally:
        if is_unset:
            os.environ.pop(variable, None)
    return GrpcTransport


@contextmanager
def suppress_instrumentation() -> Iterator[None]:
    """Suppress the spans and log records of requests that are sent in the block. The replies contain the errors."""
    current = context.get_current()
    for key in (_SUPPRESS_INSTRUMENTATION_KEY, _SUPPRESS_HTTP_INSTRUMENTATION_KEY, _EXPORTING):
        current = context.set_value(key, True, current)
    token = context.attach(current)
    try:
        yield
    finally:
        context.detach(token)


def _is_outside_export(_record: logging.LogRecord) -> bool:
    return not context.get_value(_EXPORTING)


# The encoder of the SDK logs a traceback for each invalid attribute, urllib3 each request and each invalid header.
for _name in ("opentelemetry.exporter.otlp.proto.common._internal", "urllib3.connection", "urllib3.connectionpool"):
    logging.getLogger(_name).addFilter(_is_outside_export)
