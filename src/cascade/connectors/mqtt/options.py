"""Options of a connection, from arguments or from a URL, and its client id."""

import secrets
import ssl
from pathlib import Path
from typing import Any, Literal
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from cascade.connectors._options import whole
from cascade.connectors.mqtt.health import FIRST_DELAY
from cascade.connectors.mqtt.oversize_messages import MIN_LIFETIME
from cascade.connectors.mqtt.packets import PERMANENT, TAKEN_OVER
from cascade.spec.retry import random_factor
from cascade.telemetry.topics import AWS_LIMITS, TopicLimits, source, topic_limits

_MAX_EARLY_ENDS = 6
"""Consecutive early ends that indicate two clients with one id. A message that the broker does not accept causes fewer."""

PLAIN_PORT, TLS_PORT = 1883, 8883
"""Registered IANA ports of MQTT."""
KEEPALIVE = 30
"""Seconds. The broker publishes the Last Will after 1.5 times this interval without a packet."""

VARIABLE = "CASCADE_MQTT_URL"
DEFAULT_URL = "mqtt://localhost:1883"

_MAX_TWO_BYTES = 65_535
"""Largest value of a two-byte field in MQTT."""
_PORTS = {"mqtt": PLAIN_PORT, "mqtts": TLS_PORT}
_FILE_KEYS = ("ca_certificate", "client_certificate", "client_key")
_QUERY_KEYS = (*_FILE_KEYS, "client_id", "keepalive")
_PERCENT_ENCODE = "percent-encode '/', '?', '#', '@' and ':' in user and password"


class MqttOptions:
    """Options of a connection. `context` is None without TLS; `keepalive` is in seconds.

    Raises:
        ValueError: An argument cannot be used; the message names it and the fix.
    """

    def __init__(
        self,
        hostname: str,
        port: int | None,
        *,
        username: str | None = None,
        password: str | None = None,
        tls: Literal[True] | ssl.SSLContext | None = None,
        ca_certificate: str | Path | None = None,
        client_certificate: str | Path | None = None,
        client_key: str | Path | None = None,
        client_id: str | None = None,
        keepalive: int = KEEPALIVE,
    ) -> None:
        files = {"ca_certificate": ca_certificate, "client_certificate": client_certificate, "client_key": client_key}
        self.context = _tls_context(tls, {name: str(path) for name, path in files.items() if path is not None})
        if password is not None and username is None:
            raise ValueError("password without username: give both")
        self.hostname = _hostname(hostname)
        self.port = _in_range("port", (TLS_PORT if self.context else PLAIN_PORT) if port is None else port)
        self.username, self.password = _text("username", username), _secret(password)
        self.client_id = _client_id(client_id, self.limits)
        self.keepalive = _in_range("keepalive", keepalive)

    @property
    def address(self) -> str:
        """Host and port of the broker, for messages."""
        return f"[{self.hostname}]:{self.port}" if ":" in self.hostname else f"{self.hostname}:{self.port}"

    @property
    def limits(self) -> TopicLimits:
        """Limits of the broker for topics and client ids, by its host name."""
        return topic_limits(self.hostname)


def _hostname(value: str) -> str:
    if not isinstance(value, str) or not value or any(c in "/@?#" or c.isspace() or not c.isprintable() for c in value):
        # The message omits the value: it may be a URL with a password.
        raise ValueError("hostname must be a host name or an address; for a URL, use MqttConnector.from_url")
    return value


def _in_range(name: str, value: int) -> int:
    if whole(name, value) > _MAX_TWO_BYTES:
        raise ValueError(f"{name}={value!r}: give at most {_MAX_TWO_BYTES:,}")
    return value


def _text(name: str, value: str | None) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or not value or not value.isprintable() or len(value.encode()) > _MAX_TWO_BYTES:
        raise ValueError(
            f"{name}={str(value)[:60]!r}: give a text that can be printed, of at most {_MAX_TWO_BYTES:,} bytes"
        )
    return value


def _client_id(value: str | None, limits: TopicLimits) -> str | None:
    text, most = _text("client_id", value) or "", limits.max_client_id_bytes
    if (size := len(text.encode())) > most:
        raise ValueError(f"client_id={text[:60]!r} has {size:,} bytes: {limits.broker} accepts at most {most:,}")
    return value


def _secret(value: str | None) -> str | None:
    if value is not None and (not isinstance(value, str) or len(value.encode()) > _MAX_TWO_BYTES):
        raise ValueError(f"password: give a text of at most {_MAX_TWO_BYTES:,} bytes")
    return value


def _tls_context(tls: Any, files: dict[str, str]) -> ssl.SSLContext | None:
    if isinstance(tls, ssl.SSLContext):
        if files:
            raise ValueError(f"{', '.join(files)}: load it into the SSLContext that is given as tls")
        return tls
    if tls not in (None, True) or isinstance(tls, int) is not (tls is True):
        raise ValueError(f"tls={tls!r}: give True or an ssl.SSLContext")
    if not tls and not files:
        return None
    if "client_key" in files and "client_certificate" not in files:
        raise ValueError(
            "client_key without client_certificate: give both, or the certificate alone with its key in it"
        )
    for name, path in files.items():
        if not Path(path).is_file():
            raise ValueError(f"{name}={path!r} is not a file: give the path of a PEM file")
    return _load(files)


