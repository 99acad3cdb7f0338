"""Waits for the thread of a connector."""

import threading

import pytest

from cascade.connectors.mqtt import MqttConnector
from cascade.connectors.mqtt.client import Client
from tests.lab.waiting import HANG


def delay_connections(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Delay the connections of all connectors until the event is set, so that a listener can subscribe first."""
    may_connect, connect = threading.Event(), Client._client_connect

    def connect_later(client: Client) -> None:
        assert may_connect.wait(HANG)
        connect(client)

    monkeypatch.setattr(Client, "_client_connect", connect_later)
    return may_connect


def is_connected(connector: MqttConnector) -> bool:
    return connector.report().connected
