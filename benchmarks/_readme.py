"""The tables of the README that the benchmarks write."""

from pathlib import Path

README = Path(__file__).parent / "README.md"


def write_table(name: str, table: str) -> None:
    """Replace a table of the README, which is between two comments with its name."""
    start, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
    before, _, rest = README.read_text(encoding="utf-8").partition(start)
    README.write_text(f"{before}{start}\n{table}\n\n{end}{rest.partition(end)[2]}", encoding="utf-8")
