import contextlib
import gzip
import re
import socket
import ssl
import subprocess
import threading
import zlib
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.any_pb2 import Any as Packed
from google.rpc.error_details_pb2 import RetryInfo  # type: ignore[import-untyped]
from google.rpc.status_pb2 import Status  # type: ignore[import-untyped]
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTracePartialSuccess,
    ExportTraceServiceResponse,
)

from cascade.connectors.otel.options import ExportOptions
from cascade.connectors.otel.reply import MAX_RETRY_AFTER, Reply
from cascade.connectors.otel.transport import Transport, open_transport, suppress_instrumentation
from tests.connectors.otel import servers
from tests.lab.programs import program
from tests.lab.waiting import HANG

PROTOBUF = {"Content-Type": "application/x-protobuf"}
JSON = {"Content-Type": "application/json"}
PARTIAL = ExportTraceServiceResponse(
    partial_success=ExportTracePartialSuccess(rejected_spans=3, error_message="too\nold")
).SerializeToString()


@contextlib.contextmanager
def transport(endpoint: str, protocol: str = "http/protobuf", **more: Any) -> Iterator[Transport]:
    variables = {f"OTEL_EXPORTER_OTLP_{name.upper()}": value for name, value in more.items()}
    found = ExportOptions.from_environment(endpoint=endpoint, protocol=protocol, environ=variables)
    with contextlib.closing(open_transport(found)) as opened:
        yield opened


def sent(endpoint: str, protocol: str = "http/protobuf", *, timeout: float = HANG, **more: Any) -> Reply:
    with transport(endpoint, protocol, **more) as opened:
        return opened.send(b"", timeout)


def not_otlp(kind: str) -> Reply:
    return Reply("refused", f"the answer is not OTLP but {kind}")


def status_with_retry(seconds: int) -> bytes:
    packed = Packed()
    info = RetryInfo()
    info.retry_delay.seconds = seconds
    packed.Pack(info)
    return bytes(Status(details=[packed]).SerializeToString())


def server_tls(certificate: Path) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    context.set_alpn_protocols(["h2"])
    return context


def answer_over_tls(
    connection: socket.socket, certificate: Path, response: bytes = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
) -> None:
    """Send the response to each request of a TLS connection, which ends after an incomplete response."""
    with server_tls(certificate).wrap_socket(connection, server_side=True) as wrapped:
        while wrapped.recv(65536):
            wrapped.sendall(response)
            if not response.endswith(b"\r\n\r\n"):
                return


