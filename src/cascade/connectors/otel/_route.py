"""The route to an HTTP endpoint: address, TLS context and proxy."""

import contextlib
import ssl
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import SplitResult, unquote, urlsplit

from cascade.connectors.otel.options import ExportOptions
from cascade.connectors.otel.proxy import proxy_of


@dataclass(frozen=True, slots=True)
class Route:
    """The address to which to connect, and the target of the request line.

    With a proxy, `host` and `port` are the proxy's. `tunnel` is then the authority of the CONNECT request, if the endpoint
    has TLS, and `login` the header line of the proxy's credentials.
    """

    host: str
    port: int
    target: str
    tls: ssl.SSLContext | None = None
    server_name: str = ""
    tunnel: str = ""
    login: str = ""


def route_to(options: ExportOptions) -> Route:
    """The route, by the endpoint and by `HTTP_PROXY`, `HTTPS_PROXY`, `ALL_PROXY` and `NO_PROXY`.

    Raises:
        OSError: When a certificate cannot be loaded.
    """
    url = urlsplit(options.endpoint)
    host, port = _address(url)
    target = (url.path or "/") + (f"?{url.query}" if url.query else "")
    tls = tls_context(options) if url.scheme == "https" else None
    proxy = proxy_of(url.scheme, host, port)
    if proxy is None:
        return Route(host, port, target, tls, host)
    via, gate = _address(proxy)
    login = _login(proxy)
    if tls is None:
        return Route(via, gate, f"http://{url.netloc}{target}", login=login)
    authority = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return Route(via, gate, target, tls, host, authority, login)


def _login(proxy: SplitResult) -> str:
    if proxy.username is None:
        return ""
    pair = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}"
    encoded = b64encode(pair.encode(errors="surrogateescape")).decode()
    return f"Proxy-Authorization: Basic {encoded}\r\n"


def _address(url: SplitResult) -> tuple[str, int]:
    return url.hostname or "", url.port or (443 if url.scheme == "https" else 80)


def tls_context(options: ExportOptions) -> ssl.SSLContext:
    """The context for the options' certificates.

    Raises:
        OSError: When a certificate or key cannot be loaded. An encrypted key cannot: OpenSSL would ask for its password
            on the terminal.
    """
    with _naming("certificate", options.certificate):
        context = ssl.create_default_context(cafile=options.certificate)
    if options.certificate is None:
        # Slim images have no certificates of their own; the SDK's exporter brings these.
        with contextlib.suppress(ImportError):
            import certifi

            context.load_verify_locations(certifi.where())
    if options.client_certificate:
        with _naming("client certificate and key", f"{options.client_certificate}, {options.client_key}"):
            context.load_cert_chain(options.client_certificate, options.client_key, password="")
    return context


@contextlib.contextmanager
def _naming(subject: str, files: str | None) -> Iterator[None]:
    """Add the names of the files to an error, whose text by OpenSSL has none."""
    try:
        yield
    except OSError as error:
        raise OSError(f"the {subject} cannot be loaded from {files}: {error}") from error
