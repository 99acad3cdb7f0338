"""Generates documentation from the code. With `--check`, fails if the files are not current."""

import json
import sys
from pathlib import Path

from cascade.connectors.otel.metrics import catalogue
from cascade.telemetry import attributes
from docs.asyncapi import document
from docs.schemas import tables_of_metadata

HERE = Path(__file__).parent
ATTRIBUTES = """# Attributes

The attributes of Cascade's spans, metrics, log records and resource. If OpenTelemetry's semantic conventions define a name
for a value, the attribute has that name. Values are cut at 2,000 bytes, and stack traces at 16 KiB. The table is generated
from `cascade.telemetry.attributes`.

"""
END = "<!-- end -->\n"


def main() -> None:
    _write(HERE / "attributes.md", ATTRIBUTES + _table_of_attributes())
    _write(HERE / "asyncapi.json", json.dumps(document(), indent=2) + "\n")
    _fill(HERE / "metrics.md", "<!-- generated: the metrics -->\n", _table_of_metrics())
    _fill(HERE / "wire.md", "<!-- generated: the keys of metadata -->\n", tables_of_metadata())
    access = (HERE.parent / "stack" / "mosquitto" / "acl.example").read_text(encoding="utf-8")
    _fill(HERE / "mqtt.md", "<!-- generated: stack/mosquitto/acl.example -->\n", f"```text\n{access}```\n")
    home = (HERE.parent / "examples" / "home_assistant.yaml").read_text(encoding="utf-8")
    _fill(HERE / "mqtt.md", "<!-- generated: examples/home_assistant.yaml -->\n", f"```yaml\n{home}```\n")


def _table_of_attributes() -> str:
    lines = ["| attribute | type | on | meaning |", "|---|---|---|---|"]
    lines += [f"| `{row.name}` | {row.type} | {row.spans} | {row.meaning} |" for row in attributes.DOCUMENTED]
    return "\n".join(lines) + "\n"


def _table_of_metrics() -> str:
    lines = ["| metric | type | unit | attributes | meaning |", "|---|---|---|---|---|"]
    for metric in catalogue.METRICS:
        names = ", ".join(f"`{name}`" for name in metric.attributes)
        lines.append(f"| `{metric.name}` | {metric.kind} | `{metric.unit}` | {names} | {metric.description} |")
    return "\n".join(lines) + "\n"


def _fill(page: Path, begin: str, wanted: str) -> None:
    head, _, rest = page.read_text(encoding="utf-8").partition(begin)
    _write(page, head + begin + wanted + END + rest.partition(END)[2])


def _write(page: Path, wanted: str) -> None:
    if "--check" not in sys.argv:
        page.write_text(wanted, encoding="utf-8")
    elif page.read_text(encoding="utf-8") != wanted:
        sys.exit(f"docs/{page.name} is not current: make docs")


if __name__ == "__main__":
    main()
