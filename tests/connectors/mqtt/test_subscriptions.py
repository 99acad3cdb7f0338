"""The latest message of each topic, within a memory limit."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cascade.connectors.mqtt import subscriptions
from cascade.connectors.mqtt.subscriptions import ENTRY_BYTES, LatestMessages, incoming

TOPICS = st.sampled_from("abcdef")


@given(st.lists(st.one_of(TOPICS, st.tuples(TOPICS, st.integers(0, 300)))))
def test_memory_is_bounded_and_topics_keep_the_order_of_messages(steps: list[str | tuple[str, int]]) -> None:
    latest, expected = LatestMessages(), dict[str, bytes]()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subscriptions, "CAPACITY", 1_000)
        for step in steps:
            if isinstance(step, str):
                assert latest.take(step) == expected.pop(step, None)
                continue
            topic, message = step[0], b"x" * step[1]
            if latest.put(topic, message):
                expected.pop(topic, None)
                expected[topic] = message
            assert list(latest.items()) == list(expected.items())
            size = sum(ENTRY_BYTES + 1 + len(message) for message in expected.values())
            assert size <= 1_000
            assert latest.put(topic, expected.get(topic, b"")) or size + ENTRY_BYTES + 1 > 1_000
            expected = dict(latest)  # type: ignore[arg-type]
    assert latest.take_first(2) == list(expected.items())[:2]
    assert list(latest.items()) == list(expected.items())[2:]


def test_a_message_above_the_limit_is_not_stored() -> None:
    latest = LatestMessages()
    assert latest.put("t", incoming(b"x" * 1_000_000))
    assert latest.put("t", incoming(b"{}"))
    assert latest.take("t") == b"{}"
    assert latest.take("t") is None
