from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cascade.connectors.otel._options import DEFAULT_TIMEOUT, ExportOptions

BASE = "OTEL_EXPORTER_OTLP_ENDPOINT"
TRACES = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"
PROTOCOL = "OTEL_EXPORTER_OTLP_PROTOCOL"
HEADERS = "OTEL_EXPORTER_OTLP_HEADERS"
GRPC = {PROTOCOL: "grpc"}


def options(environ: dict[str, str] | None = None, **arguments: str | None) -> ExportOptions:
    return ExportOptions.from_environment(
        endpoint=arguments.get("endpoint"), protocol=arguments.get("protocol"), environ=environ or {}
    )


def test_defaults() -> None:
    assert options() == ExportOptions(
        endpoint="http://localhost:4318/v1/traces",
        protocol="http/protobuf",
        timeout=DEFAULT_TIMEOUT,
        compression="none",
        insecure=True,
    )
    assert options(GRPC).endpoint == "http://localhost:4317"


@pytest.mark.parametrize(
    ("environ", "argument", "expected"),
    [
        ({BASE: "http://c:4318"}, None, "http://c:4318/v1/traces"),
        ({BASE: "http://c:4318/"}, None, "http://c:4318/v1/traces"),
        ({BASE: "http://c/otlp"}, None, "http://c/otlp/v1/traces"),
        ({BASE: "https://c/otlp/"}, None, "https://c/otlp/v1/traces"),
        ({TRACES: "http://c:4318"}, None, "http://c:4318"),
        ({TRACES: "http://c:4318/mine"}, None, "http://c:4318/mine"),
        ({BASE: "http://base", TRACES: "http://c/x"}, None, "http://c/x"),
        ({BASE: "http://base", TRACES: ""}, None, "http://base/v1/traces"),
        ({BASE: "http://base", TRACES: "http://c/x"}, "http://arg:1", "http://arg:1/v1/traces"),
        ({}, "http://arg/", "http://arg/v1/traces"),
        ({}, "http://arg/x", "http://arg/x"),
        ({}, "http://[::1]:4318", "http://[::1]:4318/v1/traces"),
        (GRPC, "http://arg:99", "http://arg:99"),
        (GRPC | {BASE: "https://c/ignored"}, None, "https://c/ignored"),
        (GRPC, "collector:4317", "collector:4317"),
        (GRPC, "unix:/run/otel.sock", "unix:/run/otel.sock"),
    ],
)
def test_endpoint(environ: dict[str, str], argument: str | None, expected: str) -> None:
    assert options(environ, endpoint=argument).endpoint == expected


@pytest.mark.parametrize("signal", ["metrics", "logs"])
def test_other_signals_have_their_own_variables_and_path(signal: str) -> None:
    environ = {"OTEL_EXPORTER_OTLP_TRACES_TIMEOUT": "3", f"OTEL_EXPORTER_OTLP_{signal.upper()}_TIMEOUT": "4"}
    found = ExportOptions.from_environment(signal=signal, environ=environ)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    assert found.endpoint == f"http://localhost:4318/v1/{signal}"
    assert found.timeout == 4


@pytest.mark.parametrize(
    ("environ", "arguments", "expected"),
    [
        ({BASE: "http://c:4317"}, {}, "grpc"),
        ({}, {"endpoint": "http://c:4317"}, "grpc"),
        ({}, {"endpoint": "c:4317"}, "grpc"),
        ({BASE: "http://c:4318"}, {}, "http/protobuf"),
        ({BASE: "http://c:4317", PROTOCOL: "http/protobuf"}, {}, "http/protobuf"),
        ({PROTOCOL: "http/protobuf", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "grpc"}, {}, "grpc"),
        ({PROTOCOL: "http/protobuf"}, {"protocol": "grpc"}, "grpc"),
    ],
)
def test_protocol(environ: dict[str, str], arguments: dict[str, str], expected: str) -> None:
    assert options(environ, **arguments).protocol == expected


@pytest.mark.parametrize(
    ("endpoint", "insecure", "expected"),
    [
        ("http://c:4317", "false", True),
        ("https://c:4317", "true", False),
        ("c:4317", None, False),
        ("c:4317", "TRUE", True),
        ("c:4317", "yes", False),
    ],
)
def test_the_scheme_decides_over_the_insecure_setting(endpoint: str, insecure: str | None, *, expected: bool) -> None:
    environ = GRPC | ({"OTEL_EXPORTER_OTLP_INSECURE": insecure} if insecure else {})
    assert options(environ, endpoint=endpoint).insecure is expected


def test_headers_of_arguments_join_those_of_the_signal_and_win() -> None:
    environ = {HEADERS: "general=1", "OTEL_EXPORTER_OTLP_TRACES_HEADERS": " Api-Key = a%2Cb%20c= , x=1,"}
    found = ExportOptions.from_environment(headers={"X": "2", "Y": "3"}, environ=environ)
    assert found.headers == {"api-key": "a,b c=", "x": "2", "y": "3"}


