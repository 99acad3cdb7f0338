"""Run the report on the standard library, and show its trace as a collector received it.

With OTEL_EXPORTER_OTLP_ENDPOINT set, the spans go there; without it, to a receiver in this process. With
CASCADE_MQTT_URL set, the run is also live on that broker, and can be paused from there.
"""

import os

import stdlib_report

import cascade as cs
from cascade._run import trace_url_template
from cascade.connectors.otel import OtelConnector
from cascade.testing import MemoryConnector, OtlpReceiver, render_trace


def main() -> None:
    if os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT"):
        trace_id = run(OtelConnector())
    else:
        with OtlpReceiver() as receiver:
            trace_id = run(OtelConnector(receiver.http_endpoint))
            spans = receiver.wait_for(lambda spans: any(span.name == "run report" for span in spans))
        print(f"\nThe trace, as received over OTLP: {len(spans)} spans\n")
        print(render_trace(spans))
    print(f"\nTrace {trace_id}")
    if template := trace_url_template(os.environ):
        print(template.replace("{trace_id}", trace_id))


def run(connector: cs.Connector) -> str:
    """Run the workflow, print its answer, and return its trace id."""
    beside = MemoryConnector()
    connectors: list[cs.Connector] = [connector, beside]
    if os.environ.get("CASCADE_MQTT_URL"):
        from cascade.connectors.mqtt import MqttConnector

        connectors.append(MqttConnector.from_environment())
    answer = cs.run(
        stdlib_report.workflow(),
        system_resources=stdlib_report.SYSTEM_RESOURCES,
        log_level="WARNING",
        connector=connectors,
    )
    print(answer)
    return str(beside.payloads[0]["trace_id"])


if __name__ == "__main__":
    main()