class TestHttp:
    def test_one_connection_serves_many_requests(self) -> None:
        with servers.http_server() as server, transport(server.endpoint, headers="X-Key=a%20b") as opened:
            assert [opened.send(body, HANG) for body in (b"1", b"2")] == [Reply("accepted")] * 2
        assert server.bodies == [b"1", b"2"]
        assert server.connections == 1
        assert server.paths == ["/v1/traces"] * 2
        assert server.headers[0]["x-key"] == "a b"
        assert server.headers[0]["content-type"] == "application/x-protobuf"

    @pytest.mark.parametrize("compression", ["gzip", "deflate"])
    def test_compression(self, compression: str) -> None:
        with servers.http_server() as server:
            assert sent(server.endpoint, compression=compression).outcome == "accepted"
        assert server.headers[0]["content-encoding"] == compression
        assert server.bodies == [b""]

    @pytest.mark.parametrize("status", [429, 502, 503, 504])
    def test_a_retryable_response_is_a_response(self, status: int) -> None:
        with servers.http_server() as server:
            server.default_response = (status, {}, b"")
            reply = sent(server.endpoint)
        assert (reply.outcome, reply.unanswered, reply.retry_after) == ("retry", False, None)
        assert reply.reason.startswith(f"{status} ")

    @pytest.mark.parametrize("status", [400, 401, 404, 413, 500, 501])
    def test_refused(self, status: int) -> None:
        with servers.http_server() as server:
            server.default_response = (status, PROTOBUF, Status(message="bad id").SerializeToString())
            reply = sent(server.endpoint)
        assert (reply.outcome, reply.unanswered, reply.too_large) == ("refused", False, status == 413)
        assert reply.reason.endswith(": bad id")

    @pytest.mark.parametrize(
        ("value", "low", "high"),
        [
            ("7", 7, 7),
            ("-7", 0, 0),
            ("1e99", MAX_RETRY_AFTER, MAX_RETRY_AFTER),
            (format_datetime(datetime(2001, 1, 1, tzinfo=UTC), usegmt=True), 0, 0),
        ],
    )
    def test_retry_after(self, value: str, low: float, high: float) -> None:
        with servers.http_server() as server:
            server.default_response = (503, {"Retry-After": value}, b"")
            found = sent(server.endpoint).retry_after
        assert found is not None
        assert low <= found <= high

    def test_retry_after_a_date(self) -> None:
        with servers.http_server() as server:
            date = format_datetime(datetime.now(UTC) + timedelta(seconds=100), usegmt=True)
            server.default_response = (503, {"Retry-After": date}, b"")
            found = sent(server.endpoint).retry_after
        assert found is not None
        assert 30 <= found <= 100

    @pytest.mark.parametrize("value", ["soon", "nan", "", "Fri, 27 Nov 2026 21:30:19 +99999999999999999999"])
    def test_an_invalid_retry_after_is_ignored(self, value: str) -> None:
        with servers.http_server() as server:
            server.default_response = (503, {"Retry-After": value}, b"")
            assert sent(server.endpoint).retry_after is None

    def test_a_redirect_is_not_followed(self) -> None:
        with servers.http_server() as elsewhere, servers.http_server() as server:
            server.default_response = (307, {"Location": elsewhere.endpoint}, b"")
            reply = sent(server.endpoint)
        assert reply.outcome == "refused"
        assert elsewhere.endpoint in reply.reason
        assert not elsewhere.paths

    @pytest.mark.parametrize(
        ("headers", "content", "expected"),
        [
            (PROTOBUF, PARTIAL, Reply("accepted", "too old", rejected=3)),
            (
                {"Content-Type": "application/json"},
                b'{"partialSuccess": {"rejectedSpans": "3", "errorMessage": "too old"}}',
                Reply("accepted", "too old", rejected=3),
            ),
            ({"Content-Type": "application/json"}, b"{}", Reply("accepted")),
            ({"Content-Type": "application/octet-stream"}, PARTIAL, Reply("accepted", "too old", rejected=3)),
            ({}, PARTIAL, Reply("accepted", "too old", rejected=3)),
            ({"Content-Type": "text/html"}, b"", Reply("accepted")),
            (PROTOBUF, b"\xff\xff garbage", Reply("refused", "the answer is not OTLP")),
            ({"Content-Type": "text/html; charset=utf-8"}, b"<html>", not_otlp("text/html")),
            ({"Content-Type": "text/plain"}, b"Hi", not_otlp("text/plain")),
            ({"Content-Type": "text/html"}, PARTIAL, not_otlp("text/html")),
            ({"Content-Type": f"text/{'x' * 500}"}, b"x", not_otlp(f"text/{'x' * 55}…")),
            *(
                (JSON, body, not_otlp("application/json"))
                for body in (b"[1", b"[]", b"null", b'"ok"', b"1", b'{"a": 1}')
            ),
            (JSON, b'{"partialSuccess": {"rejectedSpans": 1e999}}', not_otlp("application/json")),
            (JSON, b'{"partialSuccess": {"rejectedSpans": null, "errorMessage": null}}', Reply("accepted")),
            (JSON, b'{"partialSuccess": "x"}', not_otlp("application/json")),
        ],
    )
    def test_a_response_with_a_success_status(self, headers: dict[str, str], content: bytes, expected: Reply) -> None:
        with servers.http_server() as server:
            server.default_response = (200, headers, content)
            assert sent(server.endpoint) == expected

    def test_an_idle_connection_that_the_server_has_closed_is_replaced(self) -> None:
        with servers.http_server() as server, transport(server.endpoint) as opened:
            server.responses = [(200, {"Connection": "close"}, b""), (200, {}, b"")]
            assert [opened.send(b"", HANG).outcome for _ in range(3)] == ["accepted"] * 3

    def test_a_request_on_a_stale_connection_is_sent_again_at_once(self) -> None:
        served = []

        def one_answer_then_close(connection: socket.socket) -> None:
            served.append(connection.recv(4096))
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
            connection.recv(4096)

        with servers.raw_server(one_answer_then_close) as endpoint, transport(endpoint) as opened:
            assert [opened.send(b"", HANG).outcome for _ in range(3)] == ["accepted"] * 3
        assert len(served) == 3

    @pytest.mark.parametrize(
        ("head", "is_proxy"),
        [(b"HTTP/1.1 200 OK\r\n", False), (b"HTTP/1.1 200 OK\r\n\r\n", False), (b"HTTP/1.1 200 OK\r\n", True)],
    )
    def test_a_server_that_sends_one_byte_at_a_time(
        self, head: bytes, is_proxy: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        stop = threading.Event()

        def send_single_bytes(connection: socket.socket) -> None:
            connection.sendall(head)
            while not stop.wait(0.02):
                connection.sendall(b"X")

        with servers.raw_server(send_single_bytes) as endpoint:
            monkeypatch.setenv("https_proxy", endpoint)
            reply = sent("https://collector.invalid" if is_proxy else endpoint, timeout=0.3)
            stop.set()
        assert reply == Reply("retry", "no answer within 0.3 s", unanswered=True)

    @pytest.mark.parametrize("scheme", ["http", "https"])
    def test_a_server_that_stops_reading(self, scheme: str, certificate: Path) -> None:
        stop = threading.Event()

        def ignore(connection: socket.socket) -> None:
            with server_tls(certificate).wrap_socket(connection, server_side=True) if scheme == "https" else connection:
                stop.wait(HANG)

        with servers.raw_server(ignore) as endpoint:
            url = endpoint.replace("http://127.0.0.1", f"{scheme}://localhost")
            with transport(url, certificate=str(certificate)) as opened:
                reply = opened.send(bytes(32 << 20), 0.5)
            stop.set()
        assert reply == Reply("retry", "no answer within 0.5 s", unanswered=True)

    def test_no_log_records(self, caplog: pytest.LogCaptureFixture) -> None:
        def respond(connection: socket.socket) -> None:
            connection.recv(65536)
            connection.sendall(b"HTTP/1.1 200 OK\r\nno header\r\n\r\n")

        caplog.set_level("DEBUG")
        with servers.raw_server(respond) as endpoint:
            assert sent(endpoint) == Reply("accepted")
            assert "urllib3" in caplog.text
            caplog.clear()
            with suppress_instrumentation():
                assert sent(endpoint) == Reply("accepted")
        assert caplog.text == ""

    @pytest.mark.parametrize(
        ("answer", "reason"),
        [
            (b"", "connection closed before an answer"),
            (b"SSH-2.0-OpenSSH\r\n", "the answer is not HTTP"),
            (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nabc", "connection closed before an answer"),
            (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc", "connection closed before an answer"),
            (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n", "connection closed before an answer"),
            (b"HTTP/1.1 200 OK\r\nContent-Le", "connection closed before an answer"),
            (b"HTTP/1.1 503 Busy\r\nContent-Le", "connection closed before an answer"),
            (b"\x00" * 70_000, "the answer is not HTTP"),
        ],
    )
    def test_an_invalid_or_incomplete_response(self, answer: bytes, reason: str) -> None:
        def respond(connection: socket.socket) -> None:
            connection.recv(65536)
            connection.sendall(answer)

        with servers.raw_server(respond) as endpoint:
            assert sent(endpoint) == Reply("retry", reason, unanswered=True)

    @pytest.mark.parametrize("head", [b"Content-Length: 9\r\n\r\nabc", b"Transfer-Encoding: chunked\r\n\r\n9\r\nabc"])
    def test_an_error_with_an_incomplete_body_is_a_response(self, head: bytes) -> None:
        def respond(connection: socket.socket) -> None:
            connection.recv(65536)
            connection.sendall(b"HTTP/1.1 503 Busy\r\n" + head)

        with servers.raw_server(respond) as endpoint:
            assert sent(endpoint) == Reply("retry", "503 Busy")

    @pytest.mark.parametrize(
        ("status", "expected"),
        [("503 Busy", Reply("retry", "503 Busy", 7.0)), ("400 Bad", Reply("refused", "400 Bad"))],
    )
    def test_an_error_whose_body_does_not_arrive_in_time_is_a_response(self, status: str, expected: Reply) -> None:
        stop = threading.Event()

        def respond(connection: socket.socket) -> None:
            connection.recv(65536)
            connection.sendall(f"HTTP/1.1 {status}\r\nRetry-After: 7\r\nContent-Length: 9\r\n\r\nabc".encode())
            stop.wait(HANG)

        with servers.raw_server(respond) as endpoint:
            reply = sent(endpoint, timeout=0.5)
            stop.set()
        assert reply == expected

    def test_close_ends_the_connection_that_follows_a_failed_request(self) -> None:
        responses = iter([b"HTTP/1.1 200 OK\r\nContent-Le", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"])
        ended = threading.Event()

        def respond(connection: socket.socket) -> None:
            connection.recv(65536)
            connection.sendall(response := next(responses))
            if response.endswith(b"\r\n\r\n") and not connection.recv(65536):
                ended.set()

        with servers.raw_server(respond) as endpoint:
            with transport(endpoint) as opened:
                assert [opened.send(b"", HANG).outcome for _ in range(2)] == ["retry", "accepted"]
            assert ended.wait(HANG)

    @pytest.mark.parametrize("interim", [b"102 Processing\r\n\r\n", b"103 Early Hints\r\nLink: </a>\r\n\r\n"])
    def test_an_interim_response_is_not_the_response(self, interim: bytes) -> None:
        finals = [b"503 Busy", b"400 Bad", b"200 OK"]

        def respond(connection: socket.socket) -> None:
            for final in finals:
                connection.recv(65536)
                connection.sendall(b"HTTP/1.1 " + interim + b"HTTP/1.1 " + final + b"\r\nContent-Length: 0\r\n\r\n")

        with servers.raw_server(respond) as endpoint, transport(endpoint) as opened:
            replies = [opened.send(b"", HANG) for _ in finals]
        assert replies == [Reply("retry", "503 Busy"), Reply("refused", "400 Bad"), Reply("accepted")]

    @pytest.mark.parametrize(
        ("encoding", "compress"), [("gzip", gzip.compress), ("deflate", zlib.compress), ("gzip", bytes)]
    )
    def test_a_compressed_response(self, encoding: str, compress: Callable[[bytes], bytes]) -> None:
        with servers.http_server() as server:
            server.default_response = (200, {**PROTOBUF, "Content-Encoding": encoding}, compress(PARTIAL))
            assert sent(server.endpoint) == Reply("accepted", "too old", rejected=3)

    def test_the_next_address_is_used_if_the_kernel_has_no_socket_for_one(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        found = socket.getaddrinfo
        unsupported = (socket.AF_INET, socket.SOCK_STREAM, 9999, "", ("127.0.0.1", 1))
        monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **more: [unsupported, *found(*args, **more)])
        with servers.http_server() as server:
            assert sent(server.endpoint) == Reply("accepted")

    def test_a_library_that_replaces_ssl_sockets(self, certificate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        wrap = ssl.SSLContext.wrap_socket

        def wrap_in_another_class(context: ssl.SSLContext, *args: Any, **more: Any) -> ssl.SSLSocket:
            """Return a socket of a fixed class, as the context of truststore does."""
            context.sslsocket_class = ssl.SSLSocket
            return wrap(context, *args, **more)

        def respond(connection: socket.socket) -> None:
            answer_over_tls(connection, certificate, next(responses))

        responses = iter([b"HTTP/1.1 200 OK\r\nContent-Le", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"])
        monkeypatch.setattr(ssl.SSLContext, "wrap_socket", wrap_in_another_class)
        with servers.raw_server(respond) as endpoint:
            secure = endpoint.replace("http://127.0.0.1", "https://localhost")
            with transport(secure, certificate=str(certificate)) as opened:
                replies = [opened.send(b"", HANG) for _ in range(3)]
        cut = Reply("retry", "connection closed before an answer", unanswered=True)
        assert replies == [cut, Reply("accepted"), Reply("accepted")]

    def test_a_success_without_a_length_ends_with_the_connection(self) -> None:
        def respond(connection: socket.socket) -> None:
            connection.recv(65536)
            connection.sendall(b"HTTP/1.0 200 OK\r\n\r\n")

        with servers.raw_server(respond) as endpoint:
            assert sent(endpoint) == Reply("accepted")

    def test_an_unknown_host(self) -> None:
        reply = sent("http://nowhere.invalid:4318")
        assert (reply.outcome, reply.unanswered) == ("retry", True)

    def test_through_a_proxy(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with servers.http_server() as proxy:
            monkeypatch.setenv("http_proxy", proxy.endpoint.replace("//", "//me:pw@"))
            assert sent("http://collector.invalid/otlp/v1/traces").outcome == "accepted"
            assert proxy.paths == ["http://collector.invalid/otlp/v1/traces"]
            assert proxy.headers[0]["host"] == "collector.invalid"
            assert proxy.headers[0]["proxy-authorization"] == "Basic bWU6cHc="

    def test_no_proxy(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("http_proxy", servers.unused_endpoint())
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        with servers.http_server() as server:
            assert sent(server.endpoint).outcome == "accepted"

    def test_through_a_tunnel(self, certificate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        connects = []

        def respond(connection: socket.socket) -> None:
            connects.append(connection.recv(4096))
            connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
            answer_over_tls(connection, certificate)

        with (
            servers.raw_server(respond) as proxy,
            transport("https://localhost:1", certificate=str(certificate)) as direct,
        ):
            monkeypatch.setenv("https_proxy", proxy.replace("//", "//me:p%40w@"))
            with transport("https://localhost:1", certificate=str(certificate)) as tunnelled:
                assert [tunnelled.send(b"", HANG) for _ in range(2)] == [Reply("accepted")] * 2
            assert direct.send(b"", HANG).reason == "connection refused"
        assert [connect.partition(b" HTTP")[0] for connect in connects] == [b"CONNECT localhost:1"] * len(connects)
        assert b"Proxy-Authorization: Basic bWU6cEB3\r\n" in connects[0]

    def test_a_proxy_that_refuses_a_tunnel(self, monkeypatch: pytest.MonkeyPatch) -> None:
        connects = []

        def respond(connection: socket.socket) -> None:
            connects.append(connection.recv(4096))
            connection.sendall(b"HTTP/1.1 403 Forbidden\r\n\r\n")

        with servers.raw_server(respond) as endpoint:
            monkeypatch.setenv("https_proxy", endpoint)
            reply = sent("https://collector.invalid")
        # A channel of an earlier test may connect, too.
        assert any(one.startswith(b"CONNECT collector.invalid:443 HTTP/1.") for one in connects)
        assert (reply.outcome, reply.unanswered) == ("retry", True)
        assert "Tunnel connection failed: 403 Forbidden" in reply.reason


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
class TestEither:
    def test_refused_connection(self, protocol: str) -> None:
        assert sent(servers.unused_endpoint(), protocol) == Reply("retry", "connection refused", unanswered=True)

    def test_no_response(self, protocol: str) -> None:
        with servers.silent_server() as endpoint:
            assert sent(endpoint, protocol, timeout=0.2) == Reply("retry", "no answer within 0.2 s", unanswered=True)

    def test_the_next_request_reaches_a_server_that_has_started(self, protocol: str) -> None:
        endpoint = servers.unused_endpoint()
        port = int(endpoint.rpartition(":")[2])
        with transport(endpoint, protocol) as opened:
            assert opened.send(b"", HANG).unanswered
            with servers.http_server(port) if protocol != "grpc" else servers.grpc_server(port):
                assert opened.send(b"", HANG).outcome == "accepted"

    def test_tls(self, protocol: str, certificate: Path) -> None:
        with servers.raw_server(lambda connection: answer_over_tls(connection, certificate)) as endpoint:
            secure = endpoint.replace("http://127.0.0.1", "https://localhost")
            untrusted = sent(secure, protocol)
            known = sent(secure, protocol, certificate=str(certificate))
        assert (untrusted.outcome, untrusted.unanswered) == ("retry", True)
        assert untrusted.reason.startswith("certificate verify failed")
        # The server supports only HTTP/1.1, so that gRPC fails after TLS.
        assert known.outcome == "accepted" if protocol != "grpc" else "certificate" not in known.reason

    @pytest.mark.parametrize("variable", ["NO_PROXY", "no_proxy"])
    @pytest.mark.parametrize("listed", ["127.0.0.0/8", "10.0.0.0/8, 127.0.0.1", "*"])
    def test_no_proxy(self, protocol: str, variable: str, listed: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("http_proxy", servers.unused_endpoint())
        with servers.http_server() if protocol != "grpc" else servers.grpc_server() as server:
            assert sent(server.endpoint, protocol).reason == "connection refused"
            monkeypatch.setenv(variable, listed)
            assert sent(server.endpoint, protocol).outcome == "accepted"

    @pytest.mark.parametrize("proxy", ["socks5://me:hunter2@127.0.0.1:1080", "https://127.0.0.1:1", "http://:port"])
    def test_an_unsupported_proxy(
        self, protocol: str, proxy: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        variable = "all_proxy" if protocol != "grpc" else "grpc_proxy"
        monkeypatch.setenv(variable, proxy)
        with servers.http_server() if protocol != "grpc" else servers.grpc_server() as server:
            for _ in range(2):
                assert sent(server.endpoint, protocol).outcome == "accepted"
        (record,) = caplog.records
        assert record.getMessage().startswith(f"OtelConnector: {variable}='{proxy.replace('me:hunter2@', '')}'")
        assert record.levelname == "WARNING"

    @pytest.mark.parametrize("name", ["certificate", "client_certificate"])
    def test_an_error_names_the_invalid_file(self, protocol: str, name: str, certificate: Path) -> None:
        # The file of the authority has no certificate, the file of the client no key.
        file = __file__ if name == "certificate" else str(certificate.with_suffix(".crt"))
        with pytest.raises(OSError, match=f"{name.replace('_', ' ')}.* cannot be loaded from {re.escape(file)}"):
            sent("https://127.0.0.1:1", protocol, timeout=HANG, **{name: file})

    def test_an_encrypted_key_is_refused_without_a_password_prompt(
        self, protocol: str, certificate: Path, tmp_path: Path
    ) -> None:
        key = tmp_path / "encrypted.key"
        files = ["-in", str(certificate), "-out", str(key)]
        subprocess.run(
            [program("openssl"), "rsa", "-aes256", "-passout", "pass:secret", *files], check=True, capture_output=True
        )
        with pytest.raises(OSError, match="client certificate and key cannot be loaded"):
            sent("https://127.0.0.1:1", protocol, client_certificate=str(certificate), client_key=str(key))


class TestGrpc:
    @pytest.mark.parametrize(
        "form", ["http://{}", "{}", '"http://{}"', "http://me:p\N{LATIN SMALL LETTER A WITH DIAERESIS}@{}/"]
    )
    def test_through_a_proxy(
        self, form: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
    ) -> None:
        connects = []

        def respond(connection: socket.socket) -> None:
            connects.append(connection.recv(4096).partition(b"\r\n")[0])
            connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
            with socket.create_connection(("127.0.0.1", int(server.endpoint.rpartition(":")[2]))) as onwards:
                pipe = threading.Thread(target=servers.forward, args=(onwards, connection))
                pipe.start()
                servers.forward(connection, onwards)
                pipe.join()

        with servers.grpc_server() as server, servers.raw_server(respond) as proxy:
            monkeypatch.setenv("http_proxy", form.format(proxy.removeprefix("http://")))
            assert sent("http://collector.invalid:4317", "grpc").outcome == "accepted"
        # A channel of an earlier test may connect, too.
        assert b"CONNECT collector.invalid:4317 HTTP/1.1" in connects
        assert "proxy" not in capfd.readouterr().err  # the core of gRPC writes its errors to stderr

    def test_a_unix_socket(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("http_proxy", servers.unused_endpoint())
        with servers.grpc_server(address=f"unix://{tmp_path}/otel.sock") as server:
            assert sent(f"unix://{tmp_path}/otel.sock", "grpc").outcome == "accepted"
        assert len(server.bodies) == 1

    def test_accepted(self) -> None:
        with (
            servers.grpc_server() as server,
            transport(server.endpoint, "grpc", headers="X-Key=a%20b,y-bin=1") as opened,
        ):
            assert [opened.send(body, HANG) for body in (b"1", b"2")] == [Reply("accepted")] * 2
            server.response = PARTIAL
            assert opened.send(b"3", HANG) == Reply("accepted", "too old", rejected=3)
        assert server.bodies == [b"1", b"2", b"3"]
        assert server.metadata[0]["x-key"] == "a b"
        assert server.metadata[0]["y-bin"] == b"1"

    def test_gzip(self) -> None:
        with servers.grpc_server() as server:
            assert sent(server.endpoint, "grpc", compression="gzip").outcome == "accepted"

    @pytest.mark.parametrize("code", [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK])
    def test_codes(self, code: grpc.StatusCode) -> None:
        retryable = {"CANCELLED", "DEADLINE_EXCEEDED", "ABORTED", "OUT_OF_RANGE", "UNAVAILABLE", "DATA_LOSS"}
        with servers.grpc_server() as server:
            server.code, server.details = code, "because"
            reply = sent(server.endpoint, "grpc")
        assert reply.outcome == ("retry" if code.name in retryable else "refused")
        assert not reply.unanswered, "the server sent the status"
        assert reply.reason == f"{code.name}: because"

    @pytest.mark.parametrize("details", ["failed to connect to all addresses; last error: x", "Socket closed", ""])
    def test_the_details_of_a_status_do_not_make_it_unanswered(self, details: str) -> None:
        with servers.grpc_server() as server:
            server.code, server.details = grpc.StatusCode.UNAVAILABLE, details
            reply = sent(server.endpoint, "grpc")
        assert (reply.outcome, reply.unanswered) == ("retry", False)

    @pytest.mark.parametrize("status", [b"502", b"503", b"504"])
    def test_an_error_page_of_a_proxy_is_a_response(self, status: bytes) -> None:
        with servers.raw_server(partial(servers.respond_http2, status)) as endpoint:
            reply = sent(endpoint, "grpc")
        assert (reply.outcome, reply.unanswered) == ("retry", False)
        assert status.decode() in reply.reason

    @pytest.mark.parametrize(
        ("status", "is_unanswered"), [(b"502", False), (b"503", False), (b"504", False), (b"400", True)]
    )
    def test_a_response_in_http1_is_a_response_if_it_is_retryable(self, status: bytes, is_unanswered: bool) -> None:
        pages = []

        def respond(connection: socket.socket) -> None:
            pages.append(connection.recv(65536))
            connection.sendall(b"HTTP/1.1 " + status + b" Bad Gateway\r\nContent-Length: 6\r\n\r\n<html>")

        with servers.raw_server(respond) as endpoint, transport(endpoint, "grpc") as opened:
            for count in (1, 2):
                reply = opened.send(b"", HANG)
                assert (reply.outcome, reply.unanswered) == ("retry", is_unanswered)
                assert reply.reason.startswith(f"the answer {status.decode()} is in HTTP/1.1")
                assert len(pages) >= count

    def test_a_connection_that_is_closed_during_a_call_is_unanswered(self) -> None:
        with servers.raw_server(partial(servers.respond_http2, b"")) as endpoint:
            reply = sent(endpoint, "grpc")
        assert (reply.outcome, reply.unanswered) == ("retry", True)

    def test_an_instrumented_channel_has_a_state(self, monkeypatch: pytest.MonkeyPatch) -> None:
        class Pass(grpc.UnaryUnaryClientInterceptor):  # type: ignore[type-arg]
            def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
                return continuation(client_call_details, request)

        plain = grpc.insecure_channel
        monkeypatch.setattr(grpc, "insecure_channel", lambda *args: grpc.intercept_channel(plain(*args), Pass()))
        with servers.grpc_server() as server:
            server.code, server.details = grpc.StatusCode.UNAVAILABLE, "Socket closed"
            assert not sent(server.endpoint, "grpc").unanswered
        assert sent(servers.unused_endpoint(), "grpc").unanswered

    def test_without_a_state_the_details_of_the_status_apply(self, monkeypatch: pytest.MonkeyPatch) -> None:
        class Opaque:
            """Channel of another library, which does not provide its connectivity."""

            def __init__(self, *args: Any) -> None:
                channel = plain(*args)
                self.unary_unary, self.close = channel.unary_unary, channel.close

        plain = grpc.insecure_channel
        monkeypatch.setattr(grpc, "insecure_channel", Opaque)
        assert sent(servers.unused_endpoint(), "grpc") == Reply("retry", "connection refused", unanswered=True)
        with servers.grpc_server() as server:
            server.code = grpc.StatusCode.UNAVAILABLE
            assert not sent(server.endpoint, "grpc").unanswered

    def test_a_response_that_is_not_otlp(self) -> None:
        with servers.grpc_server() as server:
            server.response = b"\xff\xff garbage"
            assert sent(server.endpoint, "grpc") == Reply("refused", "the answer is not OTLP")

    @pytest.mark.parametrize("code", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED])
    def test_each_retryable_code_may_have_a_retry_delay(self, code: grpc.StatusCode) -> None:
        with servers.grpc_server() as server:
            server.code = code
            server.trailing = (("grpc-status-details-bin", status_with_retry(3)),)
            assert sent(server.endpoint, "grpc").retry_after == 3.0

    def test_resource_exhausted_is_retryable_with_a_retry_delay(self) -> None:
        with servers.grpc_server() as server:
            server.code = grpc.StatusCode.RESOURCE_EXHAUSTED
            server.trailing = (("grpc-status-details-bin", status_with_retry(3)),)
            reply = sent(server.endpoint, "grpc")
        assert (reply.outcome, reply.retry_after, reply.unanswered) == ("retry", 3.0, False)

    def test_a_body_above_the_limit_of_the_server(self) -> None:
        with servers.grpc_server() as server, transport(server.endpoint, "grpc") as opened:
            reply = opened.send(bytes(5 << 20), HANG)
        assert (reply.outcome, reply.too_large) == ("refused", True)
