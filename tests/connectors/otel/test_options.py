import re
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cascade.connectors.otel.options import DEFAULT_TIMEOUT, ExportOptions

BASE = "OTEL_EXPORTER_OTLP_ENDPOINT"
TRACES = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"
PROTOCOL = "OTEL_EXPORTER_OTLP_PROTOCOL"
HEADERS = "OTEL_EXPORTER_OTLP_HEADERS"
EXPORTER = "OTEL_TRACES_EXPORTER"
GRPC = {PROTOCOL: "grpc"}


def options(environ: dict[str, str] | None = None, **arguments: str | None) -> ExportOptions:
    return ExportOptions.from_environment(
        endpoint=arguments.get("endpoint"), protocol=arguments.get("protocol"), environ=environ or {}
    )


def messages(found: ExportOptions) -> str:
    return "\n".join(problem.message for problem in found.problems)


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
        ({BASE: "unix:///run/otel.sock"}, None, "unix:///run/otel.sock"),
        ({BASE: " http://c:4318\n"}, None, "http://c:4318/v1/traces"),
        ({BASE: '"http://c:4318"'}, None, "http://c:4318/v1/traces"),
        ({TRACES: "\n", BASE: "''"}, None, "http://localhost:4318/v1/traces"),
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
        ({PROTOCOL: " GRPC "}, {}, "grpc"),
        ({PROTOCOL: "HTTP/Protobuf", BASE: "http://c:4317"}, {}, "http/protobuf"),
        ({PROTOCOL: ""}, {}, "http/protobuf"),
        ({BASE: "unix:/run/otel.sock"}, {}, "grpc"),
        ({EXPORTER: "otlp_proto_grpc"}, {}, "grpc"),
        ({EXPORTER: "console,OTLP_proto_http", BASE: "http://c:4317"}, {}, "http/protobuf"),
        ({EXPORTER: "otlp_proto_grpc", PROTOCOL: "http/protobuf"}, {}, "grpc"),
        ({EXPORTER: "otlp_proto_grpc"}, {"protocol": "http/protobuf"}, "http/protobuf"),
    ],
)
def test_protocol(environ: dict[str, str], arguments: dict[str, str], expected: str) -> None:
    assert options(environ, **arguments).protocol == expected


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({EXPORTER: "otlp_proto_grpc", BASE: "http://c:1"}, "grpc"),
        ({EXPORTER: "otlp_proto_grpc"}, "grpc"),
        ({EXPORTER: "otlp_proto_grpc", "OTEL_METRICS_EXPORTER": "otlp_proto_http"}, "http/protobuf"),
        ({EXPORTER: "otlp_proto_grpc", "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "http://c:1"}, "http/protobuf"),
    ],
)
def test_other_signals_follow_the_exporter_of_the_spans_to_the_same_endpoint(
    environ: dict[str, str], expected: str
) -> None:
    assert ExportOptions.from_environment(signal="metrics", environ=environ).protocol == expected


@pytest.mark.parametrize(
    ("endpoint", "insecure", "expected"),
    [
        ("http://c:4317", "false", True),
        ("https://c:4317", "true", False),
        ("c:4317", None, False),
        ("c:4317", "TRUE", True),
        ("c:4317", "yes", False),
        ("unix:/run/otel.sock", None, True),
        ("unix:/run/otel.sock", "false", False),
    ],
)
def test_the_scheme_decides_over_the_insecure_setting(endpoint: str, insecure: str | None, *, expected: bool) -> None:
    environ = GRPC | ({"OTEL_EXPORTER_OTLP_INSECURE": insecure} if insecure else {})
    assert options(environ, endpoint=endpoint).insecure is expected


def test_headers_of_arguments_take_precedence() -> None:
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
    for secret in ("hunter2-is-the-key", "key=hunter2%0d", "a b=hunter2"):
        found = options({HEADERS: secret})
        assert "hunter2" not in messages(found) + repr(found)
    assert "hunter2" not in messages(options({BASE: "me:hunter2@c:4318"}))
    with pytest.raises(ValueError, match="names no host") as caught:
        options(endpoint="http://me:hunter2@:80")
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "endpoint", ["http://a..b:4318", f"https://{'a' * 64}.example", "a..b:4317", "dns:///a..b:4317"]
)
def test_a_host_name_that_no_resolver_accepts_is_refused(endpoint: str) -> None:
    protocol = "http/protobuf" if endpoint.startswith("http") else "grpc"
    with pytest.raises(ValueError, match="a label of the host name is empty or longer than 63 characters; write it"):
        options(endpoint=endpoint, protocol=protocol)


@pytest.mark.parametrize("endpoint", ["http://collector.example.:4318", "http://[::1]:4318", "http://bücher.example"])
def test_a_host_name_that_a_resolver_accepts_is_valid(endpoint: str) -> None:
    assert options(endpoint=endpoint, protocol="http/protobuf").endpoint.startswith(endpoint)


