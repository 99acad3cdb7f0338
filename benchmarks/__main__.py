"""Runs the benchmarks and prints the table: `python -m benchmarks [subject …]`."""

import argparse
import importlib
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from benchmarks import _compare
from benchmarks._machine import circumstances
from benchmarks._measure import Row, as_table
from benchmarks._readme import write_table
from benchmarks._scale import Scale

OTHER_ENGINES = "other_engines"
SUBJECTS = (
    "engine",
    "threads",
    "cache",
    "traced",
    "burst",
    "memory",
    "outage",
    "lag",
    "mqtt",
    "both",
    "control",
    "imports",
    "console",
    "demo",
    "paths",
    OTHER_ENGINES,
)
RESULTS = "results"
"""The name of the table of all subjects but `other_engines`, which has its own."""


def main() -> None:
    parser = _parser()
    options = parser.parse_args()
    if unknown := set(options.subjects).difference(SUBJECTS):
        parser.error(f"unknown subject {min(unknown)!r}; choose from {', '.join(SUBJECTS)}")
    scale = Scale.of(options.scale or "full")
    if options.revision is not None or options.against is not None:
        if options.write:
            parser.error("--write writes the table of one revision, and not a comparison")
        try:
            print(_comparison(options, scale))
        except _compare.RevisionError as error:
            parser.error(str(error))
        return
    tables = _tables(options.subjects or SUBJECTS, scale)
    print("\n\n".join(tables.values()))
    if options.write:
        for name, table in tables.items():
            write_table(name, table)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("subjects", nargs="*", metavar="subject", help=f"one of {', '.join(SUBJECTS)}; all by default")
    sizes = parser.add_mutually_exclusive_group()
    for name, text in (
        ("quick", "smaller graphs; takes some minutes"),
        ("tiny", "the smallest graphs; checks that each measurement works"),
    ):
        sizes.add_argument(f"--{name}", dest="scale", action="store_const", const=name, help=text)
    parser.add_argument("--write", action="store_true", help="write the tables to benchmarks/README.md")
    others = parser.add_mutually_exclusive_group()
    others.add_argument("--revision", metavar="REV", help="a git revision of this repository to compare with")
    others.add_argument("--against", metavar="TREE", type=Path, help="a checkout of another revision to compare with")
    return parser


def _tables(subjects: Sequence[str], scale: Scale) -> dict[str, str]:
    """Measure the subjects; return each table that has rows, with its circumstances."""
    found: dict[str, list[Row]] = {}
    seconds: dict[str, float] = {}
    for subject in subjects:
        name, start = OTHER_ENGINES if subject == OTHER_ENGINES else RESULTS, time.monotonic()
        found.setdefault(name, []).extend(_rows(subject, scale))
        seconds[name] = seconds.get(name, 0) + time.monotonic() - start
    return {name: f"{circumstances(seconds[name])}\n\n{as_table(rows)}" for name, rows in found.items()}


def _rows(subject: str, scale: Scale) -> list[Row]:
    found = []
    start = time.monotonic()
    for row in importlib.import_module(f"benchmarks.{subject}").rows(scale):
        found.append(row)
        print(f"{row.what}: {row.ours} / {row.baseline} {row.ratio}", file=sys.stderr, flush=True)
    print(f"-- {subject}: {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
    return found


def _comparison(options: argparse.Namespace, scale: Scale) -> str:
    """Measure this tree and another one in turn; return the table.

    Raises:
        RevisionError: The other revision does not exist, or a subject has no figures to compare.
    """
    subjects: Sequence[str] = options.subjects or _compare.SUBJECTS
    if missing := set(subjects).difference(_compare.SUBJECTS):
        names = ", ".join(_compare.SUBJECTS)
        raise _compare.RevisionError(f"{min(missing)!r} has no figures to compare; choose from {names}")
    with ExitStack() as stack:
        if options.against is not None:
            name, tree = str(options.against), options.against.resolve()
        else:
            name, tree = options.revision, stack.enter_context(_compare.checkout(options.revision))
        if not (tree / "src" / "cascade").is_dir():
            raise _compare.RevisionError(f"{name} has no src/cascade; name a checkout or a git revision of Cascade")
        start = time.monotonic()
        found = [one for subject in subjects for one in _compare.compared(subject, scale, tree)]
    table = _compare.as_table(found, Path(name).name if options.against is not None else name)
    return f"{circumstances(time.monotonic() - start)}, {scale.many_rounds} rounds\n\n{table}"


if __name__ == "__main__":
    main()
