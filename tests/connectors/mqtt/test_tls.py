"""Encrypted connections, with valid and invalid certificates."""

import json
import ssl
import subprocess
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

import cascade as cs
from cascade.connectors.mqtt import MqttConnector
from tests.connectors.mqtt.broker import SETTINGS, Broker, Listener
from tests.connectors.mqtt.messages import numbers, telemetry, warnings

TOPIC = "cascade/telemetry/local/default/run/events"


@cs.task
async def one() -> int:
    return 1


def test_tls_with_a_client_certificate(certificates: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    files = ("ca.pem", "server.pem", "server.key", "client.pem", "client.key")
    ca, server, server_key, client, client_key = (str(certificates / name) for name in files)
    listener = (f"cafile {ca}", f"certfile {server}", f"keyfile {server_key}", "require_certificate true")
    with Broker(tmp_path, listener=listener) as broker:
        both: Any = {"client_certificate": client, "client_key": client_key}
        good = MqttConnector("localhost", broker.port, ca_certificate=ca, **both)
        context = ssl.create_default_context(cafile=ca)
        context.load_cert_chain(client, client_key)
        for connector in (good, MqttConnector("localhost", broker.port, tls=context)):
            assert cs.run(one(), connector=connector, log_level="ERROR") == 1
            assert connector.report().queued == connector.report().lost == 0 < connector.report().sent
        query = "&".join(f"{name}={quote(path)}" for name, path in {"ca_certificate": ca, **both}.items())
        by_url = MqttConnector.from_url(f"mqtts://localhost:{broker.port}?{query}")
        assert cs.run(one(), connector=by_url, log_level="ERROR") == 1
        assert warnings(caplog) == []

        cs.run(one(), connector=MqttConnector("localhost", broker.port, tls=True), log_level="ERROR")
        cs.run(one(), connector=MqttConnector("localhost", broker.port, ca_certificate=ca), log_level="ERROR")
        cs.run(one(), connector=MqttConnector("localhost", broker.port), log_level="ERROR")
    wrong_authority, no_certificate, plain = warnings(caplog)
    assert "4 of 4 messages were lost at localhost" in wrong_authority
    assert "certificate verify failed" in wrong_authority
    assert "4 of 4 messages were lost" in no_certificate
    assert "4 of 4 messages were lost" in plain


def test_a_certificate_for_another_host_is_refused(
    certificates: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ca, server, key = (str(certificates / name) for name in ("ca.pem", "server.pem", "server.key"))
    with Broker(tmp_path, listener=(f"certfile {server}", f"keyfile {key}")) as broker:
        cs.run(one(), connector=MqttConnector("127.0.0.1", broker.port, ca_certificate=ca), log_level="ERROR")
    (warning,) = warnings(caplog)
    assert "127.0.0.1" in warning
    assert "certificate verify failed" in warning


def test_a_key_with_a_passphrase_does_not_ask_at_the_terminal(certificates: Path, tmp_path: Path) -> None:
    locked = tmp_path / "locked.key"
    command = ["openssl", "rsa", "-aes128", "-passout", "pass:secret", "-in", str(certificates / "client.key")]
    subprocess.run([*command, "-out", str(locked)], check=True, capture_output=True)
    with pytest.raises(ValueError, match="cannot be used with its key"):
        MqttConnector(client_certificate=certificates / "client.pem", client_key=locked)


async def test_large_amounts_are_sent_in_both_directions(certificates: Path, tmp_path: Path) -> None:
    """TLS may read more bytes than requested, and write fewer than given."""
    server, key, ca = (str(certificates / name) for name in ("server.pem", "server.key", "ca.pem"))
    with Broker(tmp_path, *SETTINGS, listener=(f"certfile {server}", f"keyfile {key}")) as broker:
        context = ssl.create_default_context(cafile=ca)
        with Listener(broker.port, host="localhost", context=context) as listener:
            for number in range(200):
                topic = f"cascade/control/local/default/constraints/task/t{number}/pause"
                listener.publish(topic, json.dumps({"id": "x" * 1_000}), retain=True)
            received: list[dict[str, Any]] = []

            async def record(topic: str, payload: dict[str, Any]) -> None:
                received.append(payload)

            connector = MqttConnector("localhost", broker.port, ca_certificate=ca)
            await connector.connect()
            await connector.subscribe("cascade/control/local/default/#", record)
            assert len(received) == 200
            for number in range(2_000):
                await connector.publish(TOPIC, telemetry(number, text="x" * 1_000), number % 2)
            await connector.disconnect()
            assert numbers(listener.wait_for(lambda seen: numbers(seen[-5:])[-1:] == [1_999])) == list(range(2_000))
