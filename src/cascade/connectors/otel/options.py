"""Options of an export: from arguments, `OTEL_EXPORTER_OTLP_{SIGNAL}_*`, `OTEL_EXPORTER_OTLP_*` and defaults, in this order.

The variables follow the OTLP exporter specification, except that timeouts are in seconds, as in the Python SDK. An invalid
argument raises ValueError. An invalid variable counts as unset, and adds a `SettingWarning` to the options, which is logged
when they are used.
"""

import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple, Self, TypeVar, cast, get_args
from urllib.parse import unquote

from cascade.connectors.otel import environment
from cascade.connectors.otel.endpoint import (
    DEFAULT_ENDPOINTS,
    check_endpoint,
    complete_endpoint,
    has_no_path,
    is_insecure_endpoint,
    protocol_of,
    split_credentials,
    with_path,
    without_password,
)
from cascade.connectors.otel.environment import SettingWarning

Protocol = Literal["grpc", "http/protobuf"]
Signal = Literal["traces", "metrics", "logs"]
Compression = Literal["none", "gzip", "deflate"]
T = TypeVar("T")

DEFAULT_TIMEOUT = 10.0  # seconds; the specification's default
MAX_TIMEOUT = 86_400.0  # seconds
_SUSPICIOUS_TIMEOUT = 1000.0  # seconds; larger values are usually meant as milliseconds

