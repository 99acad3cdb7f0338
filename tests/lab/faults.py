"""Faults of an OTLP receiver."""

from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """The way in which a `FaultyReceiver` handles its requests.

    Several attributes apply together: a `delay` before an `http_status`. An attribute of one protocol does not affect
    the other.

    Attributes:
        http_status: The HTTP status of the response. Its body is a `google.rpc.Status` with `message`.
        grpc_code: The name of the gRPC status code: `"UNAVAILABLE"`.
        message: The text of the error or of the partial success.
        retry_after: Seconds in HTTP's `Retry-After`, rounded up, and in gRPC's `RetryInfo`.
        delay: Seconds before the data is stored and the response is sent.
        silent: Read the request and send no response until the receiver is closed.
        disconnect: Close the connection without a response. Over gRPC the status is UNAVAILABLE.
        garbage: Send bytes that are no protobuf. Without an error status the data is stored.
        rejected_spans: Send a partial success, and drop this number of spans from the end of each request.
        redirect: HTTP's `Location`. The status is 307, or `http_status`.
        times: The number of requests that it applies to; None for all.
    """

    http_status: int | None = None
    grpc_code: str | None = None
    message: str = ""
    retry_after: float | None = None
    delay: float = 0.0
    silent: bool = False
    disconnect: bool = False
    garbage: bool = False
    rejected_spans: int = 0
    redirect: str | None = None
    times: int | None = None

    @classmethod
    def unavailable(cls, *, times: int | None = None, retry_after: float | None = None) -> Self:
        """503, UNAVAILABLE. An exporter retries."""
        return cls(http_status=503, grpc_code="UNAVAILABLE", message="try again", times=times, retry_after=retry_after)

    @classmethod
    def throttled(cls, *, times: int | None = None, retry_after: float | None = 1.0) -> Self:
        """429, RESOURCE_EXHAUSTED. An exporter retries after `retry_after`."""
        return cls(
            http_status=429, grpc_code="RESOURCE_EXHAUSTED", message="slow down", times=times, retry_after=retry_after
        )

    @classmethod
    def too_large(cls, *, times: int | None = None) -> Self:
        """413, RESOURCE_EXHAUSTED without `RetryInfo`. An exporter does not retry."""
        return cls(http_status=413, grpc_code="RESOURCE_EXHAUSTED", message="message too large", times=times)

    @classmethod
    def bad_request(cls, *, times: int | None = None) -> Self:
        """400, INVALID_ARGUMENT. An exporter does not retry."""
        return cls(http_status=400, grpc_code="INVALID_ARGUMENT", message="bad request", times=times)

    @classmethod
    def unauthorized(cls, *, times: int | None = None) -> Self:
        """401, UNAUTHENTICATED: the credentials are missing or wrong."""
        return cls(http_status=401, grpc_code="UNAUTHENTICATED", message="no valid credentials", times=times)

    @classmethod
    def silence(cls, *, times: int | None = None) -> Self:
        """The receiver reads requests and never responds."""
        return cls(silent=True, times=times)

    @classmethod
    def slow(cls, seconds: float, *, times: int | None = None) -> Self:
        """The response is correct and late."""
        return cls(delay=seconds, times=times)

    @classmethod
    def disconnection(cls, *, times: int | None = None) -> Self:
        """The receiver reads the request and closes the connection."""
        return cls(disconnect=True, times=times)

    @classmethod
    def invalid_body(cls, *, times: int | None = None) -> Self:
        """A success whose body is no protobuf, as from a proxy or a login page."""
        return cls(garbage=True, times=times)

    @classmethod
    def partial_success(cls, rejected_spans: int, message: str = "rejected", *, times: int | None = None) -> Self:
        """A success with the number of rejected spans. An exporter does not retry."""
        return cls(rejected_spans=rejected_spans, message=message, times=times)

    @classmethod
    def redirection(cls, location: str, *, times: int | None = None) -> Self:
        """307 to another address. gRPC is not affected."""
        return cls(redirect=location, times=times)