@given(st.dictionaries(st.text("abcxyz09-", min_size=1, max_size=9), st.text("!~ ,=;%ab", max_size=9)))
def test_headers_round_trip_through_the_environment(headers: dict[str, str]) -> None:
    listing = ",".join(f"{quote(name)}={quote(value)}" for name, value in headers.items())
    expected = {name: value.strip() for name, value in headers.items()}
    assert options({HEADERS: listing}).headers == expected


def test_user_info_in_the_endpoint_becomes_basic_authorization() -> None:
    found = options(endpoint="https://me:p%40ss@c/x")
    assert found.endpoint == "https://c/x"
    assert found.headers == {"authorization": "Basic bWU6cEBzcw=="}


def test_secrets_are_not_shown() -> None:
    assert "hunter2" not in repr(options({HEADERS: "authorization=hunter2"}))
    with pytest.raises(ValueError, match="has no '='") as caught:
        options({HEADERS: "hunter2-is-the-key"})
    assert "hunter2" not in str(caught.value)
    with pytest.raises(ValueError, match="names no host") as caught:
        options(endpoint="http://me:hunter2@:80")
    assert "hunter2" not in str(caught.value)


def test_files_time_and_compression(tmp_path: Path) -> None:
    pem = tmp_path / "some.pem"
    pem.touch()
    prefix = "OTEL_EXPORTER_OTLP_"
    environ = {
        f"{prefix}CERTIFICATE": str(pem),
        f"{prefix}TRACES_CLIENT_KEY": str(pem),
        f"{prefix}CLIENT_CERTIFICATE": str(pem),
        f"{prefix}TIMEOUT": "2.5",
        f"{prefix}COMPRESSION": "GZIP",
    }
    found = options(environ)
    assert (found.certificate, found.client_key, found.client_certificate) == (str(pem),) * 3
    assert (found.timeout, found.compression) == (2.5, "gzip")


@pytest.mark.parametrize(
    ("environ", "arguments", "says"),
    [
        ({PROTOCOL: "http/json"}, {}, f"{PROTOCOL}='http/json'.*choose grpc or http/protobuf"),
        ({}, {"protocol": "udp"}, "protocol='udp'.*choose grpc or http/protobuf"),
        ({BASE: "localhost:4318"}, {}, f"{BASE}='localhost:4318'.*http://localhost:4318"),
        ({BASE: "ftp://c"}, {}, f"{BASE}='ftp://c'.*http://localhost:4318"),
        ({TRACES: "http://"}, {}, f"{TRACES}='http://'.*http://localhost:4318"),
        ({}, {"endpoint": "http://c:port"}, "endpoint='http://c:port'.*http://localhost:4318"),
        ({}, {"endpoint": "http://c:70000"}, "endpoint='http://c:70000'.*http://localhost:4318"),
        ({}, {"endpoint": "http://a b"}, "endpoint='http://a b'.*http://localhost:4318"),
        ({}, {"endpoint": "collector", "protocol": "grpc"}, "endpoint='collector'.*http://localhost:4317"),
        ({"OTEL_EXPORTER_OTLP_TIMEOUT": "soon"}, {}, "OTEL_EXPORTER_OTLP_TIMEOUT='soon'.*seconds"),
        ({"OTEL_EXPORTER_OTLP_TIMEOUT": "-1"}, {}, "TIMEOUT='-1'.*seconds"),
        ({"OTEL_EXPORTER_OTLP_TIMEOUT": "nan"}, {}, "TIMEOUT='nan'.*seconds"),
        ({"OTEL_EXPORTER_OTLP_COMPRESSION": "zip"}, {}, "COMPRESSION='zip'.*none or gzip or deflate"),
        (GRPC | {"OTEL_EXPORTER_OTLP_COMPRESSION": "deflate"}, {}, "COMPRESSION='deflate'.*none or gzip"),
        ({HEADERS: "a b=c"}, {}, f"{HEADERS}: 'a b'.*name=value"),
        ({HEADERS: "a=x%0d%0ab"}, {}, f"{HEADERS}: the value of 'a'.*ASCII"),
        ({"OTEL_EXPORTER_OTLP_CERTIFICATE": "/no/such"}, {}, "CERTIFICATE='/no/such' is no file"),
    ],
)
def test_a_bad_setting_is_named_with_its_value_and_the_fix(
    environ: dict[str, str], arguments: dict[str, str], says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        options(environ, **arguments)


@given(st.text(max_size=40), st.sampled_from(["grpc", "http/protobuf"]))
def test_any_endpoint_is_either_usable_or_a_value_error(text: str, protocol: str) -> None:
    try:
        found = options(endpoint=text, protocol=protocol)
    except ValueError:
        return
    assert found.endpoint