_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_GRPC_HEADER_NAME = re.compile(r"(?!grpc-)[0-9a-z_.-]+", re.IGNORECASE)
_HEADER_VALUE = re.compile(r"[\x20-\x7e\t]*")
_RESERVED_HEADERS = frozenset(
    {
        "connection",
        "content-encoding",
        "content-length",
        "content-type",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
"""Headers that the transport sets."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportOptions:
    """Destination and protocol of one signal.

    `endpoint` is the complete URL for http/protobuf, and a URL or a gRPC target for grpc. `timeout` is in seconds for one
    request. Header names are in lower case. `problems` are the warnings about invalid variables.
    """

    endpoint: str
    protocol: Protocol = "http/protobuf"
    signal: Signal = "traces"
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    timeout: float = DEFAULT_TIMEOUT
    compression: Compression = "none"
    insecure: bool = False
    certificate: str | None = None
    client_key: str | None = None
    client_certificate: str | None = None
    problems: tuple[SettingWarning, ...] = field(default=(), repr=False, compare=False)

    @classmethod
    def from_environment(
        cls,
        *,
        endpoint: str | None = None,
        protocol: str | None = None,
        headers: Mapping[str, str] | None = None,
        signal: Signal = "traces",
        environ: Mapping[str, str] = os.environ,
    ) -> Self:
        """Return the options of arguments and variables.

        Variables without an effect, such as a certificate for an endpoint without TLS, are not read.

        Args:
            endpoint: For http/protobuf, `/v1/{signal}` is appended if it has no path. `/v1/traces` at its end is replaced by
                the path of the signal.
            protocol: Without a setting, it is grpc for port 4317, and otherwise http/protobuf.
            headers: Added to the headers of the environment; they take precedence.
            signal: The signal.
            environ: The variables.

        Raises:
            ValueError: An argument is invalid. The message has the argument, its value and the fix.
            TypeError: An argument is not a string.
        """
        settings = _Settings(environ, signal)
        url, protocol_used = settings.endpoint(endpoint, settings.protocol(protocol))
        url, authorization = split_credentials(url)
        sent = settings.headers(headers or {}, protocol_used)
        if authorization:
            sent.setdefault("authorization", authorization)
        insecure = is_insecure_endpoint(url, read_setting=settings.is_insecure)
        certificate, key, chain = (None, None, None) if insecure else settings.files()
        return cls(
            endpoint=url,
            protocol=protocol_used,
            signal=signal,
            headers=sent,
            timeout=settings.read("TIMEOUT", settings.timeout, DEFAULT_TIMEOUT),
            compression=settings.read("COMPRESSION", settings.compression(protocol_used), "none"),
            insecure=insecure,
            certificate=certificate,
            client_key=key,
            client_certificate=chain,
            problems=tuple(settings.problems),
        )


class _Setting(NamedTuple):
    source: str
    value: str
    is_argument: bool = False


class _Address(NamedTuple):
    url: str
    protocol: Protocol


class _Settings:
    """Reads the settings of one signal, and collects the warnings."""

    def __init__(self, environ: Mapping[str, str], signal: Signal) -> None:
        self._environ = environ
        self._signal = signal
        self._own_prefix = f"OTEL_EXPORTER_OTLP_{signal.upper()}_"
        self.problems: list[SettingWarning] = []

    def read(self, name: str, parse: Callable[[_Setting], T], default: T, argument: str | None = None) -> T:
        """Return the first valid value: of the argument, the variable of the signal, the variable of all signals."""
        if argument and not isinstance(argument, str):
            raise TypeError(f"{name.lower()}={argument!r} is not a string")
        if argument:
            return parse(_Setting(name.lower(), argument.strip(), is_argument=True))
        for prefix in (self._own_prefix, "OTEL_EXPORTER_OTLP_"):
            if value := environment.value(self._environ, prefix + name):
                setting = _Setting(prefix + name, value)
                try:
                    return parse(setting)
                except ValueError as error:
                    self.note(setting, f"{error}; the variable is ignored")
        return default

    def note(self, setting: _Setting, message: str) -> None:
        self.problems.append(SettingWarning(setting.source, setting.value, message))

    def protocol(self, argument: str | None) -> Protocol | None:
        """Return the protocol. The name of an exporter, such as otlp_proto_grpc, takes precedence over variables."""
        fixed = None if argument else environment.exporters(self._environ, self._signal).protocol
        return fixed or self.read("PROTOCOL", self._protocol, None, argument)

    def _protocol(self, setting: _Setting) -> Protocol:
        value = setting.value if setting.is_argument else setting.value.lower()
        if value == "http/json" and not setting.is_argument:
            self.note(setting, f"{setting.source}={setting.value!r} is not supported; http/protobuf is used")
            return "http/protobuf"
        if value not in get_args(Protocol):
            raise ValueError(f"{setting.source}={setting.value!r} is not supported: choose grpc or http/protobuf")
        return cast("Protocol", value)

    def endpoint(self, argument: str | None, protocol: Protocol | None) -> _Address:
        fixed = environment.exporters(self._environ, "traces").protocol
        default = protocol or fixed or "http/protobuf"

        def parse(setting: _Setting) -> _Address:
            is_own = setting.source.startswith(self._own_prefix)
            protocol_used = protocol or protocol_of(setting.value) or (None if is_own else fixed) or "http/protobuf"
            url = setting.value if setting.is_argument else complete_endpoint(setting.value, protocol_used)
            check_endpoint(url, protocol=protocol_used, source=setting.source)
            if url != setting.value:
                shown, used = without_password(setting.value), without_password(url)
                self.note(setting, f"{setting.source}={shown!r} is not a complete endpoint; {used} is used")
            return _Address(
                self._with_path(url, setting, is_own=is_own) if protocol_used != "grpc" else url, protocol_used
            )

        url = DEFAULT_ENDPOINTS[default]
        if default != "grpc":
            url = with_path(url, f"v1/{self._signal}")
        return self.read("ENDPOINT", parse, _Address(url, default), argument)

    def _with_path(self, url: str, setting: _Setting, *, is_own: bool) -> str:
        if setting.is_argument and url.endswith("/v1/traces"):
            return f"{url.removesuffix('traces')}{self._signal}"
        if is_own or (setting.is_argument and not has_no_path(url)):
            return url
        return with_path(url, f"v1/{self._signal}")

    def is_insecure(self) -> bool | None:
        """Return the setting for an endpoint without a scheme; None if it is unset."""
        return self.read("INSECURE", self._boolean, None)

    def _boolean(self, setting: _Setting) -> bool:
        if setting.value.lower() not in {"true", "false"}:
            self.note(setting, f"{setting.source}={setting.value!r} counts as false; choose true or false")
        return setting.value.lower() == "true"

    def headers(self, given: Mapping[str, str], protocol: Protocol) -> dict[str, str]:
        """Return the headers, with names in lower case. Invalid items of a variable are ignored."""

        def parse(setting: _Setting) -> dict[str, str]:
            usable, errors = {}, []
            for item in filter(None, map(environment.unquoted, setting.value.split(","))):
                try:
                    name, value = _parse_header(item)
                    usable[_checked_name(name, protocol)] = _checked_value(name, value)
                except ValueError as error:
                    errors.append(str(error))
            if errors:
                # The message does not have the value, which is usually a secret.
                self.note(setting, f"{setting.source}: {'; '.join(errors)}; the other headers are sent")
            return usable

        sent = self.read("HEADERS", parse, dict[str, str]())
        for name, value in given.items():
            if not isinstance(value, str):
                raise TypeError(f"headers: the value of {name!r} is not a string; write it as one")
            try:
                sent[_checked_name(name, protocol)] = _checked_value(name, value)
            except ValueError as error:
                raise ValueError(f"headers: {error}") from None
        return sent

    def timeout(self, setting: _Setting) -> float:
        shown = f"{setting.source}={setting.value!r}"
        try:
            seconds = float(setting.value)
        except ValueError:
            seconds = math.nan
        if not 0 < seconds <= MAX_TIMEOUT:
            raise ValueError(f"{shown} is not a time limit: write seconds above zero, such as 10")
        if seconds >= _SUSPICIOUS_TIMEOUT:
            self.note(setting, f"{shown} means seconds, as for the Python SDK; write 10 for ten seconds")
        return seconds

    def compression(self, protocol: Protocol) -> Callable[[_Setting], Compression]:
        choices = [one for one in get_args(Compression) if protocol != "grpc" or one != "deflate"]

        def parse(setting: _Setting) -> Compression:
            value = setting.value.lower()
            if value in choices:
                return cast("Compression", value)
            raise ValueError(f"{setting.source}={setting.value!r} is not supported: choose {' or '.join(choices)}")

        return parse

    def files(self) -> tuple[str | None, str | None, str | None]:
        """Return the certificate of the authority, and the key and certificate of the client, which may share a file."""
        names = ("CERTIFICATE", "CLIENT_KEY", "CLIENT_CERTIFICATE")
        certificate, key, chain = (self.read(name, _file, None) for name in names)
        return certificate, (key or chain) if chain else None, chain


def _parse_header(item: str) -> tuple[str, str]:
    """Parse `name=value`, both URL-encoded, as in W3C Baggage."""
    name, separator, value = item.partition("=")
    if not separator:
        hint = f"{item[:4]}…" if len(item) > len("key=") else item
        raise ValueError(f"{hint!r} has no '='; write it like name=value,name2=value2")
    return unquote(name).strip(), unquote(environment.unquoted(value)).strip()


def _checked_name(name: str, protocol: Protocol) -> str:
    allowed = _GRPC_HEADER_NAME if protocol == "grpc" else _HEADER_NAME
    if not allowed.fullmatch(name):
        raise ValueError(f"{name!r} is not a valid header name; write it like name=value,name2=value2")
    if name.lower() in _RESERVED_HEADERS:
        raise ValueError(f"the header {name!r} describes the request, and cannot be set")
    return name.lower()


def _checked_value(name: str, value: str) -> str:
    if not _HEADER_VALUE.fullmatch(value):
        raise ValueError(
            f"the value of {name!r} contains characters other than printable ASCII; encode it, for example with base64"
        )
    return value


def _file(setting: _Setting) -> str:
    try:
        is_file = Path(setting.value).is_file()
    except OSError:  # a name that is too long
        is_file = False
    if not is_file:
        raise ValueError(f"{setting.source}={setting.value!r} is not a file: give the path of a PEM file")
    return setting.value
