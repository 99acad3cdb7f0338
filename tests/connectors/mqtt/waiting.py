"""Waiting for what a connector's thread does."""

import threading

import pytest

from cascade.connectors.mqtt import MqttConnector
from cascade.connectors.mqtt._link import Link
from tests.waiting import HANG


def hold_back(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Let no connector connect before the event is set: what is sent before a listener has subscribed does not reach it."""
    may_connect, open_link = threading.Event(), Link.open

    def open_later(link: Link) -> None:
        assert may_connect.wait(HANG)
        open_link(link)

    monkeypatch.setattr(Link, "open", open_later)
    return may_connect


def is_connected(connector: MqttConnector) -> bool:
    return connector._session is not None and connector._session.peer.is_connected
