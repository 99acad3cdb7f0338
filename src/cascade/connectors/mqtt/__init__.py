"""Publishes runs over MQTT 5 and receives control messages. Requires the extra `[mqtt]`."""

from cascade._imports import missing_extra

try:
    from cascade.connectors.mqtt.connector import MqttConnector
except ImportError as error:
    if (error.name or "").partition(".")[0] in {"aiomqtt", "paho"}:
        raise missing_extra("mqtt", error) from error
    raise

__all__ = ["MqttConnector"]
