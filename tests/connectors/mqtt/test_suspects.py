"""Which message a broker cuts the connection for, and which just happened to be out."""

import pytest

from cascade.connectors.mqtt._outbox import Letter, Outbox
from cascade.connectors.mqtt._suspects import MOST_LOSSES, Suspects
from cascade.telemetry.wire import dumps
from tests.connectors.mqtt.messages import telemetry

BODY = dumps(telemetry(output="x" * 6_000))


@pytest.fixture
def outbox() -> Outbox:
    outbox = Outbox()
    outbox.put(Letter("t", BODY, 1))
    outbox.take(1, 1)
    return outbox


def test_what_was_out_when_a_connection_of_long_standing_broke_is_innocent(outbox: Outbox) -> None:
    suspects, (letter,) = Suspects(), outbox.out()
    for _ in range(2 * MOST_LOSSES):
        suspects.lost(outbox, 3_600.0, "the connection was lost")
    assert (letter.body, suspects.most, outbox.lost) == (BODY, float("inf"), 0)


def test_it_is_made_smaller_at_the_second_loss_and_given_up_at_the_last(outbox: Outbox) -> None:
    suspects, (letter,) = Suspects(), outbox.out()
    suspects.lost(outbox, 0.1, "the connection was lost")
    assert letter.body == BODY
    suspects.lost(outbox, 0.1, "the connection was lost")
    assert len(letter.body) < len(BODY)
    for _ in range(MOST_LOSSES - 2):
        assert outbox.lost == 0
        suspects.lost(outbox, 0.1, "the connection was lost")
    assert outbox.lost == 1