def test_files_time_and_compression(tmp_path: Path) -> None:
    pem = tmp_path / "some.pem"
    pem.touch()
    prefix = "OTEL_EXPORTER_OTLP_"
    environ = {
        BASE: "https://c",
        f"{prefix}CERTIFICATE": str(pem),
        f"{prefix}TRACES_CLIENT_KEY": str(pem),
        f"{prefix}CLIENT_CERTIFICATE": str(pem),
        f"{prefix}TIMEOUT": "2.5",
        f"{prefix}COMPRESSION": "GZIP",
    }
    found = options(environ)
    assert (found.certificate, found.client_key, found.client_certificate) == (str(pem),) * 3
    assert (found.timeout, found.compression) == (2.5, "gzip")
    del environ[f"{prefix}TRACES_CLIENT_KEY"]
    assert options(environ).client_key == str(pem), "one file may hold both"
    del environ[f"{prefix}CLIENT_CERTIFICATE"]
    assert options(environ | {f"{prefix}CLIENT_KEY": str(pem)}).client_key is None


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"protocol": "udp"}, "protocol='udp'.*choose grpc or http/protobuf"),
        ({"protocol": "http/json"}, "protocol='http/json'.*choose grpc or http/protobuf"),
        ({"endpoint": "localhost:4318"}, "endpoint='localhost:4318'.*http://localhost:4318"),
        ({"endpoint": "http://c:port"}, "endpoint='http://c:port'.*http://localhost:4318"),
        ({"endpoint": "http://c:70000"}, "endpoint='http://c:70000'.*http://localhost:4318"),
        ({"endpoint": "http://a b"}, "endpoint='http://a b'.*http://localhost:4318"),
        ({"endpoint": "collector", "protocol": "grpc"}, "endpoint='collector'.*http://localhost:4317"),
        ({"endpoint": "unix:/run/a", "protocol": "http/protobuf"}, "endpoint='unix:/run/a'.*http://localhost:4318"),
    ],
)
def test_an_error_has_the_argument_its_value_and_the_fix(arguments: dict[str, str], error: str) -> None:
    with pytest.raises(ValueError, match=error):
        options({}, **arguments)


@pytest.mark.parametrize("arguments", [{"endpoint": 4318}, {"protocol": 1}, {"headers": {"a": 1}}])
def test_an_argument_that_is_not_a_string(arguments: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match=f"{next(iter(arguments))}.* is not a string"):
        ExportOptions.from_environment(**arguments, environ={})


@pytest.mark.parametrize(
    ("protocol", "headers", "error"),
    [
        ("http/protobuf", {"a b": "c"}, "headers: 'a b'.*name=value"),
        ("http/protobuf", {"a": "x\r\ny: z"}, "headers: the value of 'a'.*ASCII"),
        ("http/protobuf", {"a": "caf\xe9"}, "headers: the value of 'a'.*ASCII"),
        ("http/protobuf", {"Content-Length": "0"}, "headers: .*'Content-Length'.*cannot be set"),
        ("grpc", {"a!": "c"}, "headers: 'a!'"),
        ("grpc", {"grpc-timeout": "1S"}, "headers: 'grpc-timeout'"),
    ],
)
def test_an_invalid_header(protocol: str, headers: dict[str, str], error: str) -> None:
    with pytest.raises(ValueError, match=error):
        ExportOptions.from_environment(protocol=protocol, headers=headers, environ={})
    variable = ",".join(f"{quote(name)}={quote(value)}" for name, value in headers.items())
    found = options({PROTOCOL: protocol, HEADERS: f"{variable},good=1"})
    assert found.headers == {"good": "1"}
    assert messages(found).startswith(HEADERS)


@pytest.mark.parametrize(
    ("listing", "expected"),
    [
        ('"api-key=abc"', {"api-key": "abc"}),
        ("'api-key=abc,x=1'\n", {"api-key": "abc", "x": "1"}),
        ('api-key="abc"', {"api-key": "abc"}),
        ('"a=1","b=2"', {"a": "1", "b": "2"}),
        ("a=1,\nb=2\n", {"a": "1", "b": "2"}),
        ("a=%22q%22", {"a": '"q"'}),
        ("Authorization=Basic dXNlcjpwYXNzdw==", {"authorization": "Basic dXNlcjpwYXNzdw=="}),
        ("k=a+b/c,empty=", {"k": "a+b/c", "empty": ""}),
        (",,", {}),
    ],
)
def test_the_notations_of_headers(listing: str, expected: dict[str, str]) -> None:
    found = options({HEADERS: listing})
    assert (found.headers, found.problems) == (expected, ())


PREFIX = "OTEL_EXPORTER_OTLP_"
HTTP_DEFAULT = "http://localhost:4318/v1/traces"


