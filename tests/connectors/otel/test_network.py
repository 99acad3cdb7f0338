"""Choice of the proxy for an endpoint."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cascade.connectors.otel.endpoint import server_of
from cascade.connectors.otel.network import grpc_proxy_of, is_exempt, proxy_of
from cascade.connectors.otel.options import ExportOptions
from cascade.connectors.otel.transport import open_transport

PROXY = "http://proxy:3128"


@pytest.mark.parametrize(
    ("listed", "host", "port", "expected"),
    [
        ("", "127.0.0.1", 4318, False),
        ("*", "collector", 4318, True),
        ("127.0.0.0/8", "127.0.0.1", 4318, True),
        ("localhost,127.0.0.0/8", "128.0.0.1", 4318, False),
        ("10.0.0.0/8 192.168.0.0/16", "192.168.3.4", 4318, True),
        ("192.168.3.7/16", "192.168.3.4", 4318, True),
        ("10.0.0.0/99", "10.0.0.1", 4318, False),
        ("127.0.0.1", "127.0.0.11", 4318, False),
        ("127.0.0.0/8", "::ffff:127.0.0.1", 4318, True),
        ("10.0.0.0/8", "10.example.com", 4318, False),
        ("::1", "::1", 4318, True),
        ("[::1]", "::1", 4318, True),
        ("[::1]:4318", "::1", 4318, True),
        ("[::1]:4317", "::1", 4318, False),
        ("0:0:0:0:0:0:0:1", "::1", 4318, True),
        ("fd00::/8", "fd00::7", 4318, True),
        ("fd00::/8", "fe80::7", 4318, False),
        ("::1", "127.0.0.1", 4318, False),
        ("127.0.0.1:4318", "127.0.0.1", 4318, True),
        ("127.0.0.1:4317", "127.0.0.1", 4318, False),
        ("127.0.0.0/8:4317", "127.0.0.1", 4318, False),
        ("example.com", "otel.example.com", 4318, True),
        ("example.com", "example.com", 4318, True),
        ("example.com", "badexample.com", 4318, False),
        (".example.com", "otel.example.com", 4318, True),
        ("*.example.com", "otel.example.com", 4318, True),
        ("EXAMPLE.com.", "Otel.Example.COM.", 4318, True),
        ("example.com:4318", "otel.example.com", 4318, True),
        ("example.com:4317", "otel.example.com", 4318, False),
        (",, ,", "collector", 4318, False),
        (".", "collector", 4318, False),
        ("localhost", "127.0.0.1", 4318, False),
    ],
)
@pytest.mark.parametrize("variable", ["NO_PROXY", "no_proxy"])
def test_no_proxy(
    variable: str, listed: str, host: str, port: int, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, listed)
    assert is_exempt(host, port) is expected


@pytest.mark.parametrize(
    ("environ", "scheme", "host", "expected"),
    [
        ({"HTTP_PROXY": PROXY}, "http", "c", PROXY),
        ({"http_proxy": PROXY, "HTTP_PROXY": "http://other"}, "http", "c", PROXY),
        ({"HTTP_PROXY": PROXY}, "https", "c", None),
        ({"HTTPS_PROXY": PROXY}, "https", "c", PROXY),
        ({"HTTPS_PROXY": "proxy:3128"}, "https", "c", PROXY),
        ({"HTTPS_PROXY": f"'{PROXY}'"}, "https", "c", PROXY),
        ({"ALL_PROXY": PROXY}, "http", "c", PROXY),
        ({"ALL_PROXY": PROXY}, "https", "c", PROXY),
        ({"ALL_PROXY": "http://other", "HTTP_PROXY": PROXY}, "http", "c", PROXY),
        ({"ALL_PROXY": "socks5h://proxy:1", "HTTP_PROXY": PROXY}, "http", "c", PROXY),
        ({"HTTP_PROXY": ""}, "http", "c", None),
        ({"HTTP_PROXY": PROXY, "NO_PROXY": "::1"}, "http", "::1", None),
        ({"HTTPS_PROXY": PROXY, "NO_PROXY": "[::1]:4318"}, "https", "[::1]", None),
        ({"HTTP_PROXY": PROXY, "NO_PROXY": "10.0.0.0/8"}, "http", "10.1.2.3", None),
    ],
)
def test_the_proxy(
    environ: dict[str, str], scheme: str, host: str, expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    proxy = proxy_of(scheme, host, 4318)
    assert (proxy and proxy.url) == expected


@pytest.mark.parametrize(
    ("target", "server"),
    [
        ("c:4317", ("c", 4317)),
        ("[::1]:4317", ("::1", 4317)),
        ("dns:///c:4317", ("c", 4317)),
        ("dns://8.8.8.8/c", ("c", 443)),
        ("ipv4:127.0.0.1:4317", ("127.0.0.1", 4317)),
        ("ipv6:[::1]:4317", ("::1", 4317)),
        ("ipv4:127.0.0.1:1,127.0.0.2:2", ("", 443)),
    ],
)
def test_the_server_of_a_grpc_target(target: str, server: tuple[str, int]) -> None:
    assert server_of(target) == server


def test_grpc_reads_variables_in_lower_case(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", PROXY)
    assert grpc_proxy_of("c", 4317) == ""
    monkeypatch.setenv("http_proxy", "proxy:1")
    assert grpc_proxy_of("c", 4317) == "http://proxy:1"
    monkeypatch.setenv("https_proxy", f'"{PROXY}"')
    assert grpc_proxy_of("c", 4317) == PROXY
    monkeypatch.setenv("NO_PROXY", "c")
    assert grpc_proxy_of("c", 4317) == ""
    monkeypatch.setenv("NO_PROXY", "d")
    monkeypatch.setenv("grpc_proxy", "")
    assert grpc_proxy_of("c", 4317) == ""


PARTS = [
    "http://",
    "socks5://",
    "[",
    "]",
    "::1",
    ":",
    "4318",
    "@",
    "=",
    ",",
    "%zz",
    " ",
    '"',
    "a",
    "中",
    "\udce9",
    "#",
    "*",
    "/",
]
TEXTS = st.lists(st.sampled_from([*PARTS, "9" * 5000, "10.0.0.0/8", "."]), max_size=6).map("".join)


@given(TEXTS, TEXTS)
def test_no_value_of_a_variable_is_an_error(proxy: str, listed: str) -> None:
    with pytest.MonkeyPatch.context() as environment:
        for name in ("http_proxy", "grpc_proxy"):
            environment.setenv(name, proxy)
        environment.setenv("no_proxy", listed)
        open_transport(ExportOptions(endpoint="http://10.0.0.1:4318/v1/traces")).close()
        assert grpc_proxy_of("10.0.0.1", 4317)[:7] in {"", "http://"}
