"""Who steers, in a process of its own: publishes what it is told on stdin, and says when that was."""

import json
import sys
import time

from benchmarks._beside import Beside

_MAIN = "__main__"


class Gardener(Beside):
    """The handle of the process."""

    def __init__(self, port: int) -> None:
        super().__init__("benchmarks._gardener", str(port))

    def publish(self, topic: str, payload: bytes) -> None:
        """Let it be published, retained, soon."""
        self.tell(json.dumps([topic, payload.decode()]))

    def published_at(self) -> float:
        """When the next one was, in Unix seconds; blocks until it is."""
        return float(self.hear())


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
