"""Where the broker is and how to talk to it, checked before anything is sent."""

import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

from cascade.connectors._arguments import whole

PLAIN_PORT, TLS_PORT = 1883, 8883
"""MQTT's, as IANA has registered them."""
KEEPALIVE = 30
"""Seconds. A broker that is cut off says so for us, by the Last Will, within one and a half times that."""

_MOST = 65_535
"""What MQTT's length fields of two bytes can say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MqttOptions:
    """What a connection is made from. `context` is there if it is encrypted; `keepalive` is in seconds."""

    hostname: str
    port: int
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    context: ssl.SSLContext | None = field(default=None, repr=False)
    client_id: str | None = None
    keepalive: int = KEEPALIVE

    @property
    def address(self) -> str:
        """Where the broker is, for people to read."""
        return f"[{self.hostname}]:{self.port}" if ":" in self.hostname else f"{self.hostname}:{self.port}"

    @classmethod
    def checked(
        cls,
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
    ) -> Self:
        """Options from a connector's arguments.

        Raises:
            ValueError: One of them cannot be used; the message names it and what to do.
        """
        files = {"ca_certificate": ca_certificate, "client_certificate": client_certificate, "client_key": client_key}
        context = _context(tls, {name: str(path) for name, path in files.items() if path is not None})
        if password is not None and username is None:
            raise ValueError("password without username: give both")
        return cls(
            hostname=_hostname(hostname),
            port=_in_range("port", (TLS_PORT if context else PLAIN_PORT) if port is None else port),
            username=_text("username", username),
            password=_secret(password),
            context=context,
            client_id=_text("client_id", client_id),
            keepalive=_in_range("keepalive", keepalive),
        )


def _hostname(value: str) -> str:
    if not isinstance(value, str) or not value or any(c in "/@?#" or c.isspace() or not c.isprintable() for c in value):
        # It may be a URL, and have a password in it.
        raise ValueError("hostname: give a host's name or address, or use MqttConnector.from_url")
    return value


def _in_range(name: str, value: int) -> int:
    if whole(name, value) > _MOST:
        raise ValueError(f"{name}={value!r}: give at most {_MOST:,}")
    return value


def _text(name: str, value: str | None) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or not value or not value.isprintable() or len(value.encode()) > _MOST:
        raise ValueError(f"{name}={str(value)[:60]!r}: give a text that can be printed, of at most {_MOST:,} bytes")
    return value


def _secret(value: str | None) -> str | None:
    if value is not None and (not isinstance(value, str) or len(value.encode()) > _MOST):
        raise ValueError(f"password: give a text of at most {_MOST:,} bytes")
    return value


def _context(tls: Any, files: dict[str, str]) -> ssl.SSLContext | None:
    if isinstance(tls, ssl.SSLContext):
        if files:
            raise ValueError(f"{', '.join(files)}: the business of the SSLContext that is given as tls")
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
            raise ValueError(f"{name}={path!r} is no file: give the path of a PEM file")
    return _load(files)


def _load(files: dict[str, str]) -> ssl.SSLContext:
    ca, certificate = files.get("ca_certificate"), files.get("client_certificate")
    try:
        context = ssl.create_default_context(cafile=ca)
    except (OSError, ssl.SSLError) as error:
        raise ValueError(f"ca_certificate={ca!r} cannot be used: {error}") from None
    if certificate is not None:
        try:
            # Without an answer to its question, OpenSSL would ask for a key's passphrase at the terminal.
            context.load_cert_chain(certificate, files.get("client_key"), password=lambda: "")
        except (OSError, ssl.SSLError) as error:
            raise ValueError(f"client_certificate={certificate!r} cannot be used with its key: {error}") from None
    return context
