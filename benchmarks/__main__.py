"""Runs the benchmarks and prints the table: `python -m benchmarks [subject …]`."""

import argparse
import importlib
import os
import platform
import sys
import time
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from benchmarks._measure import Row, as_table
from benchmarks._scale import Scale

SUBJECTS = (
    "engine",
    "threads",
    "traced",
    "burst",
    "memory",
    "outage",
    "lag",
    "mqtt",
    "control",
    "imports",
    "paths",
    "other_engines",
)
README = Path(__file__).parent / "README.md"
START, END = "<!-- results -->\n", "<!-- end of results -->"
_PACKAGES = ("opentelemetry-sdk", "grpcio", "protobuf", "paho-mqtt", "aiomqtt")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("subjects", nargs="*", metavar="subject", help=f"one of {', '.join(SUBJECTS)}; all by default")
    sizes = parser.add_mutually_exclusive_group()
    sizes.add_argument(
        "--quick", dest="scale", action="store_const", const="quick", help="smaller graphs; takes a minute"
    )
    sizes.add_argument(
        "--tiny",
        dest="scale",
        action="store_const",
        const="tiny",
        help="the smallest graphs; checks that each measurement works",
    )
    parser.add_argument("--write", action="store_true", help="write the table to benchmarks/README.md")
    parser.add_argument(
        "--against", metavar="TREE", type=Path, help="a checkout of another revision to measure in turn"
    )
    options = parser.parse_args()
    if unknown := set(options.subjects).difference(SUBJECTS):
        parser.error(f"unknown subject {min(unknown)!r}; choose from {', '.join(SUBJECTS)}")
    against = options.against and options.against.resolve()
    if against and not (against / "src" / "cascade").is_dir():
        parser.error(
            f"{options.against} has no src/cascade; --against needs a checkout of Cascade, such as a git worktree"
        )
    scale = replace(Scale.of(options.scale or "full"), against=against)
    report = _report(options.subjects or SUBJECTS, scale)
    print(report)
    if options.write:
        before, _, rest = README.read_text(encoding="utf-8").partition(START)
        README.write_text(f"{before}{START}\n{report}\n\n{END}{rest.partition(END)[2]}", encoding="utf-8")


def _report(subjects: list[str] | tuple[str, ...], scale: Scale) -> str:
    start = time.monotonic()
    rows = [row for subject in subjects for row in _rows(subject, scale)]
    return f"{_machine_and_versions()}, {time.monotonic() - start:.0f} s\n\n{as_table(rows)}"


def _rows(subject: str, scale: Scale) -> list[Row]:
    found = []
    start = time.monotonic()
    for row in importlib.import_module(f"benchmarks.{subject}").rows(scale):
        found.append(row)
        print(f"{row.what}: {row.ours} / {row.baseline} {row.ratio}", file=sys.stderr, flush=True)
    print(f"-- {subject}: {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
    return found


def _machine_and_versions() -> str:
    load = f"load {os.getloadavg()[0]:.1f} at the end" if hasattr(os, "getloadavg") else ""
    packages = [f"{name} {_version(name)}" for name in _PACKAGES]
    parts = [f"{datetime.now(UTC):%Y-%m-%d}", _processor(), f"{os.cpu_count()} cores", platform.platform(terse=True)]
    return ", ".join([*parts, f"Python {platform.python_version()}", *packages, *filter(None, [load])])


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"


if __name__ == "__main__":
    main()
