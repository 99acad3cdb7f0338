"""What a receiver can be told to do wrong."""

from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """How an `OtlpReceiver` treats the requests it gets while this is its `fault`.

    Several at once hold together: a `delay` before an `http_status`. What concerns one protocol leaves the other alone.

    Attributes:
        http_status: The HTTP status to answer with; its body is a `google.rpc.Status` with `message`.
        grpc_code: The name of the gRPC status code to answer with: `"UNAVAILABLE"`.
        message: The text of the error, or of the partial success.
        retry_after: Seconds, as HTTP's `Retry-After` (rounded up) and as gRPC's `RetryInfo`.
        delay: Seconds to wait before anything else; what arrived is kept only then.
        silent: Read the request and never answer, until the receiver is closed.
        disconnect: Cut the connection without an answer. Over gRPC the answer is UNAVAILABLE.
        garbage: Answer bytes that are no protobuf. Without an error status the data is kept all the same.
        rejected_spans: Answer a partial success, and drop so many from the end of each request.
        redirect: Where HTTP's `Location` points; the status is 307 unless `http_status` says otherwise.
        times: After so many requests all is well again; None for as long as it is set.
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

    def __post_init__(self) -> None:
        if self.times is not None and self.times < 1:
            raise ValueError(f"times={self.times}: a fault applies to one request or more")
        if min(self.delay, self.retry_after or 0.0, self.rejected_spans) < 0:
            raise ValueError("delay, retry_after and rejected_spans cannot be negative")

    @classmethod
    def unavailable(cls, *, times: int | None = None, retry_after: float | None = None) -> Self:
        """The peer is overloaded or restarting: 503, UNAVAILABLE; an exporter tries again."""
        return cls(http_status=503, grpc_code="UNAVAILABLE", message="try again", times=times, retry_after=retry_after)

    @classmethod
    def throttled(cls, *, times: int | None = None, retry_after: float | None = 1.0) -> Self:
        """Too many requests: 429, RESOURCE_EXHAUSTED; an exporter waits for as long as it is told to."""
        return cls(
            http_status=429, grpc_code="RESOURCE_EXHAUSTED", message="slow down", times=times, retry_after=retry_after
        )

    @classmethod
    def too_large(cls, *, times: int | None = None) -> Self:
        """The request is over the peer's limit: 413, RESOURCE_EXHAUSTED without `RetryInfo`; never to be sent again."""
        return cls(http_status=413, grpc_code="RESOURCE_EXHAUSTED", message="message too large", times=times)

    @classmethod
    def bad_request(cls, *, times: int | None = None) -> Self:
        """The peer cannot use it: 400, INVALID_ARGUMENT; never to be sent again."""
        return cls(http_status=400, grpc_code="INVALID_ARGUMENT", message="bad request", times=times)

    @classmethod
    def unauthorized(cls, *, times: int | None = None) -> Self:
        """The credentials are missing or wrong: 401, UNAUTHENTICATED."""
        return cls(http_status=401, grpc_code="UNAUTHENTICATED", message="no valid credentials", times=times)

    @classmethod
    def silence(cls, *, times: int | None = None) -> Self:
        """The peer hangs: it takes requests and never answers."""
        return cls(silent=True, times=times)

    @classmethod
    def slow(cls, seconds: float, *, times: int | None = None) -> Self:
        """The peer answers as it should, but late."""
        return cls(delay=seconds, times=times)

    @classmethod
    def disconnection(cls, *, times: int | None = None) -> Self:
        """The connection is cut once the request is read."""
        return cls(disconnect=True, times=times)

    @classmethod
    def nonsense(cls, *, times: int | None = None) -> Self:
        """A success whose body is no protobuf, as from a proxy or a login page."""
        return cls(garbage=True, times=times)

    @classmethod
    def partial_success(cls, rejected_spans: int, message: str = "rejected", *, times: int | None = None) -> Self:
        """A success that says how many spans of a request were not kept; never to be sent again."""
        return cls(rejected_spans=rejected_spans, message=message, times=times)

    @classmethod
    def redirection(cls, location: str, *, times: int | None = None) -> Self:
        """307 to another address; gRPC knows nothing of the kind and works as ever."""
        return cls(redirect=location, times=times)
