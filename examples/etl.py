"""An ETL over 200 files of orders: one file is damaged, a service does not answer at first, and a cache keeps what is done.

    python examples/etl.py [folder]

The second run takes the unchanged files from the cache, and reads the damaged file again. Correct that file, and the third
run reads this one only.
"""

import asyncio
import csv
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import cascade as cs

FILES = 200
DAMAGED = 117


@dataclass(frozen=True)
class Source:
    """A file, and the time of its last change: the cache compares the arguments of a task, not the content of files."""

    path: Path
    modified_ns: int


@cs.task(cache=False)
def find_files(folder: Path) -> list[Source]:
    """Return the files of the folder. A new folder gets a sample in place of real data."""
    if not folder.exists():
        folder.mkdir(parents=True)
        for number in range(FILES):
            amount = "twelve" if number == DAMAGED else str(number)
            rows = [f"{currency},{amount}" for currency in ("EUR", "USD", "GBP")]
            Path(folder, f"orders-{number:03}.csv").write_text("\n".join(["currency,amount", *rows]), encoding="ascii")
    return [Source(path, path.stat().st_mtime_ns) for path in sorted(folder.glob("orders-*.csv"))]


@cs.task(retries=2, retry_delay=0.1, retry_on=OSError, constraints={"disk": 1}, label=lambda file: file.path.name)
def extract(file: Source, encoding: str) -> dict[str, int]:
    """Return the amounts of one file by currency. Another attempt helps against a network disk, not against a damaged file."""
    amounts = Counter[str]()
    with file.path.open(encoding=encoding, newline="") as lines:
        for row in csv.DictReader(lines):
            amounts[row["currency"]] += int(row["amount"])
    return dict(amounts)


@cs.task(timeout=0.5, retries=2)
async def exchange_rates() -> dict[str, float]:
    """Simulate a service that does not answer the first request: the timeout ends it, and the next one succeeds."""
    task = cs.current_task()
    if task is not None and task.attempt == 1:
        await asyncio.Event().wait()
    return {"EUR": 1.0, "USD": 0.92, "GBP": 1.16}


@cs.task
def transform(files: list[dict[str, int] | cs.Failure], rates: dict[str, float]) -> dict[str, float]:
    """Return the totals in euros. A `Failure` takes the place of a file that could not be read."""
    totals = Counter[str]()
    for amounts in files:
        if not isinstance(amounts, cs.Failure):
            totals.update(amounts)
    return {currency: round(amount * rates[currency], 2) for currency, amount in totals.items()}


@cs.task(cache=False)
def load(totals: dict[str, float], target: Path) -> str:
    lines = [f"{currency},{total:.2f}" for currency, total in sorted(totals.items())]
    target.write_text("\n".join(lines), encoding="ascii")
    return f"{target}: {', '.join(lines)}"


def etl(folder: Path) -> cs.LazyResult[str]:
    files = extract.map(file=find_files(folder), encoding=cs.unmapped("ascii")).allow_failure()
    return load(transform(files, exchange_rates()), folder / "totals.csv")


def main(folder: Path) -> None:
    result = cs.execute(
        etl(folder),
        name="etl",
        timeout=600,
        system_resources={"disk": 4},
        cache=cs.DiskCache(folder / ".cascade"),
        connector=cs.ConsoleConnector(),
    )
    print(result.unwrap())
    for failure in result.failures:
        print(f"Left out: {failure.task_name}, item {failure.map_index}: {failure.error}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "etl-data"))
