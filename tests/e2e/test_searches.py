"""The searches of docs/jaeger.md, sent to the API that Jaeger's search page uses."""

import json
import re
import shlex
import urllib.request
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, urlencode, urlsplit

import pytest

from cascade.testing import Spans
from stack.build import ROOT
from stack.process import until
from tests.e2e import search_workflows
from tests.e2e.runs import Run
from tests.e2e.stacks import Processes
from tests.lab.waiting import HANG

SERVICE = "e2e-searches"
PAGE_LIMIT = 20
"""Number of results that Jaeger's page requests by default."""

RUN_ID = "{run_id}"


class Search(NamedTuple):
    """Non-empty fields of the search page."""

    operation: str | None
    tags: Mapping[str, str]
    min_duration: str | None


def searches() -> dict[str, Search]:
    """Return the rows of the table: the purpose of each search, and its fields."""
    page = (ROOT / "docs" / "jaeger.md").read_text(encoding="utf-8")
    header = "| to find | Operation | Tags | Min Duration |\n|---|---|---|---|\n"
    table = page.partition(header)[2].partition("\n\n")[0]
    found = dict[str, Search]()
    for row in table.splitlines():
        purpose, *fields = (cell.strip().strip("`") for cell in row.strip("|").split("|"))
        operation, tags, min_duration = fields
        pairs = (tag.partition("=") for tag in shlex.split(tags))
        found[purpose] = Search(operation or None, {key: value for key, _, value in pairs}, min_duration or None)
    return found


SEARCHES = searches()
RUNS = "active and ended runs, without parts"
ITEMS = ["an item of a map by its index", "a task or an item of a map by its label"]
COLLECTIONS = {"with nested runs in parts", "with a failed nested run"}
REPORTS = {"retried", "failed", "timed out", "in a caller's trace", "with a skipped task", "slow", "large"}
FOUND = {
    RUNS: {*REPORTS, *COLLECTIONS, "of another target", "active"},
    "active and ended runs of a target": {*REPORTS, "active"},
    "ended runs of a target": REPORTS,
    "failed runs": {"failed", "with a failed nested run"},
    "runs that ended with a timeout": {"timed out"},
    "slow runs of any target": {"slow", "large"},
    "slow runs of any target, with OpenSearch": {"slow", "large"},
    "slow runs of a target": {"slow", "large"},
    "skipped tasks of a name": {"with a skipped task"},
    "one run by its id": {"in a caller's trace"},
    "active and ended runs by all their tags": {"of another target"},
    "runs and parts with an exception, also if a retry succeeded": {"retried"},
}
"""The runs that each search of the page finds."""


class ExportedRuns(NamedTuple):
    """The runs in Jaeger, by name."""

    stack: Processes
    run_ids: Mapping[str, str]
    traces: Mapping[str, str]

    def of(self, names: set[str]) -> set[str]:
        return {self.traces[name] for name in names}

    def find(self, search: Search, limit: int = PAGE_LIMIT) -> set[str]:
        tags = {key: value.replace(RUN_ID, self.run_ids["in a caller's trace"]) for key, value in search.tags.items()}
        return self.stack.jaeger.find(
            SERVICE, operation=search.operation, tags=tags, min_duration=search.min_duration, limit=limit
        )


@pytest.fixture(scope="session")
def exported(processes: Processes) -> Iterator[ExportedRuns]:
    environment = {**processes.environment, "OTEL_SERVICE_NAME": SERVICE}
    module = "tests.e2e.search_workflows"
    with Run(environment, "active", module=module) as active, Run(environment, "ended", module=module) as ended:
        active.wait_for_line("running")
        result = ended.result()
        of_large = {"cascade.run.id": result["large"]["run_id"]}
        until(
            lambda: len(processes.jaeger.find(SERVICE, tags=of_large, limit=200)) == search_workflows.PARTS + 1,
            "Jaeger has all parts of the large run",
        )
        for run in result.values():
            processes.wait_for(run["trace_id"], partial(_has_ended, run["run_id"]))
        started = Search("run report started", {}, None)
        traces = {name: run["trace_id"] for name, run in result.items()}
        exported = ExportedRuns(processes, {name: run["run_id"] for name, run in result.items()}, traces)
        until(lambda: len(exported.find(started) - set(traces.values())) == 1, "Jaeger has the active run")
        (traces["active"],) = exported.find(started) - set(traces.values())
        yield exported


def _has_ended(run_id: str, spans: Spans) -> bool:
    return any(span.kind == "SERVER" and span.attributes["cascade.run.id"] == run_id for span in spans)


@pytest.mark.parametrize("purpose", FOUND)
def test_a_search_of_the_page_finds_these_runs_and_no_other_trace(exported: ExportedRuns, purpose: str) -> None:
    assert exported.find(SEARCHES[purpose]) == exported.of(FOUND[purpose])


def test_the_page_has_no_search_without_a_test() -> None:
    assert set(SEARCHES) == {*FOUND, *ITEMS}


@pytest.mark.parametrize("purpose", ITEMS)
def test_one_item_is_found_in_the_trace_of_its_part(exported: ExportedRuns, purpose: str) -> None:
    search = SEARCHES[purpose]
    ((key, value),) = search.tags.items()
    until(lambda: bool(exported.find(search)), f"Jaeger has {purpose}")
    (trace_id,) = exported.find(search)
    (item,) = [span for span in exported.stack.jaeger.trace(trace_id) if str(span.attributes.get(key)) == value]
    assert (item.name, item.attributes["cascade.run.id"]) == ("convert", exported.run_ids["large"])
    assert trace_id != exported.traces["large"]


