"""Arguments, URLs and environment variables: invalid ones are refused, and no password is shown."""

import ssl
import subprocess
import sys
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

import cascade as cs
from cascade.connectors.mqtt import MqttConnector
from cascade.connectors.mqtt.options import MqttOptions, arguments_of
from cascade.runtime.protocols import Backpressure, Capturing, Connector, Unsubscribing
from cascade.telemetry.topics import AWS_LIMITS, MQTT_LIMITS, status_topic


def test_defaults() -> None:
    options = MqttConnector()._options
    assert (options.hostname, options.port, options.keepalive, options.context) == ("localhost", 1883, 30, None)
    assert MqttConnector(tls=True)._options.port == 8883
    assert MqttConnector(port=1, tls=True)._options.port == 1


def test_it_implements_the_optional_protocols_of_the_engine() -> None:
    connector = MqttConnector(capture="results")
    for protocol in (Connector, Backpressure, Capturing, Unsubscribing):
        assert isinstance(connector, protocol)
    assert connector.capture == {"results"}
    assert cs.MqttConnector is MqttConnector


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"hostname": ""}, "hostname must be"),
        ({"hostname": "mqtt://host"}, "from_url"),
        ({"hostname": "a b"}, "hostname must be"),
        ({"hostname": 1}, "hostname must be"),
        ({"port": 0}, "port=0"),
        ({"port": 65_536}, "port=65536: give at most 65,535"),
        ({"port": "1883"}, "port='1883'"),
        ({"port": True}, "port=True"),
        ({"keepalive": 0}, "keepalive=0"),
        ({"keepalive": 70_000}, "keepalive=70000"),
        ({"keepalive": 1.5}, r"keepalive=1\.5"),
        ({"username": ""}, "username=''"),
        ({"username": "a\n"}, "username="),
        ({"password": "x"}, "password without username"),
        ({"username": "a", "password": 1}, "password: give a text"),
        ({"username": "a", "password": "x" * 70_000}, "password: give a text"),
        ({"client_id": ""}, "client_id=''"),
        ({"client_id": "a\0"}, "client_id="),
        ({"tls": "yes"}, "tls='yes': give True or an"),
        ({"tls": 1}, "tls=1"),
        ({"tls": False}, "tls=False"),
        ({"ca_certificate": "/nowhere.pem"}, "ca_certificate='/nowhere.pem' is not a file"),
        ({"client_key": __file__}, "client_key without client_certificate"),
        ({"ca_certificate": __file__}, "ca_certificate=.* cannot be used"),
        ({"client_certificate": __file__}, "client_certificate=.* cannot be used"),
        ({"tls": ssl.create_default_context(), "ca_certificate": __file__}, "load it into the SSLContext"),
        ({"capture": "everything"}, "capture: 'everything' is unknown"),
        ({"flush_timeout": 0}, "flush_timeout=0"),
        ({"resend_window": -1}, "resend_window=-1: give seconds, zero or more"),
        ({"resend_window": float("nan")}, "resend_window=nan"),
        ({"resend_window": float("inf")}, "resend_window=inf"),
        ({"resend_window": True}, "resend_window=True"),
        ({"on_full": "block"}, "on_full='block': choose from 'wait', 'drop'"),
        ({"max_buffer_bytes": 1.5}, "max_buffer_bytes="),
    ],
)
def test_invalid_options_are_refused_with_the_fix(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MqttConnector(**arguments)


def test_an_invalid_organization_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CASCADE_ORG_ID", "a/b")
    with pytest.raises(ValueError, match="CASCADE_ORG_ID"):
        MqttConnector()


AWS = "a3qj468example-ats.iot.eu-central-1.amazonaws.com"


@pytest.mark.parametrize(("org", "project"), [("o" * 128, "p" * 128), ("o" * 100, "p" * 90), ("ä" * 64, "ä" * 60)])
def test_topic_limits_of_aws_apply_to_its_hosts_only(org: str, project: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CASCADE_ORG_ID", org)
    monkeypatch.setenv("CASCADE_PROJECT_ID", project)
    with pytest.raises(ValueError, match=r"256 bytes, the limit of AWS IoT Core: shorten CASCADE_ORG_ID \(\d+ bytes\)"):
        MqttConnector(AWS)
    with pytest.raises(ValueError, match="CASCADE_PROJECT_ID"):
        MqttConnector.from_url(f"mqtts://{AWS}")
    MqttConnector("broker.example.com")


def test_aws_accepts_an_organization_and_a_project_of_160_bytes_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CASCADE_ORG_ID", "o" * 60)
    monkeypatch.setenv("CASCADE_PROJECT_ID", "p" * 100)
    MqttConnector(AWS)
    longest = f"{'h' * 64}-4194304-0123"
    assert 250 < len(status_topic("o" * 60, "p" * 100, longest, AWS_LIMITS)) <= 256


def test_the_client_id_limit_of_aws_applies_to_its_hosts_only() -> None:
    assert MqttConnector(AWS, client_id="c" * 128)._options.client_id == "c" * 128
    for client_id in ("c" * 129, "ä" * 65):
        with pytest.raises(ValueError, match=r"^client_id='(c|ä)+' has 1\d\d bytes: AWS IoT Core accepts at most 128"):
            MqttConnector(AWS, client_id=client_id)
        MqttConnector("broker.example.com", client_id=client_id)


async def test_messages_and_filters_respect_the_limits_of_aws() -> None:
    connector = MqttConnector(AWS)
    with pytest.raises(ValueError, match=r"more than 8 levels, the limit for AWS IoT Core"):
        await connector.publish("a/b/c/d/e/f/g/h/i", {})
    with pytest.raises(ValueError, match=r"256 bytes, the limit of AWS IoT Core"):
        await connector.subscribe("a/" + "b" * 255, _ignore)
    assert MqttConnector("localhost")._options.limits is MQTT_LIMITS


async def _ignore(topic: str, payload: dict[str, Any]) -> None:
    raise AssertionError(topic, payload)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("mqtt://host", {"hostname": "host", "port": 1883}),
        ("mqtts://host", {"hostname": "host", "port": 8883, "tls": True}),
        ("MQTT://Host:1/", {"hostname": "host", "port": 1}),
        ("mqtt://[::1]:2", {"hostname": "::1", "port": 2}),
        ("mqtt://u:p%40%2F%3A@h", {"hostname": "h", "port": 1883, "username": "u", "password": "p@/:"}),
        ("mqtt://u@h", {"hostname": "h", "port": 1883, "username": "u"}),
        (
            "mqtts://h?ca_certificate=/a%20b.pem&client_id=x&keepalive=5",
            {
                "hostname": "h",
                "port": 8883,
                "tls": True,
                "ca_certificate": "/a b.pem",
                "client_id": "x",
                "keepalive": 5,
            },
        ),
    ],
)
def test_urls(url: str, expected: dict[str, Any]) -> None:
    assert arguments_of(url) == expected


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://host", "scheme 'http' is not supported: write mqtt:// or mqtts://"),
        ("host:1883", "scheme '' is not supported"),
        ("", "scheme ''"),
        ("mqtt://", "the URL has no host"),
        ("mqtt://:1883", "the URL has no host"),
        ("mqtt://h:0x1", "port is not a number"),
        ("mqtt://h:70000", "port is not a number"),
        ("mqtt://h/topic", "topics are fixed"),
        ("mqtt://h#x", "topics are fixed"),
        ("mqtt://[::1", "cannot be read"),
        ("mqtt://h?clientid=x", "unknown query key 'clientid'; use one of ca_certificate, "),
        ("mqtt://h?ca_certificate=/x", "ca_certificate needs TLS; write mqtts://"),
        ("mqtt://h?keepalive=x", "keepalive='x'"),
        ("mqtt://h?client_id=", "client_id=''"),
    ],
)
def test_invalid_urls_are_refused(url: str, message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("?", r"\?")):
        MqttConnector.from_url(url)
    with pytest.raises(ValueError, match="CASCADE_MQTT_URL: "):
        MqttConnector.from_environment({"CASCADE_MQTT_URL": url or "x"})


