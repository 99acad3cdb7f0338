"""`examples/etl.py`: three runs of the program, and the trace of one run."""

import subprocess
import sys
from pathlib import Path

import pytest

import cascade as cs
from cascade.testing import RunRecord, record_run
from stack.build import ROOT
from tests.lab.extras import needs
from tests.lab.waiting import HANG

PROGRAM = ROOT / "examples" / "etl.py"
pytestmark = needs("cli")


def run_program(folder: Path) -> subprocess.CompletedProcess[str]:
    """Run the example on a folder. Its log and its tree are on stderr, and its result is on stdout."""
    done = subprocess.run(
        [sys.executable, str(PROGRAM), str(folder)], capture_output=True, text=True, timeout=HANG, check=False
    )
    assert done.returncode == 0, done.stderr
    return done


def test_the_second_run_reads_only_the_damaged_file_and_the_third_one_only_the_corrected_file(tmp_path: Path) -> None:
    folder = tmp_path / "orders"
    left_out = "Left out: extract, item 117: invalid literal for int() with base 10: 'twelve'"
    totals = f"{folder / 'totals.csv'}: EUR,19783.00, GBP,22948.28, USD,18200.36"

    first = run_program(folder)
    assert first.stdout.splitlines() == [totals, left_out]
    assert "Failed extract[orders-117.csv]" in first.stderr
    assert "Retrying exchange_rates (attempt 2 of 3" in first.stderr
    assert "exceeded its timeout of 0.5 s" in first.stderr
    assert "CacheHit" not in first.stderr
    assert "failed tasks: 1" in first.stderr

    second = run_program(folder)
    assert second.stdout == first.stdout
    assert "Skipped exchange_rates: CacheHit" in second.stderr
    assert "more extract skipped" in second.stderr  # in the tree
    assert "Failed extract[orders-117.csv]" in second.stderr
    assert "Retrying" not in second.stderr

    damaged = folder / "orders-117.csv"
    damaged.write_text(damaged.read_text().replace("twelve", "12"))
    third = run_program(folder)
    assert third.stdout.splitlines() == [f"{folder / 'totals.csv'}: EUR,19795.00, GBP,22962.20, USD,18211.40"]
    assert "200 of 200 done, 199 of them from the cache" in third.stderr
    assert "failed tasks" not in third.stderr


def test_its_trace_has_the_failure_the_timeout_and_the_values_of_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(PROGRAM.parent))
    import etl

    def record() -> RunRecord:
        cache, limit = cs.DiskCache(tmp_path / "cache"), {"disk": 4}
        return record_run(etl.etl(tmp_path / "orders"), name="etl", cache=cache, system_resources=limit)

    record()
    spans = record().spans
    assert spans.orphans() == []
    run = spans.one("run etl")
    assert (run.attributes["cascade.run.result"], run.attributes["cascade.run.tasks.failed"]) == ("success", 1)
    items = spans.children(spans.one("map(extract)"))
    assert [item.attributes["cascade.task.label"] for item in items if item.name == "extract"] == ["orders-117.csv"]
    assert [item.name for item in items].count("extract skipped") == etl.FILES - 1
