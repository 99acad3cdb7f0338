"""Publishes control messages from its own process and reports the time of each."""

import json
import sys
import time

from benchmarks._process import LineProcess

_MAIN = "__main__"


class ControlPublisher(LineProcess):
    """The handle of the publishing process."""

    def __init__(self, port: int) -> None:
        super().__init__("benchmarks._publisher", str(port))

    def publish(self, topic: str, payload: bytes) -> None:
        """Request the publication of a retained message; returns before it is published."""
        self.write_line(json.dumps([topic, payload.decode()]))

    def published_at(self) -> float:
        """Return the Unix time at which the next requested message was published; blocks until it is published."""
        return float(self.read_line())


def main() -> None:
    from paho.mqtt.client import Client
    from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

    client = Client(CallbackAPIVersion.VERSION2, protocol=MQTTProtocolVersion.MQTTv5)
    client.connect("127.0.0.1", int(sys.argv[1]))
    client.loop_start()
    for line in sys.stdin:
        topic, payload = json.loads(line)
        moment = time.time()
        client.publish(topic, payload, 1, retain=True).wait_for_publish()
        print(moment, flush=True)
    client.disconnect()
    client.loop_stop()


if __name__ == _MAIN:
    main()
