"""Parsing and completion of OTLP endpoints."""

import re
from base64 import b64encode
from collections.abc import Callable
from typing import Literal
from urllib.parse import unquote, urlsplit, urlunsplit

GRPC_PORT = 4317
HTTPS_PORT = 443  # the default of gRPC for a target without a port
DEFAULT_ENDPOINTS = {"grpc": "http://localhost:4317", "http/protobuf": "http://localhost:4318"}

# Schemes of gRPC targets. The specification of OTLP allows every target that the gRPC library resolves.
_GRPC_SCHEMES = ("dns:", "ipv4:", "ipv6:", "unix:", "unix-abstract:", "xds:")


def check_endpoint(endpoint: str, *, protocol: str, source: str) -> str:
    """Return the endpoint if it is valid.

    Raises:
        ValueError: The endpoint has no scheme, or no valid host name and port. The message contains the value, its `source` and
            the fix.
    """
    fix = f"write it like {DEFAULT_ENDPOINTS[protocol]}"
    try:
        url = urlsplit(endpoint)
        host, port = url.hostname, url.port
    except ValueError as error:
        raise ValueError(f"{source}={without_password(endpoint)!r}: {error}; {fix}") from None
    shown = without_password(endpoint)
    is_target = protocol == "grpc" and (endpoint.startswith(_GRPC_SCHEMES) or _is_host_and_port(endpoint))
    if is_target:
        host = "" if endpoint.startswith(("unix", "xds:")) else server_of(endpoint)[0]
    if not _is_host_name(host or ""):
        raise ValueError(f"{source}={shown!r}: a label of the host name is empty or longer than 63 characters; {fix}")
    if is_target:
        return endpoint
    if url.scheme not in {"http", "https"}:
        raise ValueError(f"{source}={shown!r} does not start with http:// or https://; {fix}")
    if not host or port == 0 or not endpoint.isprintable() or " " in endpoint:
        raise ValueError(f"{source}={shown!r} names no host to connect to; {fix}")
    return endpoint


def complete_endpoint(endpoint: str, protocol: str) -> str:
    """Return the value of a variable as a complete endpoint: that of the exporters of the SDK, if it is valid.

    For HTTP, the default scheme is http://. For gRPC, schemes other than http and https are removed, and the default port is
    added.
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
    """Return "grpc" for an endpoint with the port or the form of gRPC, and None for one that may be of either protocol."""
    return "grpc" if endpoint.startswith(_GRPC_SCHEMES) or port_of(endpoint) == GRPC_PORT else None


def port_of(endpoint: str) -> int | None:
    """Return the explicit port of an endpoint; None if it has none or is invalid."""
    try:
        return urlsplit(endpoint if "://" in endpoint else f"//{endpoint}").port
    except ValueError:
        return None


def server_of(target: str) -> tuple[str, int]:
    """Return the host and port of a gRPC target. The host is "" if the target is not a single server."""
    try:
        url = urlsplit(f"//{re.sub('^(dns|ipv4|ipv6):', '', target.rpartition('/')[2])}")
        host, port = url.hostname, url.port
    except ValueError:
        return "", HTTPS_PORT
    return host or "", port or HTTPS_PORT


def with_path(endpoint: str, path: str) -> str:
    """Append a path to a base URL."""
    url = urlsplit(endpoint)
    return urlunsplit(url._replace(path=f"{url.path.removesuffix('/')}/{path}"))


def has_no_path(endpoint: str) -> bool:
    """Return whether a URL has no path."""
    return urlsplit(endpoint).path in {"", "/"}


def is_insecure_endpoint(endpoint: str, *, read_setting: Callable[[], bool | None]) -> bool:
    """Return whether the connection has no TLS, as the scheme http or https defines it.

    For an endpoint of gRPC without these schemes, `read_setting` returns the setting. If it is None, only Unix sockets have no
    TLS.
    """
    match urlsplit(endpoint).scheme:
        case "http":
            return True
        case "https":
            return False
        case scheme:
            setting = read_setting()
            return scheme in {"unix", "unix-abstract"} if setting is None else setting


def split_credentials(endpoint: str) -> tuple[str, str | None]:
    """Return the URL without user and password, and the value of the Authorization header for them, or None."""
    if "://" not in endpoint or "@" not in urlsplit(endpoint).netloc:
        return endpoint, None
    url = urlsplit(endpoint)
    pair = f"{unquote(url.username or '')}:{unquote(url.password or '')}"
    bare = url._replace(netloc=url.netloc.rpartition("@")[2])
    return urlunsplit(bare), f"Basic {b64encode(pair.encode()).decode()}"


def without_password(endpoint: str) -> str:
    """Return the endpoint without user and password, for messages."""
    scheme, separator, rest = endpoint.rpartition("://")
    return f"{scheme}{separator}{rest.rpartition('@')[2]}"


def _is_host_name(host: str) -> bool:
    """Return whether the resolver accepts the name. Each request to an invalid name would fail."""
    try:
        host.removesuffix(".").encode("idna")
    except UnicodeError:
        return False
    return True


def _is_host_and_port(endpoint: str) -> bool:
    bare = all(sign not in endpoint for sign in "/@? ")
    return bare and bool(endpoint.rpartition(":")[0]) and bool(port_of(endpoint))
