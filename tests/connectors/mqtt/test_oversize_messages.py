"""The filter detects the message that makes the broker end the connection."""

import time

import pytest

import cascade as cs
from cascade.connectors.mqtt.outbox import Outbox, OutgoingMessage
from cascade.connectors.mqtt.oversize_messages import MAX_LOSSES, PAUSE, PoisonMessageFilter
from cascade.telemetry.state_schedule import INTERVAL, RunStates
from cascade.telemetry.wire import dumps
from cascade.testing import MemoryConnector
from tests.connectors.mqtt.messages import telemetry

BODY = dumps(telemetry(output="x" * 6_000))


@pytest.fixture
def outbox() -> Outbox:
    outbox = Outbox()
    outbox.put(OutgoingMessage("t", BODY, 1))
    outbox.take(1, 1)
    return outbox


def test_the_end_of_a_long_connection_is_not_attributed_to_a_message(outbox: Outbox) -> None:
    poison, (message,) = PoisonMessageFilter(outbox, RunStates()), outbox.in_flight()
    for _ in range(2 * MAX_LOSSES):
        poison.record_end(3_600.0, "the connection was lost")
    assert (message.body, poison.max_packet_bytes, outbox.lost) == (BODY, float("inf"), 0)


def test_a_message_is_shrunk_after_two_losses_and_dropped_after_four(outbox: Outbox) -> None:
    poison, (message,) = PoisonMessageFilter(outbox, RunStates()), outbox.in_flight()
    poison.record_end(0.1, "the connection was lost")
    assert message.body == BODY
    poison.record_end(0.1, "the connection was lost")
    assert len(message.body) < len(BODY)
    for _ in range(MAX_LOSSES - 2):
        assert outbox.lost == 0
        poison.record_end(0.1, "the connection was lost")
    assert outbox.lost == 1


def test_after_early_ends_states_are_shrunk_and_then_pause(outbox: Outbox) -> None:
    connector, states = MemoryConnector(), RunStates()
    cs.run(cs.task(int)(), connector=connector, log_level="OFF")
    started, *others = connector.messages
    poison, (message,) = PoisonMessageFilter(outbox, states), outbox.in_flight()
    states.add(started.topic, started.payload)
    poison.record_end(3_600.0, "the connection was lost", 700)
    for _ in range(MAX_LOSSES - 1):
        poison.record_end(0.1, "the connection was lost", 700)
    now = time.monotonic()
    (state,) = states.take(now, 10)
    assert state.body(poison.max_state_bytes), "states of an ordinary size are always allowed"
    poison.record_end(0.1, "the connection was lost", 700)
    states.restart()
    for other in others:
        states.add(other.topic, other.payload)
    assert states.has_settled(1)
    assert states.take(now + PAUSE - INTERVAL, 10) == []
    assert states.refusal == "the broker closed the connection each time it was sent"
    assert (message.losses, outbox.lost) == (0, 0), "the message that was in flight at the same time"
