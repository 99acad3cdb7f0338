"""Raises the time limits of the product to `HANG`, so that no live server counts as unreachable on a loaded machine.

A program that a test starts calls `raise_time_limits()` first. `subprocess_environment()` adds this module to its path.
"""

import importlib
import os
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest

from tests.lab.waiting import HANG

_LIMITS = {
    "cascade.runtime.publish_queue": ("STALL_TIMEOUT",),
    "cascade.adapters.executors.slots": ("STALL_TIMEOUT",),
    "cascade.runtime.threads": ("CANCEL_GRACE",),
    "cascade.runtime._connection": ("CONNECT_TIMEOUT", "DISCONNECT_TIMEOUT"),
    "cascade.runtime.control.controller": ("SUBSCRIBE_TIMEOUT", "LONGEST_SUBSCRIBE"),
    "cascade.runtime.subscribers": ("TelemetrySubscriber.drain_timeout",),
    "cascade.connectors.fanout": ("FanoutConnector.drain_timeout",),
    "cascade.connectors.mqtt.health": ("ANSWER_TIMEOUT",),
    "cascade.connectors.mqtt.client": ("CONNECT_TIMEOUT",),
    "cascade.connectors.mqtt.transport": ("CONNECT_TIMEOUT", "CLOSE_TIMEOUT"),
    "cascade.connectors.mqtt.subscriber": ("SUBSCRIBE_TIMEOUT",),
    "cascade.connectors.mqtt.presence": ("OFFLINE_TIMEOUT",),
    "cascade.connectors.mqtt.connection": ("MIN_LIFETIME",),
    "cascade.connectors.mqtt.oversize_messages": ("MIN_LIFETIME",),
    "cascade.connectors.mqtt.session": ("OFFLINE_TIMEOUT", "CLOSE_TIMEOUT"),
    "cascade.connectors.mqtt.options": ("MIN_LIFETIME",),
    "cascade.connectors.mqtt.connector": ("MqttConnector.flush_timeout", "MqttConnector.resend_window"),
    "cascade.connectors.otel.health": ("FIRST_RESPONSE_WAIT", "MAX_RESPONSE_TIME", "UNREACHABLE_WAIT"),
    "cascade.connectors.otel.flush": ("SLOW", "EXIT_TIMEOUT"),
    "cascade.connectors.otel.connector": ("OtelConnector.flush_timeout", "OtelConnector.hold_timeout"),
}
"""Time limits of the product, in seconds: a constant of the module, or the default of an argument."""


def raise_time_limits(patch: pytest.MonkeyPatch | None = None) -> None:
    """Set each limit to `HANG` seconds. `patch` can undo this."""
    patch = patch or pytest.MonkeyPatch()
    for name, limits in _LIMITS.items():
        module = _module(name)
        for limit in limits if module else ():
            owner, _, argument = limit.partition(".")
            if argument:
                patch.setitem(getattr(module, owner).__init__.__kwdefaults__, argument, HANG)
            else:
                patch.setattr(module, limit, HANG)


def subprocess_environment() -> dict[str, str]:
    """Return the variables of this process for a program in another folder that imports `tests`."""
    paths = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}


@cache
def _module(name: str) -> ModuleType | None:
    """Return the module; None if its extra is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None
