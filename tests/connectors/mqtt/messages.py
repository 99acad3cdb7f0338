"""Makes messages to publish, and reads received messages."""

import json
import logging
from typing import Any

import pytest

from tests.connectors.mqtt.broker import Message

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


def telemetry(number: int = 0, **metadata: Any) -> dict[str, Any]:
    """A payload with a number that identifies it."""
    return {
        "v": "1.0",
        "trace_id": TRACE,
        "span_id": SPAN,
        "trace_flags": 1,
        "seq": number,
        "body": {"type": "TaskStateEvent", "state": "COMPLETED", "metadata": metadata},
    }


def telemetry_of(messages: list[Message]) -> list[Message]:
    """Return the messages of runs, without their retained states."""
    return [m for m in messages if m.topic.startswith("cascade/telemetry/") and not m.topic.endswith("/state")]


def events(messages: list[Message]) -> list[dict[str, Any]]:
    """Return the payloads of telemetry messages in their order."""
    return [json.loads(message.payload) for message in telemetry_of(messages)]


def numbers(messages: list[Message]) -> list[int]:
    return [payload["seq"] for payload in events(messages)]


def statuses(messages: list[Message]) -> list[tuple[bytes, bool]]:
    """Return the payloads on status topics, and whether each was retained."""
    return [(m.payload, m.retain) for m in messages if m.topic.startswith("cascade/status/")]


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the warnings of Cascade. asyncio's debug mode also warns on a slow machine."""
    ours = (record for record in caplog.records if record.name.startswith("cascade"))
    return [record.getMessage() for record in ours if record.levelno >= logging.WARNING]
