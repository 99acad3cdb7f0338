"""Runs the report on the standard library with a live view, and shows its trace as received over OTLP.

The spans go to a receiver in this process. If OTEL_EXPORTER_OTLP_ENDPOINT is set, they go there, and the tree is that of the
console. If CASCADE_MQTT_URL is set, the run is also published on that broker, and control messages can pause it.
"""

import os

import stdlib_report

import cascade as cs
from cascade.connectors.otel import OtelConnector
from cascade.testing import MemoryConnector, OtlpReceiver, render_trace


def main() -> None:
    if os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT"):
        trace_id = run(OtelConnector(), cs.ConsoleConnector())
    else:
        with OtlpReceiver() as receiver:
            trace_id = run(OtelConnector(receiver.http_endpoint), cs.ConsoleConnector(tree=False))
            spans = receiver.wait_for(lambda spans: any(span.name == "run report" for span in spans))
        print(f"\nThe trace, as received over OTLP: {len(spans)} spans\n")
        print(render_trace(spans))
    print(f"\nTrace {trace_id}")
    if template := os.environ.get("CASCADE_TRACE_URL"):
        print(template.replace("{trace_id}", trace_id))


def run(*shown: cs.Connector) -> str:
    """Run the workflow, print its result, and return its trace id."""
    messages = MemoryConnector()
    connectors: list[cs.Connector] = [*shown, messages]
    if os.environ.get("CASCADE_MQTT_URL"):
        from cascade.connectors.mqtt import MqttConnector

        connectors.append(MqttConnector.from_environment())
    result = cs.run(
        stdlib_report.workflow(),
        system_resources=stdlib_report.SYSTEM_RESOURCES,
        max_workers=2,  # the tasks compute in Python, so that more threads would only compete for the interpreter
        log_level="WARNING",
        connector=connectors,
    )
    print(result)
    return str(messages.payloads[0]["trace_id"])


if __name__ == "__main__":
    main()