def test_the_tag_error_also_finds_a_successful_run_with_a_retry(exported: ExportedRuns) -> None:
    found = exported.find(Search(None, {"error": "true"}, None))
    assert found == exported.of({*FOUND["failed runs"], "timed out", "retried"})


def test_a_part_with_a_failed_nested_run_is_left_out_by_the_tag_of_markers(processes: Processes) -> None:
    service, failed = "e2e-searches-others", SEARCHES["failed runs"].tags
    environment = {**processes.environment, "OTEL_SERVICE_NAME": service}
    with Run(environment, "others", module="tests.e2e.search_workflows") as others:
        (result,) = others.result().values()
    processes.wait_for(result["trace_id"], partial(_has_ended, result["run_id"]))
    until(lambda: len(processes.jaeger.find(service, tags=failed)) == 2, "Jaeger has the run and its part")
    assert processes.jaeger.find(service, tags={**failed, **SEARCHES[RUNS].tags}) == {result["trace_id"]}


def test_a_duration_without_an_operation_or_a_tag_also_finds_parts(exported: ExportedRuns) -> None:
    least = SEARCHES["slow runs of any target"].min_duration
    slow = exported.of({"slow", "large"})
    until(lambda: exported.find(Search(None, {}, least)) > slow, "Jaeger has a long part")


def test_the_default_search_of_a_service_is_filled_by_the_parts_of_a_large_run(exported: ExportedRuns) -> None:
    """The user chooses the service and presses "Find Traces"."""
    shown = exported.find(Search(None, {}, None))
    assert len(shown) == PAGE_LIMIT
    assert len(shown & set(exported.traces.values())) < len(exported.traces)


def test_the_title_of_an_active_run_is_its_marker(exported: ExportedRuns) -> None:
    titles = {trace_id: title(exported.stack.jaeger.page(trace_id)) for trace_id in exported.find(SEARCHES[RUNS])}
    active = {trace_id for trace_id, title in titles.items() if title.endswith(" started")}
    assert active == exported.of({"active"})
    ended = ["run cleanup", *["run collect"] * len(COLLECTIONS), *["run report"] * len(REPORTS)]
    assert sorted(titles.values()) == [*ended, "run report started"]
    marker = next(
        span for span in exported.stack.jaeger.page(*active)["spans"] if span["operationName"].endswith("started")
    )
    assert "invalid parent span IDs" in marker["warnings"][0]


@pytest.mark.parametrize(("item", "purpose"), [("Runs", RUNS), ("Failed runs", "failed runs")])
def test_an_item_of_the_menu_is_a_search_of_the_documentation(exported: ExportedRuns, item: str, purpose: str) -> None:
    query = menu(exported.stack)[item]
    assert (query["service"], query["limit"]) == ("cascade", str(PAGE_LIMIT))
    assert json.loads(query["tags"]) == SEARCHES[purpose].tags
    url = exported.stack.ports.url(
        exported.stack.ports.jaeger_http, f"/api/traces?{urlencode({**query, 'service': SERVICE})}"
    )
    with urllib.request.urlopen(url, timeout=HANG) as answer:  # noqa: S310 - our own Jaeger
        assert {trace["traceID"] for trace in json.load(answer)["data"]} == exported.of(FOUND[purpose])


def test_ids_of_other_traces_in_tags_and_events_are_links_to_these_traces(exported: ExportedRuns) -> None:
    """The page shows OpenTelemetry links to other traces without names and attributes."""
    home = exported.stack.jaeger.page(exported.traces["large"])
    events = linked(exported.stack, "logs", [log["fields"] for span in home["spans"] for log in span["logs"]])
    assert events
    for path in events:
        part = exported.stack.jaeger.page(path.removeprefix("/trace/"))
        back = linked(exported.stack, "tags", [span["tags"] for span in part["spans"]])
        assert back == [f"/trace/{home['traceID']}"]


def linked(stack: Processes, kind: str, shown: list[list[dict[str, Any]]]) -> list[str]:
    """Return the targets of the links in tags, or in the fields of events."""
    urls = {one["key"]: one["url"] for one in configuration(stack)["linkPatterns"] if one["type"] == kind}
    pairs = [(pair["key"], pair["value"]) for pairs in shown for pair in pairs]
    return [urls[key].replace(f"#{{{key}}}", value) for key, value in pairs if key in urls]


def menu(stack: Processes) -> dict[str, dict[str, str]]:
    """Return the queries of the menu "Cascade"."""
    (group,) = [group for group in configuration(stack)["menu"] if group["label"] == "Cascade"]
    return {item["label"]: dict(parse_qsl(urlsplit(item["url"]).query)) for item in group["items"]}


def configuration(stack: Processes) -> Any:
    """Return the configuration that Jaeger writes into its page."""
    with urllib.request.urlopen(stack.ports.url(stack.ports.jaeger_http, "/search"), timeout=HANG) as answer:  # noqa: S310 - our own Jaeger
        page = answer.read().decode()
    (found,) = re.findall(r"^JAEGER_CONFIG = (.*);$", page, re.MULTILINE)
    return json.loads(found)


def title(trace: dict[str, Any]) -> str:
    """Return the title of a trace on the page: the name of the first span whose parent is not in the trace."""
    ids = {span["spanID"] for span in trace["spans"]}
    roots = [span for span in trace["spans"] if not ids & {reference["spanID"] for reference in parents(span)}]
    name: str = min(roots, key=lambda span: int(span["startTime"]))["operationName"]
    return name


def parents(span: dict[str, Any]) -> list[dict[str, Any]]:
    return [reference for reference in span["references"] if reference["refType"] == "CHILD_OF"]
