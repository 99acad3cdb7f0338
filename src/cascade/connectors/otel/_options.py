"""How to export: constructor arguments over `OTEL_EXPORTER_OTLP_{SIGNAL}_*` over `OTEL_EXPORTER_OTLP_*` over defaults.

The variables mean what the OTLP exporter specification says; where it and the Python SDK differ, in the unit of the
timeout, the SDK's seconds hold.
"""

import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple, Self, cast, get_args
from urllib.parse import unquote

from cascade.connectors.otel import _endpoint

Protocol = Literal["grpc", "http/protobuf"]
Compression = Literal["none", "gzip", "deflate"]
Signal = Literal["traces", "metrics", "logs"]

DEFAULT_TIMEOUT = 10.0  # seconds; the specification's default

_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_HEADER_VALUE = re.compile(r"[\x20-\x7e\t]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportOptions:
    """Where one signal goes, and how.

    `endpoint` is complete: for http/protobuf the URL that is posted to, for grpc a URL or a gRPC target. `timeout` is
    in seconds and covers one request. Header names are in lower case.
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
        """Options from arguments and variables.

        An `endpoint` argument without a path gets `/v1/{signal}` under http/protobuf; with one it is used as it is, but
        for `/v1/traces` at its end, which becomes the signal's.
        Without any protocol setting, port 4317 means grpc and everything else http/protobuf. `headers` are added to
        those of the environment and win over them, name by name.

        Raises:
            ValueError: When a setting cannot be used; the message names the setting, its value and the fix.
        """
        settings = _Settings(environ, signal)
        address = settings.of("ENDPOINT", endpoint)
        spoken = _protocol(settings.of("PROTOCOL", protocol), address)
        url = _url(address, spoken, signal, is_argument=bool(endpoint))
        url, authorization = _endpoint.split_credentials(url)
        sent = _headers(settings.of("HEADERS"), headers or {})
        if authorization:
            sent.setdefault("authorization", authorization)
        return cls(
            endpoint=url,
            protocol=spoken,
            signal=signal,
            headers=sent,
            timeout=_timeout(settings.of("TIMEOUT")),
            compression=_compression(settings.of("COMPRESSION"), spoken),
            insecure=_endpoint.is_insecure(url, otherwise=_is_true(settings.of("INSECURE"))),
            certificate=_file(settings.of("CERTIFICATE")),
            client_key=_file(settings.of("CLIENT_KEY")),
            client_certificate=_file(settings.of("CLIENT_CERTIFICATE")),
        )


class _Setting(NamedTuple):
    source: str
    value: str


class _Settings:
    def __init__(self, environ: Mapping[str, str], signal: str) -> None:
        self._environ = environ
        self._prefixes = (f"OTEL_EXPORTER_OTLP_{signal.upper()}_", "OTEL_EXPORTER_OTLP_")

    def of(self, name: str, argument: str | None = None) -> _Setting | None:
        """The value that counts and where it came from; an empty variable is an unset one."""
        if argument:
            return _Setting(name.lower(), argument.strip())
        for prefix in self._prefixes:
            if value := self._environ.get(prefix + name, "").strip():
                return _Setting(prefix + name, value)
        return None


def _protocol(setting: _Setting | None, address: _Setting | None) -> Protocol:
    if setting is None:
        return "grpc" if address and _endpoint.port_of(address.value) == _endpoint.GRPC_PORT else "http/protobuf"
    if setting.value not in get_args(Protocol):
        raise ValueError(f"{setting.source}={setting.value!r} is not supported: choose grpc or http/protobuf")
    return cast("Protocol", setting.value)


def _url(address: _Setting | None, protocol: Protocol, signal: Signal, *, is_argument: bool) -> str:
    source, value = address or _Setting("endpoint", _endpoint.DEFAULTS[protocol])
    _endpoint.checked(value, protocol=protocol, source=source)
    if protocol == "grpc":
        return value
    is_exact = source.startswith(f"OTEL_EXPORTER_OTLP_{signal.upper()}_")
    if is_argument and value.endswith("/v1/traces"):
        return f"{value.removesuffix('traces')}{signal}"
    if is_exact or (is_argument and not _endpoint.is_base(value)):
        return value
    return _endpoint.with_path(value, f"v1/{signal}")


def _headers(setting: _Setting | None, given: Mapping[str, str]) -> dict[str, str]:
    pairs = [*_listed(setting), *(("headers", name, value) for name, value in given.items())]
    result = {}
    for source, name, value in pairs:
        if not _HEADER_NAME.fullmatch(name):
            raise ValueError(f"{source}: {name!r} cannot be a header's name; write it like name=value,name2=value2")
        # The value itself stays out of the message: it is as a rule a secret.
        if not _HEADER_VALUE.fullmatch(value):
            raise ValueError(f"{source}: the value of {name!r} holds more than printable ASCII; encode it, with base64")
        result[name.lower()] = value
    return result


def _listed(setting: _Setting | None) -> Iterator[tuple[str, str, str]]:
    """`k=v,k2=v2`, both sides URL-encoded, as W3C baggage has it."""
    source, listing = setting or _Setting("", "")
    for item in filter(None, (part.strip() for part in listing.split(","))):
        name, separator, value = item.partition("=")
        if not separator:
            hint = f"{item[:4]}…" if len(item) > len("key=") else item
            raise ValueError(f"{source}: {hint!r} has no '='; write it like name=value,name2=value2")
        yield source, unquote(name).strip(), unquote(value).strip()


def _timeout(setting: _Setting | None) -> float:
    if setting is None:
        return DEFAULT_TIMEOUT
    try:
        seconds = float(setting.value)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise ValueError(f"{setting.source}={setting.value!r} is no time limit: write seconds above zero, such as 10")
    return seconds


def _compression(setting: _Setting | None, protocol: Protocol) -> Compression:
    if setting is None:
        return "none"
    choices = [one for one in get_args(Compression) if protocol != "grpc" or one != "deflate"]
    value = setting.value.lower()
    if value not in choices:
        raise ValueError(f"{setting.source}={setting.value!r} is not supported: choose {' or '.join(choices)}")
    return cast("Compression", value)


def _is_true(setting: _Setting | None) -> bool:
    return setting is not None and setting.value.lower() == "true"


def _file(setting: _Setting | None) -> str | None:
    if setting is not None and not Path(setting.value).is_file():
        raise ValueError(f"{setting.source}={setting.value!r} is no file: give the path of a PEM file")
    return setting.value if setting else None
