"""The HTTP proxy on the way to a server, from `HTTP_PROXY`, `HTTPS_PROXY`, `ALL_PROXY` and `NO_PROXY`.

Names in lower case win. Where no variable is set, Windows and macOS have settings of the system.
"""

import contextlib
import ipaddress
import os
import re
import urllib.request

from urllib3.exceptions import LocationParseError
from urllib3.util import Url, parse_url

from cascade.connectors.otel.endpoint import without_password
from cascade.connectors.otel.environment import SettingWarning, unquoted, warn_once

_GRPC_VARIABLES = ("grpc_proxy", "https_proxy", "http_proxy")  # by priority; gRPC reads no names in capitals
_PORT = re.compile(r"\[(?P<v6>[^\]]*)\](?::(?P<v6port>\d{1,5}))?|(?P<host>[^:]*):(?P<port>\d{1,5})")

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def proxy_of(scheme: str, host: str, port: int) -> Url | None:
    """The proxy for a URL's scheme, None for a direct connection.

    Only http:// proxies are supported. Another one causes a warning, and the connection is direct.
    """
    proxies = urllib.request.getproxies()
    kind = next((kind for kind in (scheme, "all") if proxies.get(kind)), None)
    if kind is None or is_exempt(host, port):
        return None
    names = (f"{kind}_proxy", f"{kind}_proxy".upper())
    return _usable(next((name for name in names if os.environ.get(name)), f"the system's {kind} proxy"), proxies[kind])


def grpc_proxy_of(host: str, port: int) -> str:
    """The URL of the proxy for gRPC, from the variables that gRPC itself reads; "" for a direct connection."""
    name = next((name for name in _GRPC_VARIABLES if name in os.environ), None)
    if name is None or not os.environ[name] or is_exempt(host, port):
        return ""
    proxy = _usable(name, os.environ[name])
    return "" if proxy is None else proxy.url


def is_exempt(host: str, port: int) -> bool:
    """Whether NO_PROXY lists the server: a name with its subdomains, an address, a network such as 10.0.0.0/8, or `*`.

    An entry with a port covers that port alone.
    """
    listed = urllib.request.getproxies_environment().get("no", "")
    name = host.lower().strip("[]").rstrip(".")
    entries = filter(None, re.split(r"[,\s]+", listed.lower()))
    if any(_covers(entry, name, _address(name), port) for entry in entries):
        return True
    return bool(urllib.request.proxy_bypass(f"{host}:{port}"))


def _covers(entry: str, name: str, address: _Address | None, port: int) -> bool:
    if entry == "*":
        return True
    pattern, wanted = _split_port(entry)
    if wanted is not None and wanted != port:
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


def _usable(variable: str, text: str) -> Url | None:
    given = unquoted(text)
    with contextlib.suppress(LocationParseError, ValueError):  # a URL that is none
        proxy = parse_url(given if "://" in given else f"http://{given}")
        if proxy.scheme == "http" and proxy.host and proxy.port != 0:
            return proxy
    shown = without_password(text)
    message = f"{variable}={shown!r} is no http:// proxy, and others are not supported; the connection is direct"
    warn_once(SettingWarning(variable, text, message))
    return None
