"""The searches of the dashboards and of the documentation in a real Tempo with the configuration of the stack.

No package registry has Tempo. These tests run if a program `tempo` is on the PATH, and over Compose with the profile
`grafana`. Otherwise they are skipped, also in CI.
"""

import signal
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from uuid import uuid4

import pytest

from stack import programs
from stack.process import responds, until
from tests.e2e.runs import Run, run
from tests.e2e.stacks import Servers
from tests.e2e.tempo import Tempo, running
from tests.lab.dashboards import ALL, Query, interpolated, of_pages, of_panels
from tests.lab.waiting import HANG

SERVICE = f"e2e-tempo/a.b (+1) {uuid4()}"
GRAFANA_TO_TEMPO = "http://127.0.0.1:3000/api/datasources/proxy/uid/tempo"
"""Compose does not publish Tempo's port. Grafana forwards requests to the data source."""

pytestmark = pytest.mark.timeout(1800)


@pytest.fixture(scope="module", params=["program", "compose"])
def tempo(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tempo]:
    if request.param == "program":
        program = programs.find("tempo")
        if program is None:
            pytest.skip("no program tempo is on the PATH")
        with running(program, tmp_path_factory.mktemp("tempo")) as found:
            yield found
    else:
        compose: Servers = request.getfixturevalue("compose")
        if not responds(f"{GRAFANA_TO_TEMPO}/api/echo"):
            pytest.skip("Compose runs without its profile grafana")
        yield Tempo(GRAFANA_TO_TEMPO, compose.environment)


class Report(NamedTuple):
    """Export a small run with a map, a retry and a skipped task."""

    trace_id: str
    run_id: str


@pytest.fixture(scope="module")
def report(tempo: Tempo) -> Report:
    result = run({**tempo.environment, "OTEL_SERVICE_NAME": SERVICE}, "report")
    return Report(result["trace_id"], result["run_id"])


def names(tempo: Tempo, *trace_ids: str) -> Counter[str]:
    return Counter(span["name"] for trace_id in trace_ids for span in tempo.spans(trace_id))


def wait(condition: Callable[[], object], what: str) -> None:
    until(lambda: bool(condition()), what, HANG)


def filled(query: Query, report: Report, at_least: str = "0s") -> str:
    ids = {"run_id": report.run_id, "trace_id": report.trace_id, "at_least": at_least}
    return interpolated(query.text, {**ids, "service": [SERVICE], "target": ALL})


def panel(title: str) -> Query:
    (query,) = [query for query in of_panels("tempo") if query.place.partition(": ")[2].startswith(title)]
    return query


def test_a_small_run_is_read_back(tempo: Tempo, report: Report) -> None:
    wait(lambda: names(tempo, report.trace_id)["run summary"], "Tempo has the root")
    found = names(tempo, report.trace_id)
    assert (found["double"], found["multiply"], found["flaky attempt"], found["map(double)"]) == (3, 3, 2, 1)


@pytest.mark.parametrize("query", list(of_panels("tempo")), ids=lambda query: query.place)
def test_each_query_of_the_dashboards_finds_the_run(tempo: Tempo, report: Report, query: Query) -> None:
    text = filled(query, report)
    if "_over_time(" in text:
        wait(lambda: tempo.series(text), f"{query.place} has series")
    else:
        wait(lambda: report.trace_id in tempo.search(text, query.target), f"{query.place} has the run")


@pytest.mark.parametrize("query", list(of_pages()), ids=lambda query: query.place)
def test_tempo_accepts_each_query_of_the_documentation(tempo: Tempo, query: Query) -> None:
    tempo.search(query.text)


def test_the_list_of_longest_tasks_has_tasks_only(tempo: Tempo, report: Report) -> None:
    query = panel("Tasks of")

    def listed() -> Counter[str]:
        spans = tempo.search(filled(query, report), query.target).get(report.trace_id, [])
        return Counter(span["name"] for span in spans)

    wait(lambda: listed()["summary"], "the last task is listed")
    tasks = listed()
    assert (tasks["double"], tasks["map(double)"], tasks["flaky"], tasks["story"]) == (3, 1, 1, 0)
    assert not any(name.endswith((" attempt", " wait", " skipped")) for name in tasks)
    assert tempo.search(filled(query, report, "1h"), query.target) == {}


def test_an_active_run_is_listed(tempo: Tempo) -> None:
    started, ended = panel("Latest runs"), panel("Results of the latest runs")
    with Run({**tempo.environment, "OTEL_SERVICE_NAME": SERVICE}, "endless") as endless:
        endless.wait_for_line("running")
        of_target = {"service": [SERVICE], "target": ["forever"]}
        wait(lambda: tempo.search(interpolated(started.text, of_target), started.target), "the active run is listed")
        assert tempo.search(interpolated(ended.text, of_target), ended.target) == {}
        endless.process.send_signal(signal.SIGTERM)
        trace_id = endless.result()["trace_id"]
    wait(lambda: trace_id in tempo.search(interpolated(ended.text, of_target), ended.target), "the ended run is listed")


def test_all_spans_of_2000_items_with_three_attempts_each_are_stored(tempo: Tempo) -> None:
    before = tempo.discarded()
    result = run({**tempo.environment, "OTEL_SERVICE_NAME": SERVICE}, "retries", 2_000)
    whole = Report(result["trace_id"], result["run_id"])
    ended, parts = panel("Results of the latest runs"), panel("The traces of the run")
    wait(lambda: whole.trace_id in tempo.search(filled(ended, whole), ended.target), "the ended run is listed")

    def stored() -> Counter[str]:
        return names(tempo, *tempo.search(filled(parts, whole), parts.target))

    expected = {"fetch": 2_000, "fetch attempt": 6_000, "map(fetch)": 1, "count": 1, "run count": 1}
    wait(lambda: all(stored()[name] == number for name, number in expected.items()), f"Tempo has {expected}")
    assert tempo.discarded() == before


def test_a_long_stack_trace_keeps_its_end(tempo: Tempo) -> None:
    trace_id = run({**tempo.environment, "OTEL_SERVICE_NAME": SERVICE}, "deep")["trace_id"]
    wait(lambda: names(tempo, trace_id)["run one"], "Tempo has the root")
    (task,) = [span for span in tempo.spans(trace_id) if span["name"] == "one"]
    stack = attribute(task["events"][-1], "exception.stacktrace")
    assert len(stack) > 2_048
    assert stack.rstrip().endswith("ValueError: the end")


def attribute(event: dict[str, Any], name: str) -> str:
    (value,) = [one["value"]["stringValue"] for one in event["attributes"] if one["key"] == name]
    text: str = value
    return text