def test_arguments_take_precedence_over_the_url() -> None:
    given = {"client_id": "b", "port": 2, "strict": True}
    with pytest.MonkeyPatch.context() as patch:
        passed: dict[str, Any] = {}
        patch.setattr(MqttConnector, "__init__", lambda _, **arguments: passed.update(arguments))
        MqttConnector.from_url("mqtt://u:p@h:1?client_id=a", **given)
    assert passed == {"hostname": "h", "username": "u", "password": "p", **given}


def test_the_environment() -> None:
    assert repr(MqttConnector.from_environment({})) == "MqttConnector('localhost', 1883)"
    assert repr(MqttConnector.from_environment({"CASCADE_MQTT_URL": " mqtt://u:p@h:7 "})) == "MqttConnector('h', 7)"


SECRET = st.text(st.characters(exclude_categories=["Cs", "Cc", "Cn"]), min_size=1, max_size=20)


@given(SECRET.filter(str.isprintable), SECRET)
def test_percent_encoded_credentials_are_decoded(username: str, password: str) -> None:
    found = arguments_of(f"mqtt://{quote(username, safe='')}:{quote(password, safe='')}@h:1")
    assert (found["username"], found["password"]) == (username, password)


SHOWN = "SeCrEt"


@given(st.text("/?#@:%[]&= ax", max_size=8), st.text("/?#@:%[]&= ax", max_size=8))
def test_neither_errors_nor_reprs_contain_the_password(before: str, after: str) -> None:
    """The URL may be malformed in any way."""
    assert SHOWN not in texts_of(f"mqtt://user:{before}{SHOWN}{after}@host:1883")


def texts_of(url: str) -> str:
    try:
        connector = MqttConnector.from_url(url)
    except ValueError as error:
        return str(error)
    return repr(connector) + str(connector) + repr(MqttOptions(**arguments_of(url)))


def test_a_missing_library_is_reported_with_the_install_command() -> None:
    code = "import sys; sys.modules['paho'] = None; import cascade; cascade.MqttConnector"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "pip install 'cascade-runs[mqtt]'" in done.stderr


def test_paho_is_not_imported_before_it_is_used() -> None:
    code = "import sys, cascade; cascade.task; sys.exit('paho' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_addresses_are_readable() -> None:
    assert MqttOptions("::1", 7).address == "[::1]:7"