def _load(files: dict[str, str]) -> ssl.SSLContext:
    ca, certificate = files.get("ca_certificate"), files.get("client_certificate")
    try:
        context = ssl.create_default_context(cafile=ca)
    except (OSError, ssl.SSLError) as error:
        raise ValueError(f"ca_certificate={ca!r} cannot be used: {error}") from None
    if certificate is not None:
        try:
            # Without this argument, OpenSSL prompts for the passphrase of the key at the terminal.
            context.load_cert_chain(certificate, files.get("client_key"), password=lambda: "")
        except (OSError, ssl.SSLError) as error:
            raise ValueError(f"client_certificate={certificate!r} cannot be used with its key: {error}") from None
    return context


def arguments_of(url: str) -> dict[str, Any]:
    """Return the keyword arguments of a connector for `mqtts://user:password@host:8883?ca_certificate=/ca.pem`.

    Raises:
        ValueError: The URL is not one of MQTT, or has unknown parts. No error shows a password.
    """
    parts = _split(url)
    if not parts.hostname:
        raise ValueError("the URL has no host: write it like mqtt://host:1883")
    if parts.path.strip("/") or parts.fragment:
        raise ValueError(f"the URL has more than a host and a query: topics are fixed; {_PERCENT_ENCODE}")
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
        raise ValueError(f"the URL cannot be read: write it like mqtt://host:1883, and {_PERCENT_ENCODE}") from None
    if parts.scheme not in _PORTS:
        scheme = parts.scheme if "://" in url else ""
        raise ValueError(f"scheme {scheme!r} is not supported: write mqtt:// or mqtts://")
    return parts


def _port(parts: SplitResult) -> int | None:
    try:
        return parts.port
    except ValueError:
        # The message omits the value: it may be part of a password.
        raise ValueError(f"the URL's port is not a number from 1 to 65535: give one, and {_PERCENT_ENCODE}") from None


def _query(parts: SplitResult) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if "@" in parts.query:
        raise ValueError(f"the URL's query has an '@': {_PERCENT_ENCODE}")  # part of a password, perhaps
    for key, value in parse_qsl(parts.query, keep_blank_values=True):
        if key not in _QUERY_KEYS:
            raise ValueError(f"unknown query key {key[:60]!r}; use one of {', '.join(_QUERY_KEYS)}")
        if key in _FILE_KEYS and parts.scheme != "mqtts":
            raise ValueError(f"{key} needs TLS; write mqtts://")
        found[key] = value
    if "keepalive" in found:
        if not found["keepalive"].isdecimal():
            raise ValueError(f"keepalive={found['keepalive']!r}: give a whole number of seconds")
        found["keepalive"] = int(found["keepalive"])
    return found


class ClientId:
    """The configured client id, or a unique one. It detects another client with the same id.

    A broker ends the older of two connections with one id, so both clients would reconnect forever. MQTT 5 has a reason
    code for this, which some versions of Mosquitto do not send. Without the code, several consecutive early ends mean
    the same, unless an attempt to connect has failed between them. A configured id then gets a unique suffix. If
    connections still end early, the delays grow, so that each client is connected for some time.

    Attributes:
        value: The id of the next connection.
        used: The id of the latest connection, which the broker may have assigned.
        pause: Seconds until the next attempt to connect, at least.
        is_duplicate: Whether connections end because another client uses the id.
    """

    pause: float
    _longest: float

    def __init__(self, wanted: str | None, username: str | None) -> None:
        self._wanted = wanted
        self._username = username
        self._may_change = wanted is not None
        self._is_reported = False
        self.value = self.used = wanted or _unique(None)
        self._reset()

    def record_end(self, code: int, seconds: float | None, *, is_explained: bool = False) -> str:
        """Record the end of a connection, and return a warning or "".

        `seconds` is the duration of the connection, or None for a failed attempt. `is_explained`: a message is the cause.
        """
        if seconds is None:
            if code in PERMANENT and self._wanted not in {None, self.value}:
                # Some access lists allow only certain client ids.
                self.value, self._may_change = self._wanted or self.value, False
            if not self.is_duplicate:  # the broker was unreachable
                self._reset()
            return ""
        if is_explained or seconds > 2 * MIN_LIFETIME:
            self._reset()
        if is_explained or code not in {0, TAKEN_OVER}:
            return ""
        self._ends += 1
        is_shared = self._wanted is not None or self._username is not None  # otherwise no other client has the id
        if code != TAKEN_OVER and not (is_shared and self._ends >= _MAX_EARLY_ENDS):
            return ""
        return self._on_duplicate("has" if code == TAKEN_OVER else "seems to have")

    def _on_duplicate(self, verb: str) -> str:
        text = f"another client {verb} the id {self.used!r}"
        user = "" if self._username is None else f" {self._username!r}"
        hint = f"if the broker makes the user name{user} the client id, give each process a user of its own"
        if self._may_change:
            self._reset()
            self.value, self._may_change = _unique(self._wanted), False
            self._is_reported = bool(user)
            return f"{text}: continuing as {self.value!r}" + (f"; {hint}" if user else "")
        self.is_duplicate, self._longest = True, min(MIN_LIFETIME, 2 * self._longest or FIRST_DELAY)
        self.pause = self._longest * random_factor()
        if self._is_reported:
            return ""
        self._is_reported = True
        return f"{text}, and each connection of one ends that of the other: give each a client id of its own; {hint}"

    def _reset(self) -> None:
        self._ends, self._longest, self.pause, self.is_duplicate = 0, 0.0, 0.0, False


def _unique(wanted: str | None) -> str:
    suffix = f"-{secrets.token_hex(4)}"
    begin = (wanted or f"cascade-{source()}").encode()[: AWS_LIMITS.max_client_id_bytes - len(suffix)]
    return begin.decode(errors="ignore") + suffix
