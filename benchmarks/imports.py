"""Duration of imports in fresh interpreters without the interpreter's own start, and the imported packages."""

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks._measure import Figure, Goal, Row, spread
from benchmarks._process import ROOT, call, environment
from benchmarks._scale import Scale

NOTHING = "pass"
SUBJECTS = {
    "import cascade, against import asyncio": ("import cascade", "import asyncio", Goal(1.3)),
    "import cascade.connectors.otel, against OpenTelemetry's HTTP exporter": (
        "import cascade.connectors.otel",
        "import opentelemetry.exporter.otlp.proto.http.trace_exporter",
        Goal(1.0),
    ),
}


def third_party_packages() -> list[str]:
    """Return the packages that `import cascade` imports, without Cascade and the standard library."""
    before = set(sys.modules)
    import cascade  # noqa: F401

    new = {name.partition(".")[0] for name in set(sys.modules) - before}
    return sorted(new - set(sys.stdlib_module_names) - {"cascade"})


def rows(scale: Scale) -> Iterator[Row]:
    for what, (subject, baseline, goal) in SUBJECTS.items():
        yield _compared(what, subject, baseline, goal, scale.imports)
    found = call(third_party_packages)
    yield Row("optional packages that import cascade imports", ", ".join(found) or "none", "", "", "none", not found)


def figures(scale: Scale, tree: Path | None) -> Iterator[Figure]:
    """Yield the duration of the imports of the revision in `tree`, without that of the interpreter."""
    python = min(_seconds(NOTHING) for _ in range(scale.imports))
    for subject, _, _ in SUBJECTS.values():
        yield Figure(subject, min(_seconds(subject, tree) for _ in range(scale.imports)) - python, "ms", 1e3)


def _compared(what: str, subject: str, baseline: str, goal: Goal | None, turns: int) -> Row:
    """Compare the fastest imports, because other load only makes an import slower. The spread is that of the rounds."""
    times = [(_seconds(NOTHING), _seconds(subject), _seconds(baseline)) for _ in range(turns)]
    python, ours, theirs = (min(column) for column in zip(*times, strict=True))
    ratio = (ours - python) / (theirs - python)
    ratios = [(one - python) / max(other - python, 1e-6) for _, one, other in times]
    return Row(
        what,
        f"{(ours - python) * 1e3:.0f} ms",
        f"{(theirs - python) * 1e3:.0f} ms",
        f"{ratio:.2f}x {spread(ratios)}",
        str(goal or ""),
        goal.holds(ratio) if goal else None,
    )


def _seconds(statement: str, tree: Path | None = None) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", statement], cwd=ROOT, env=environment(tree), check=True)  # noqa: S603 - a constant
    return time.perf_counter() - start
