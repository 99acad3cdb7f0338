"""An OTLP receiver within the test: real servers on free ports that decode what they get."""

import ssl
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from cascade._extras import missing_extra
from cascade.testing._patience import PATIENCE
from cascade.testing.faults import Fault
from cascade.testing.received import Spans

try:
    import grpc

    from cascade.testing._inbox import Inbox, Protocol, ReceivedRequest, Signal
    from cascade.testing._otlp_grpc import GrpcServer
    from cascade.testing._otlp_http import HttpServer
except ImportError as error:
    raise missing_extra("otel", error) from error

__all__ = ["OtlpReceiver", "Protocol", "ReceivedRequest", "Signal"]

MAX_REQUEST_BYTES = 20 * 1024 * 1024
"""The OpenTelemetry Collector's own limit for HTTP; its limit for gRPC, 4 MiB, is an argument away."""


class OtlpReceiver:
    """Serves OTLP over HTTP/1.1 and over gRPC, on 127.0.0.1 and free ports, from the moment it is made until `close`.

    Set `fault` at any time to have it misbehave, and to None to have it behave again. All of it is thread-safe.

    Args:
        certfile: A PEM file with the certificate chain; with it both servers speak TLS only.
        keyfile: The PEM file of its key.
        max_request_bytes: A larger request is refused, compressed or not: 413, RESOURCE_EXHAUSTED.
    """

    def __init__(
        self,
        *,
        certfile: str | Path | None = None,
        keyfile: str | Path | None = None,
        max_request_bytes: int = MAX_REQUEST_BYTES,
    ) -> None:
        if (certfile is None) != (keyfile is None):
            raise ValueError("certfile and keyfile go together: give both or neither")
        tls, credentials = (None, None) if certfile is None or keyfile is None else _load(certfile, keyfile)
        self._scheme = "http" if tls is None else "https"
        self._inbox = Inbox()
        self._grpc = GrpcServer(self._inbox, max_bytes=max_request_bytes, credentials=credentials)
        self._http = HttpServer(self._inbox, max_bytes=max_request_bytes, tls=tls)
        self._closed = False
        self._grpc.start()
        self._http.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Cut all connections and stop listening; requests that are held are dropped. What arrived can still be read."""
        if not self._closed:
            self._closed = True
            self._inbox.close()
            self._http.stop()
            self._grpc.stop()

    @property
    def http_endpoint(self) -> str:
        """The base URL; signals are at `/v1/traces`, `/v1/metrics` and `/v1/logs` below it."""
        return f"{self._scheme}://127.0.0.1:{self._http.server_address[1]}"

    @property
    def grpc_endpoint(self) -> str:
        """The URL of the gRPC server."""
        return f"{self._scheme}://127.0.0.1:{self._grpc.port}"

    def endpoint(self, protocol: str) -> str:
        """The endpoint for a protocol by the name that `OTEL_EXPORTER_OTLP_PROTOCOL` has for it."""
        match protocol:
            case "http/protobuf":
                return self.http_endpoint
            case "grpc":
                return self.grpc_endpoint
            case _:
                raise ValueError(f"protocol '{protocol}' is unknown: use 'http/protobuf' or 'grpc'")

    @property
    def fault(self) -> Fault | None:
        """What goes wrong now; None again once its `times` are used up."""
        return self._inbox.fault

    @fault.setter
    def fault(self, fault: Fault | None) -> None:
        if fault and fault.grpc_code is not None and fault.grpc_code not in grpc.StatusCode.__members__:
            raise ValueError(f"grpc_code '{fault.grpc_code}' is none of gRPC's, such as 'UNAVAILABLE'")
        self._inbox.fault = fault

    @property
    def spans(self) -> Spans:
        """The spans so far, in the order in which they arrived. Decoded when first asked for."""
        return self._inbox.spans

    @property
    def span_count(self) -> int:
        """The number of spans so far; nothing is decoded for it."""
        return self._inbox.span_count

    @property
    def requests(self) -> list[ReceivedRequest]:
        """The requests so far, those that a fault befell included."""
        return self._inbox.requests

    @property
    def metrics(self) -> list[Any]:
        """The `ExportMetricsServiceRequest` messages so far."""
        return self._inbox.others("metrics")

    @property
    def logs(self) -> list[Any]:
        """The `ExportLogsServiceRequest` messages so far."""
        return self._inbox.others("logs")

    def wait_for(self, predicate: Callable[[Spans], bool], timeout: float = PATIENCE) -> Spans:
        """The spans, as soon as the predicate holds for them; it is asked again whenever something arrives.

        Raises:
            AssertionError: It did not hold in time; it says what was there.
        """
        spans = Spans()

        def holds() -> bool:
            nonlocal spans
            spans = self.spans
            return predicate(spans)

        if not self._inbox.wait_until(holds, timeout):
            raise AssertionError(f"not received within {timeout:g} s; there are {self._inbox.summary()}")
        return spans

    def wait_for_requests(self, count: int = 1, timeout: float = PATIENCE) -> list[ReceivedRequest]:
        """The requests, as soon as there are so many; a request counts when it is read, before it is answered.

        Raises:
            AssertionError: There were not so many in time; it says what was there.
        """
        if not self._inbox.wait_until(lambda: len(self.requests) >= count, timeout):
            raise AssertionError(f"fewer than {count} requests within {timeout:g} s: {self._inbox.summary()}")
        return self.requests

    def clear(self) -> None:
        """Forget all that has arrived; a fault stays."""
        self._inbox.clear()


def _load(certfile: str | Path, keyfile: str | Path) -> tuple[ssl.SSLContext, grpc.ServerCredentials]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certfile, keyfile)
    pair = (Path(keyfile).read_bytes(), Path(certfile).read_bytes())
    return context, grpc.ssl_server_credentials([pair])
