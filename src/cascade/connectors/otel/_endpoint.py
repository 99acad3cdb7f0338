"""An OTLP endpoint as a person writes it, checked and completed."""

from base64 import b64encode
from urllib.parse import SplitResult, unquote, urlsplit, urlunsplit

GRPC_PORT = 4317
DEFAULTS = {"grpc": "http://localhost:4317", "http/protobuf": "http://localhost:4318"}

# Targets that gRPC resolves itself; the specification asks for any form the gRPC library takes.
_GRPC_SCHEMES = ("dns:", "ipv4:", "ipv6:", "unix:", "unix-abstract:", "xds:")


def checked(endpoint: str, *, protocol: str, source: str) -> str:
    """The endpoint, if a connection can be made to it.

    Raises:
        ValueError: When it has no scheme, host or usable port; the message names the value, `source` and the fix.
    """
    if protocol == "grpc" and (endpoint.startswith(_GRPC_SCHEMES) or _is_host_and_port(endpoint)):
        return endpoint
    fix = f"write it like {DEFAULTS[protocol]}"
    try:
        url = urlsplit(endpoint)
        host, port = url.hostname, url.port
    except ValueError as error:
        raise ValueError(f"{source}={without_password(endpoint)!r}: {error}; {fix}") from None
    if url.scheme not in {"http", "https"}:
        raise ValueError(f"{source}={without_password(endpoint)!r} does not start with http:// or https://; {fix}")
    if not host or port == 0 or not endpoint.isprintable() or " " in endpoint:
        raise ValueError(f"{source}={without_password(endpoint)!r} names no host to connect to; {fix}")
    return endpoint


def port_of(endpoint: str) -> int | None:
    """The port that an endpoint spells out; None if it has none or makes no sense."""
    try:
        return urlsplit(endpoint if "://" in endpoint else f"//{endpoint}").port
    except ValueError:
        return None


def with_path(endpoint: str, path: str) -> str:
    """A base URL with the signal's path below its own."""
    url = urlsplit(endpoint)
    return urlunsplit(url._replace(path=f"{url.path.removesuffix('/')}/{path}"))


def is_base(endpoint: str) -> bool:
    """True for a URL that names a server and no path on it."""
    return urlsplit(endpoint).path in {"", "/"}


def is_insecure(endpoint: str, *, otherwise: bool) -> bool:
    """A scheme of http or https decides; for a target without one, the setting does."""
    match urlsplit(endpoint).scheme:
        case "http":
            return True
        case "https":
            return False
        case _:
            return otherwise


def split_credentials(endpoint: str) -> tuple[str, str | None]:
    """`https://user:password@host` as the bare URL, and the Authorization header that its user info stands for."""
    if "://" not in endpoint or "@" not in urlsplit(endpoint).netloc:
        return endpoint, None
    url = urlsplit(endpoint)
    pair = f"{unquote(url.username or '')}:{unquote(url.password or '')}"
    return urlunsplit(_bare(url)), f"Basic {b64encode(pair.encode()).decode()}"


def without_password(endpoint: str) -> str:
    """The endpoint as it may be shown."""
    scheme, separator, rest = endpoint.rpartition("://")
    return f"{scheme}{separator}{rest.rpartition('@')[2]}"


def _bare(url: SplitResult) -> SplitResult:
    return url._replace(netloc=url.netloc.rpartition("@")[2])


def _is_host_and_port(endpoint: str) -> bool:
    bare = all(sign not in endpoint for sign in "/@? ")
    return bare and bool(endpoint.rpartition(":")[0]) and bool(port_of(endpoint))
