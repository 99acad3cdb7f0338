"""Parses, checks and completes OTLP endpoints."""

import re
from base64 import b64encode
from collections.abc import Callable
from typing import Literal
from urllib.parse import SplitResult, unquote, urlsplit, urlunsplit

GRPC_PORT = 4317
HTTPS_PORT = 443  # what gRPC assumes for a target without a port
DEFAULT_ENDPOINTS = {"grpc": "http://localhost:4317", "http/protobuf": "http://localhost:4318"}

# Targets that gRPC resolves itself; by the specification any form of the gRPC library is valid.
_GRPC_SCHEMES = ("dns:", "ipv4:", "ipv6:", "unix:", "unix-abstract:", "xds:")


def check_endpoint(endpoint: str, *, protocol: str, source: str) -> str:
    """The endpoint, if a connection can be made to it.

    Raises:
        ValueError: When it has no scheme, host or usable port; the message names the value, `source` and the fix.
    """
    fix = f"write it like {DEFAULT_ENDPOINTS[protocol]}"
    try:
        url = urlsplit(endpoint)
        host, port = url.hostname, url.port
    except ValueError as error:
        raise ValueError(f"{source}={without_password(endpoint)!r}: {error}; {fix}") from None
    if protocol == "grpc" and (endpoint.startswith(_GRPC_SCHEMES) or _is_host_and_port(endpoint)):
        return endpoint
    if url.scheme not in {"http", "https"}:
        raise ValueError(f"{source}={without_password(endpoint)!r} does not start with http:// or https://; {fix}")
    if not host or port == 0 or not endpoint.isprintable() or " " in endpoint:
        raise ValueError(f"{source}={without_password(endpoint)!r} names no host to connect to; {fix}")
    return endpoint


def complete_endpoint(endpoint: str, protocol: str) -> str:
    """Complete an endpoint of a variable, as closely to the SDK's exporters as a usable endpoint allows.

    For HTTP, an endpoint without a scheme gets http://. For gRPC, schemes other than http and https are removed, and a
    host without a port gets the default port.
    """
    scheme, separator, rest = endpoint.rpartition("://")
    is_url = bool(separator) and scheme.lower() in {"http", "https"}
    if is_url or (protocol == "grpc" and endpoint.startswith(_GRPC_SCHEMES)):
        return endpoint
    if protocol != "grpc":
        return endpoint if separator else f"http://{endpoint}"
    target = rest.partition("/")[0]
    return target if _is_host_and_port(target) or not target else f"{target}:{GRPC_PORT}"


def protocol_of(endpoint: str) -> Literal["grpc"] | None:
    """The protocol of a default port, and of targets that only gRPC resolves; None if the endpoint leaves it open."""
    return "grpc" if endpoint.startswith(_GRPC_SCHEMES) or port_of(endpoint) == GRPC_PORT else None


def port_of(endpoint: str) -> int | None:
    """The port that an endpoint spells out; None if it has none or makes no sense."""
    try:
        return urlsplit(endpoint if "://" in endpoint else f"//{endpoint}").port
    except ValueError:
        return None


def server_of(target: str) -> tuple[str, int]:
    """Host and port of a gRPC target; "" for a target that is no single server."""
    try:
        url = urlsplit(f"//{re.sub('^(dns|ipv4|ipv6):', '', target.rpartition('/')[2])}")
        host, port = url.hostname, url.port
    except ValueError:
        return "", HTTPS_PORT
    return host or "", port or HTTPS_PORT


def with_path(endpoint: str, path: str) -> str:
    """A base URL with the signal's path below its own."""
    url = urlsplit(endpoint)
    return urlunsplit(url._replace(path=f"{url.path.removesuffix('/')}/{path}"))


def has_no_path(endpoint: str) -> bool:
    """True for a URL that names a server and no path on it."""
    return urlsplit(endpoint).path in {"", "/"}


def is_insecure_endpoint(endpoint: str, *, otherwise: Callable[[], bool | None]) -> bool:
    """A scheme of http or https decides; for a target without one, the setting does.

    Without a setting, a socket of this machine needs no TLS, and everything else does.
    """
    match urlsplit(endpoint).scheme:
        case "http":
            return True
        case "https":
            return False
        case scheme:
            setting = otherwise()
            return scheme in {"unix", "unix-abstract"} if setting is None else setting


def split_credentials(endpoint: str) -> tuple[str, str | None]:
    """The URL without user and password, and the value of the Authorization header that they stand for, or None."""
    if "://" not in endpoint or "@" not in urlsplit(endpoint).netloc:
        return endpoint, None
    url = urlsplit(endpoint)
    pair = f"{unquote(url.username or '')}:{unquote(url.password or '')}"
    return urlunsplit(_bare(url)), f"Basic {b64encode(pair.encode()).decode()}"


def without_password(endpoint: str) -> str:
    """The endpoint without user and password, for messages."""
    scheme, separator, rest = endpoint.rpartition("://")
    return f"{scheme}{separator}{rest.rpartition('@')[2]}"


def _bare(url: SplitResult) -> SplitResult:
    return url._replace(netloc=url.netloc.rpartition("@")[2])


def _is_host_and_port(endpoint: str) -> bool:
    bare = all(sign not in endpoint for sign in "/@? ")
    return bare and bool(endpoint.rpartition(":")[0]) and bool(port_of(endpoint))
