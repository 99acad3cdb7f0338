"""Write the parts of the documentation that follow from the code; `--check` fails if they are not current."""

import sys
from pathlib import Path

from cascade.telemetry.attributes import as_markdown

PAGE = Path(__file__).with_name("attributes.md")
HEAD = """# Attributes

What Cascade puts on its spans. Names are OpenTelemetry's where its semantic conventions have one. This table is
generated from `cascade.telemetry.attributes`; values are cut at 2,000 bytes.

"""


def main() -> None:
    wanted = HEAD + as_markdown() + "\n"
    if "--check" not in sys.argv:
        PAGE.write_text(wanted, encoding="utf-8")
    elif PAGE.read_text(encoding="utf-8") != wanted:
        sys.exit("docs/attributes.md is not current: make docs")


if __name__ == "__main__":
    main()