@pytest.mark.parametrize(
    ("environ", "expected", "message"),
    [
        ({PROTOCOL: "http/json"}, {"protocol": "http/protobuf"}, f"{PROTOCOL}='http/json'.*http/protobuf is used"),
        ({PROTOCOL: "udp", BASE: "http://c:4317"}, {"protocol": "grpc"}, f"{PROTOCOL}='udp'.*ignored"),
        ({BASE: "localhost:1"}, {"endpoint": "http://localhost:1/v1/traces"}, f"{BASE}='localhost:1'.*is used"),
        ({BASE: "c/otlp"}, {"endpoint": "http://c/otlp/v1/traces"}, f"{BASE}='c/otlp'.*is used"),
        ({BASE: "ftp://c"}, {"endpoint": HTTP_DEFAULT}, f"{BASE}='ftp://c'.*ignored"),
        ({BASE: "http://c:70000"}, {"endpoint": HTTP_DEFAULT}, f"{BASE}='http://c:70000'.*ignored"),
        ({TRACES: "http://", BASE: "http://c"}, {"endpoint": "http://c/v1/traces"}, f"{TRACES}='http://'.*ignored"),
        (GRPC | {BASE: "collector"}, {"endpoint": "collector:4317"}, f"{BASE}='collector'.*collector:4317 is used"),
        (GRPC | {BASE: "tcp://c:1/x"}, {"endpoint": "c:1", "insecure": False}, f"{BASE}='tcp://c:1/x'.*c:1 is used"),
        ({f"{PREFIX}TIMEOUT": "soon"}, {"timeout": 10.0}, f"{PREFIX}TIMEOUT='soon'.*seconds.*ignored"),
        ({f"{PREFIX}TIMEOUT": "10s"}, {"timeout": 10.0}, f"{PREFIX}TIMEOUT='10s'.*ignored"),
        ({f"{PREFIX}TIMEOUT": "-1"}, {"timeout": 10.0}, "TIMEOUT='-1'.*ignored"),
        ({f"{PREFIX}TIMEOUT": "nan"}, {"timeout": 10.0}, "TIMEOUT='nan'.*ignored"),
        ({f"{PREFIX}TIMEOUT": "1e300"}, {"timeout": 10.0}, "TIMEOUT='1e300'.*ignored"),
        ({f"{PREFIX}TIMEOUT": "10000"}, {"timeout": 10_000.0}, "TIMEOUT='10000'.*seconds"),
        ({f"{PREFIX}TRACES_TIMEOUT": "x", f"{PREFIX}TIMEOUT": "3"}, {"timeout": 3.0}, "TRACES_TIMEOUT='x'"),
        ({f"{PREFIX}COMPRESSION": "zstd"}, {"compression": "none"}, "COMPRESSION='zstd'.*none or gzip or deflate"),
        (GRPC | {f"{PREFIX}COMPRESSION": "deflate"}, {"compression": "none"}, "COMPRESSION='deflate'.*none or gzip"),
        ({HEADERS: "nonsense,a=1"}, {"headers": {"a": "1"}}, f"{HEADERS}: 'nons…' has no '='"),
        (
            {BASE: "https://c", f"{PREFIX}CERTIFICATE": "/no/such"},
            {"certificate": None},
            "CERTIFICATE='/no/such' is no",
        ),
        (GRPC | {BASE: "c:1", f"{PREFIX}INSECURE": "1"}, {"insecure": False}, f"{PREFIX}INSECURE='1' counts as false"),
    ],
)
def test_an_invalid_variable_is_a_problem_and_no_error(
    environ: dict[str, str], expected: dict[str, object], message: str
) -> None:
    found = options(environ)
    assert {name: getattr(found, name) for name in expected} == expected
    (problem,) = found.problems
    assert re.search(message, problem.message)
    assert problem.variable in environ


@pytest.mark.parametrize(
    ("environ", "arguments"),
    [
        ({f"{PREFIX}CERTIFICATE": "/no/such", f"{PREFIX}CLIENT_KEY": "/no/such"}, {}),
        ({f"{PREFIX}INSECURE": "maybe"}, {}),
        ({BASE: "nonsense", PROTOCOL: "nonsense"}, {"endpoint": "http://c", "protocol": "grpc"}),
    ],
)
def test_a_variable_that_is_not_used_is_not_validated(environ: dict[str, str], arguments: dict[str, str]) -> None:
    assert options(environ, **arguments).problems == ()


PARTS = [
    "http://",
    "dns:",
    "unix:",
    "ipv6:",
    "//",
    "/",
    "[",
    "]",
    "::1",
    ":",
    "4317",
    "@",
    "=",
    ",",
    "%",
    "%0d%0a",
    "%zz",
]
PARTS += [
    " ",
    "\n",
    '"',
    "'",
    "a",
    "é",
    "中",
    "\udce9",
    "\x7f",
    "#",
    "?",
    "-1",
    "nan",
    "1e999",
    "9" * 5000,
    "\uff11",
    "grpc",
    "gzip",
]


@given(
    st.dictionaries(
        st.sampled_from([f"{PREFIX}{name}" for name in ("ENDPOINT", "PROTOCOL", "HEADERS", "TIMEOUT", "COMPRESSION")]),
        st.lists(st.sampled_from(PARTS), max_size=6).map("".join),
    )
)
def test_no_value_of_a_variable_is_an_error(environ: dict[str, str]) -> None:
    assert options(environ).endpoint


@given(st.text(max_size=40), st.sampled_from(["grpc", "http/protobuf"]))
def test_an_endpoint_is_valid_or_raises_a_value_error(text: str, protocol: str) -> None:
    try:
        found = options(endpoint=text, protocol=protocol)
    except ValueError:
        return
    assert found.endpoint
