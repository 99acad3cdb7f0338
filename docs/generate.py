"""Write the parts of the documentation that follow from the code; `--check` fails if they are not current."""

import sys
from pathlib import Path

from cascade.connectors.otel.metrics import _catalogue as metrics
from cascade.telemetry import attributes

HERE = Path(__file__).parent
ATTRIBUTES = """# Attributes

What Cascade puts on its spans. Names are OpenTelemetry's where its semantic conventions have one. This table is
generated from `cascade.telemetry.attributes`; values are cut at 2,000 bytes.

"""
BEGIN, END = "<!-- generated: the metrics -->\n", "<!-- end -->\n"


def main() -> None:
    _write(HERE / "attributes.md", ATTRIBUTES + attributes.as_markdown() + "\n")
    page = HERE / "metrics.md"
    head, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _write(page, head + BEGIN + metrics.as_markdown() + "\n" + END + rest.partition(END)[2])


def _write(page: Path, wanted: str) -> None:
    if "--check" not in sys.argv:
        page.write_text(wanted, encoding="utf-8")
    elif page.read_text(encoding="utf-8") != wanted:
        sys.exit(f"docs/{page.name} is not current: make docs")


if __name__ == "__main__":
    main()
