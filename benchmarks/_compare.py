"""Comparison of two revisions: their figures, measured in turn, and a verdict for each."""

import importlib
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory, TemporaryFile

from benchmarks._measure import Figure, number, spread
from benchmarks._process import ROOT
from benchmarks._scale import Scale

SUBJECTS = ("engine", "threads", "traced", "memory", "lag", "mqtt", "both", "control", "imports")
"""Subjects whose modules have `figures`. The others compare with a baseline of the same run, or count."""
NEGLIGIBLE = 0.01
"""The smallest relative difference that counts."""
MIN_ROUNDS = 3
"""Fewer rounds have no spread from which a verdict follows."""


class RevisionError(Exception):
    """Raised when git cannot return the files of a revision."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """The figures of this tree and of the other one by rounds, in the order of the rounds."""

    ours: tuple[Figure, ...]
    theirs: tuple[Figure, ...]

    @property
    def ratios(self) -> list[float]:
        return [here.value / (there.value or 1e-12) for here, there in zip(self.ours, self.theirs, strict=True)]

    @property
    def verdict(self) -> str:
        """Return the words of the figure if all rounds agree and the median differs by more than `NEGLIGIBLE`."""
        ratios = self.ratios
        if len(ratios) < MIN_ROUNDS:
            return f"fewer than {MIN_ROUNDS} rounds"
        is_more, is_less = min(ratios) > 1, max(ratios) < 1
        if not (is_more or is_less) or abs(median(ratios) - 1) < NEGLIGIBLE:
            return "no difference within the spread"
        figure = self.ours[0]
        return figure.words[0 if is_more == figure.is_rate else 1]

    def __str__(self) -> str:
        figure, ratios = self.ours[0], self.ratios
        here, there = (
            f"{number(median(one.value for one in side) * figure.scale)} {figure.unit}"
            for side in (self.ours, self.theirs)
        )
        ratio = f"{number(median(ratios))}x {spread(ratios)}"
        return f"| {figure.what} | {here} | {there} | {ratio} | {self.verdict} |"


def compared(subject: str, scale: Scale, tree: Path) -> Iterator[Comparison]:
    """Measure a subject with this tree and with the other one in turn, and alternate their order."""
    figures = importlib.import_module(f"benchmarks.{subject}").figures
    found: dict[str, list[list[Figure]]] = {"ours": [], "theirs": []}
    for turn in range(scale.many_rounds):
        sides = [("ours", None), ("theirs", tree)]
        for side, source in sides[:: -1 if turn % 2 else 1]:
            found[side].append(list(figures(scale, source)))
            print(f"-- {subject}, {side}, round {turn + 1} of {scale.many_rounds}", file=sys.stderr, flush=True)
    for ours, theirs in zip(zip(*found["ours"], strict=True), zip(*found["theirs"], strict=True), strict=True):
        yield Comparison(ours, theirs)


def as_table(comparisons: Sequence[Comparison], name: str) -> str:
    """Return the comparisons as a Markdown table."""
    head = [f"| what | now | {name} | now / {name} (spread) | verdict |", "|---|---|---|---|---|"]
    return "\n".join([*head, *map(str, comparisons)])


@contextmanager
def checkout(revision: str) -> Iterator[Path]:
    """Extract a revision of this repository to a temporary folder, and remove it at the end.

    Raises:
        RevisionError: git is missing, this is not a repository, or it has no such revision.
    """
    with TemporaryDirectory(prefix="cascade-bench-") as folder, TemporaryFile() as archive:
        if not revision:
            raise RevisionError("the revision is empty; name a commit, a branch or a tag, such as REV=main")
        commit = _git("rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}")
        if not commit:
            raise RevisionError(f"{revision!r} is not a revision of {ROOT}; use a commit, a branch or a tag")
        subprocess.run(["git", "archive", commit, "src"], cwd=ROOT, stdout=archive, check=True)  # noqa: S603, S607
        archive.seek(0)
        with tarfile.open(fileobj=archive) as files:
            files.extractall(folder, filter="data")
        yield Path(folder)


def _git(*arguments: str) -> str:
    """Return the output of git without the last line end; empty if it failed."""
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)  # noqa: S603, S607
    except FileNotFoundError:
        raise RevisionError("git is not installed; --revision needs it, --against takes a folder") from None
    return done.stdout.strip()
