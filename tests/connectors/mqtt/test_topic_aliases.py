"""Topic aliases: a connector uses those that the broker accepts, and each message arrives on its topic."""

from pathlib import Path

import pytest

from tests.connectors.mqtt.brokers import Limit

TOPIC = "cascade/telemetry/local/default/run/events"
TAKEN_OVER = 0x8E


@pytest.mark.parametrize("most", [0, None])
def test_without_topic_alias_maximum_there_is_no_alias(most: int | None, tmp_path: Path) -> None:
    with Limit({"TopicAliasMaximum": most}).kept_by("connack", tmp_path) as observed:
        observed.run()
        assert not [packet for packet in observed.published() if "TopicAlias" in packet.properties]
