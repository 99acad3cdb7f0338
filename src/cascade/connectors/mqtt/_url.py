"""`mqtts://user:password@host:8883?ca_certificate=/ca.pem` as a connector's arguments; no error shows a password."""

from typing import Any
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from cascade.connectors.mqtt._options import PLAIN_PORT, TLS_PORT

VARIABLE = "CASCADE_MQTT_URL"
DEFAULT_URL = "mqtt://localhost:1883"

_PORTS = {"mqtt": PLAIN_PORT, "mqtts": TLS_PORT}
_FILES = ("ca_certificate", "client_certificate", "client_key")
_KEYS = (*_FILES, "client_id", "keepalive")
_ENCODE = "percent-encode '/', '?', '#', '@' and ':' in user and password"


def arguments_of(url: str) -> dict[str, Any]:
    """The keyword arguments that a URL stands for.

    Raises:
        ValueError: It is none of MQTT, or says what there is not.
    """
    parts = _split(url)
    if not parts.hostname:
        raise ValueError("the URL names no host: write it like mqtt://host:1883")
    if parts.path.strip("/") or parts.fragment:
        raise ValueError(f"the URL has more than a host and a query: topics are fixed; {_ENCODE}")
    found: dict[str, Any] = {"hostname": unquote(parts.hostname), "port": _port(parts) or _PORTS[parts.scheme]}
    if parts.scheme == "mqtts":
        found["tls"] = True
    if parts.username:
        found["username"] = unquote(parts.username)
    if parts.password is not None:
        found["password"] = unquote(parts.password)
    return found | _query(parts)


def _split(url: str) -> SplitResult:
    try:
        parts = urlsplit(url.strip())
    except ValueError:
        raise ValueError(f"the URL cannot be read: write it like mqtt://host:1883, and {_ENCODE}") from None
    if parts.scheme not in _PORTS:
        scheme = parts.scheme if "://" in url else ""
        raise ValueError(f"scheme {scheme!r} is not supported: write mqtt:// or mqtts://")
    return parts


def _port(parts: SplitResult) -> int | None:
    try:
        return parts.port
    except ValueError:
        # What stands there may be the rest of a password.
        raise ValueError(f"the URL's port is no number from 1 to 65535: give one, and {_ENCODE}") from None


def _query(parts: SplitResult) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if "@" in parts.query:
        raise ValueError(f"the URL's query has an '@': {_ENCODE}")  # it may be the end of a password
    for key, value in parse_qsl(parts.query, keep_blank_values=True):
        if key not in _KEYS:
            raise ValueError(f"query key {key[:60]!r} is unknown: choose from {', '.join(_KEYS)}")
        if key in _FILES and parts.scheme != "mqtts":
            raise ValueError(f"{key} needs encryption: write mqtts://")
        found[key] = value
    if "keepalive" in found:
        if not found["keepalive"].isdecimal():
            raise ValueError(f"keepalive={found['keepalive']!r}: give a whole number of seconds")
        found["keepalive"] = int(found["keepalive"])
    return found
