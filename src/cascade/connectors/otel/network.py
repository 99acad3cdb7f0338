"""TLS certificates and HTTP proxy of the connection to a collector.

The proxy comes from `HTTP_PROXY`, `HTTPS_PROXY`, `ALL_PROXY` and `NO_PROXY`, whose lower-case names take precedence. If no
variable is set, the settings of Windows or macOS apply.
"""

import contextlib
import ipaddress
import os
import re
import ssl
import urllib.request
from collections.abc import Iterator

from urllib3.exceptions import LocationParseError
from urllib3.util import Url, parse_url

from cascade.connectors.otel.endpoint import without_password
from cascade.connectors.otel.environment import SettingWarning, unquoted, warn_once
from cascade.connectors.otel.options import ExportOptions

_GRPC_VARIABLES = ("grpc_proxy", "https_proxy", "http_proxy")  # by priority; gRPC ignores upper-case names
_PORT = re.compile(r"\[(?P<v6>[^\]]*)\](?::(?P<v6port>\d{1,5}))?|(?P<host>[^:]*):(?P<port>\d{1,5})")

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def tls_context(options: ExportOptions) -> ssl.SSLContext:
    """Return a TLS context with the certificates of the options.

    Raises:
        OSError: A certificate or key cannot be loaded. Encrypted keys are not supported, because OpenSSL reads the password
            from the terminal.
    """
    with _with_file_names("certificate", options.certificate):
        context = ssl.create_default_context(cafile=options.certificate)
    if options.certificate is None:
        # Slim container images have no certificates. The HTTP exporter of the SDK installs `certifi`.
        with contextlib.suppress(ImportError):
            import certifi

            context.load_verify_locations(certifi.where())
    if options.client_certificate:
        with _with_file_names("client certificate and key", f"{options.client_certificate}, {options.client_key}"):
            context.load_cert_chain(options.client_certificate, options.client_key, password="")
    return context


@contextlib.contextmanager
def _with_file_names(subject: str, files: str | None) -> Iterator[None]:
    """Add the names of the files to an error of OpenSSL, whose text does not contain them."""
    try:
        yield
    except OSError as error:
        raise OSError(f"the {subject} cannot be loaded from {files}: {error}") from error


def proxy_of(scheme: str, host: str, port: int) -> Url | None:
    """Return the proxy for a URL, or None for a direct connection.

    Only http:// proxies are supported. For others the connection is direct, and a warning is logged.
    """
    proxies = urllib.request.getproxies()
    kind = next((kind for kind in (scheme, "all") if proxies.get(kind)), None)
    if kind is None or is_exempt(host, port):
        return None
    names = (f"{kind}_proxy", f"{kind}_proxy".upper())
    return _checked_proxy(
        next((name for name in names if os.environ.get(name)), f"the system's {kind} proxy"), proxies[kind]
    )


def grpc_proxy_of(host: str, port: int) -> str:
    """Return the URL of the proxy for gRPC, from the variables that gRPC uses; "" for a direct connection."""
    name = next((name for name in _GRPC_VARIABLES if name in os.environ), None)
    if name is None or not os.environ[name] or is_exempt(host, port):
        return ""
    proxy = _checked_proxy(name, os.environ[name])
    return "" if proxy is None else proxy.url


def is_exempt(host: str, port: int) -> bool:
    """Return whether NO_PROXY contains the server.

    An entry is a domain with its subdomains, an address, a network such as 10.0.0.0/8, or `*`. An entry with a port is for
    this port only.
    """
    entries = urllib.request.getproxies_environment().get("no", "").lower()
    name = host.lower().strip("[]").rstrip(".")
    address = _address(name)
    if any(_matches(entry, name, address, port) for entry in re.split(r"[,\s]+", entries) if entry):
        return True
    return bool(urllib.request.proxy_bypass(f"{host}:{port}"))


def _matches(entry: str, name: str, address: _Address | None, port: int) -> bool:
    if entry == "*":
        return True
    pattern, entry_port = _split_port(entry)
    if entry_port is not None and entry_port != port:
        return False
    if address is not None:
        try:
            return address in ipaddress.ip_network(pattern, strict=False)
        except ValueError:
            return False
    pattern = pattern.removeprefix("*").strip(".")
    return bool(pattern) and (name == pattern or name.endswith(f".{pattern}"))


def _split_port(entry: str) -> tuple[str, int | None]:
    found = _PORT.fullmatch(entry)
    if found is None:
        return entry, None
    port = found["v6port"] or found["port"]
    return found["v6"] or found["host"] or "", int(port) if port else None


def _address(name: str) -> _Address | None:
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return None
    return (address.ipv4_mapped or address) if isinstance(address, ipaddress.IPv6Address) else address


def _checked_proxy(variable: str, text: str) -> Url | None:
    url = unquoted(text)
    with contextlib.suppress(LocationParseError, ValueError):
        proxy = parse_url(url if "://" in url else f"http://{url}")
        if proxy.scheme == "http" and proxy.host and proxy.port != 0:
            return proxy
    shown = without_password(text)
    message = f"{variable}={shown!r} is not an http:// proxy, and others are not supported; the connection is direct"
    warn_once(SettingWarning(variable, text, message))
    return None
