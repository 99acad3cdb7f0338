"""Waiting for what a connector's thread does."""

import threading

import pytest

from cascade.connectors.mqtt import MqttConnector
from cascade.connectors.mqtt.client import Client
from tests.lab.waiting import HANG


def hold_back(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Let no connector connect before the event is set: what is sent before a listener has subscribed does not reach it."""
    may_connect, connect = threading.Event(), Client._client_connect

    def connect_later(client: Client) -> None:
        assert may_connect.wait(HANG)
        connect(client)

    monkeypatch.setattr(Client, "_client_connect", connect_later)
    return may_connect


def is_connected(connector: MqttConnector) -> bool:
    return connector.report().connected
