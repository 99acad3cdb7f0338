"""Which message a broker cuts the connection for, and which just happened to be out."""

import pytest

from cascade.connectors.mqtt.connection import MOST_LOSSES, PoisonMessageFilter
from cascade.connectors.mqtt.outbox import Outbox, OutgoingMessage
from cascade.telemetry.wire import dumps
from tests.connectors.mqtt.messages import telemetry

BODY = dumps(telemetry(output="x" * 6_000))


@pytest.fixture
def outbox() -> Outbox:
    outbox = Outbox()
    outbox.put(OutgoingMessage("t", BODY, 1))
    outbox.take(1, 1)
    return outbox


def test_what_was_out_when_a_connection_of_long_standing_broke_is_innocent(outbox: Outbox) -> None:
    poison, (message,) = PoisonMessageFilter(outbox), outbox.out()
    for _ in range(2 * MOST_LOSSES):
        poison.lost(3_600.0, "the connection was lost")
    assert (message.body, poison.most, outbox.lost) == (BODY, float("inf"), 0)


def test_it_is_made_smaller_at_the_second_loss_and_given_up_at_the_last(outbox: Outbox) -> None:
    poison, (message,) = PoisonMessageFilter(outbox), outbox.out()
    poison.lost(0.1, "the connection was lost")
    assert message.body == BODY
    poison.lost(0.1, "the connection was lost")
    assert len(message.body) < len(BODY)
    for _ in range(MOST_LOSSES - 2):
        assert outbox.lost == 0
        poison.lost(0.1, "the connection was lost")
    assert outbox.lost == 1
