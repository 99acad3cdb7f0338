"""A workflow that reads the files of Python's standard library, and reports about them.

It has a cached task, a flaky task with retries, a map over several hundred files, a resource, two tasks that share a limited
resource, a router, a span of its own, and a report at the end.
"""

import ast
import os
import sqlite3
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from opentelemetry import trace

import cascade as cs
from cascade.adapters.caching.file_existence import FileExistenceCache

STDLIB = sysconfig.get_paths()["stdlib"]
SKIPPED = {"site-packages", "dist-packages", "test", "tests", "idlelib", "__pycache__", "lib2to3"}

FAILURES = 2
MANY_FILES = 20

tracer = trace.get_tracer("stdlib_report")


@cs.resource
def database() -> Iterator[sqlite3.Connection]:
    """Open an SQLite database for the run. Tasks use it in several threads."""
    connection = sqlite3.connect(":memory:", check_same_thread=False)
    connection.execute("CREATE TABLE functions (module TEXT, name TEXT, lines INT, branches INT)")
    connection.execute("CREATE TABLE imports (module TEXT, imported TEXT)")
    connection.execute("CREATE TABLE files (module TEXT, lines INT)")
    yield connection
    connection.close()


@cs.task
def unpack_stdlib() -> str:
    """Never runs, because the directory exists and counts as the cached result."""
    raise NotImplementedError


@cs.task
def list_files(root: str) -> list[str]:
    found = []
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(set(folders) - SKIPPED)
        found += [str(Path(folder, name)) for name in sorted(files) if name.endswith(".py")]
    return found


@cs.task
async def fetch_release() -> str:
    """Simulate an unreliable network: the first two attempts fail."""
    task = cs.current_task()
    if task is not None and task.attempt <= FAILURES:
        raise ConnectionError(f"release server did not answer (attempt {task.attempt})")
    return f"Python {sysconfig.get_python_version()}"


@cs.task
def measure(path: str) -> dict[str, Any]:
    source = Path(path).read_text(encoding="utf-8", errors="replace")
    tree = ast.parse(source)
    functions, imports = [], set[str]()
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                branches = sum(isinstance(n, (ast.If, ast.For, ast.While, ast.Try, ast.BoolOp)) for n in ast.walk(node))
                functions.append((node.name, lines, branches))
            case ast.Import():
                imports.update(alias.name.partition(".")[0] for alias in node.names)
            case ast.ImportFrom(module=str(module), level=0):
                imports.add(module.partition(".")[0])
    return {
        "module": Path(path).relative_to(STDLIB).with_suffix("").as_posix().replace("/", "."),
        "lines": source.count("\n"),
        "functions": functions,
        "imports": sorted(imports),
    }


@cs.task
def store(measured: list[dict[str, Any]], db: sqlite3.Connection = cs.inject(database)) -> dict[str, int]:
    with tracer.start_as_current_span("insert rows") as span:
        for file in measured:
            module = file["module"]
            db.execute("INSERT INTO files VALUES (?, ?)", (module, file["lines"]))
            db.executemany("INSERT INTO functions VALUES (?, ?, ?, ?)", [(module, *f) for f in file["functions"]])
            db.executemany("INSERT INTO imports VALUES (?, ?)", [(module, name) for name in file["imports"]])
        rows = db.total_changes
        span.set_attribute("db.rows", rows)
    return {"files": len(measured), "lines": sum(file["lines"] for file in measured), "rows": rows}


@cs.task
def longest_functions(_: Any, db: sqlite3.Connection = cs.inject(database)) -> list[Any]:
    query = "SELECT module || '.' || name, lines, branches FROM functions ORDER BY lines DESC, 1 LIMIT 5"
    return db.execute(query).fetchall()


@cs.task
def most_imported(_: Any, db: sqlite3.Connection = cs.inject(database)) -> list[Any]:
    return db.execute(
        "SELECT imported, count(*) AS importers FROM imports GROUP BY imported ORDER BY importers DESC, 1 LIMIT 5"
    ).fetchall()


@cs.task(threaded=False)
def choose_style(totals: dict[str, int]) -> str:
    return "table" if totals["files"] > MANY_FILES else "line"


@cs.task(threaded=False)
def as_table(longest: list[Any], imported: list[Any]) -> str:
    rows = [
        "Longest functions",
        *(f"  {lines:>5} lines {branches:>4} branches  {name}" for name, lines, branches in longest),
    ]
    return "\n".join([*rows, "Most imported", *(f"  {count:>5} modules  {name}" for name, count in imported)])


@cs.task(threaded=False)
def as_line(longest: list[Any]) -> str:
    return f"Longest function: {longest[0][0]}"


@cs.task(threaded=False)
def report(release: str, totals: dict[str, int], details: str) -> str:
    return f"{release}: {totals['files']:,} files, {totals['lines']:,} lines\n{details}"


def workflow() -> Any:
    root = unpack_stdlib().with_cache(FileExistenceCache(STDLIB))
    release = fetch_release().with_retry(max_attempts=3, delay=0.05, backoff=2)
    totals = store(measure.map(path=list_files(root)))
    longest = longest_functions(totals).with_constraints(database=1)
    imported = most_imported(totals).with_constraints(database=1)
    routes = {"table": as_table(longest, imported), "line": as_line(longest)}
    return report(release, totals, cs.Router(choose_style(totals), routes))


SYSTEM_RESOURCES = {"database": 1}
