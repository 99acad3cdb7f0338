"""Queries of the dashboards, the data sources and the documentation, as Grafana sends them."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import yaml

from stack.build import ROOT

ALL = ".*"
"""Value of a variable with "All" selected. Grafana inserts it without a format."""

NAMES = ["map(step)", "etl.load", "a+b", 'say "hi"', "back\\slash", "1|2", "it's", "{x}", "^$", "a/b"]
"""Names of services and tasks with special characters of regular expressions and quoted texts."""

_VARIABLE = re.compile(r"\$(?:(\w+)|\{(\w+)(?::(\w+))?\})")
_BLOCK = re.compile(r"^```traceql\n(.*?)^```", re.MULTILINE | re.DOTALL)


class Query(NamedTuple):
    place: str
    text: str
    target: Mapping[str, Any]


def dashboards() -> Iterator[dict[str, Any]]:
    for path in sorted((ROOT / "stack" / "grafana" / "dashboards").glob("*.json")):
        yield json.loads(path.read_text("utf-8"))


def data_sources() -> list[dict[str, Any]]:
    path = ROOT / "stack" / "grafana" / "provisioning" / "datasources" / "datasources.yaml"
    found: list[dict[str, Any]] = yaml.safe_load(path.read_text("utf-8"))["datasources"]
    return found


def of_panels(kind: str) -> Iterator[Query]:
    """Yield the queries of the panels for data sources of a kind, `prometheus` or `tempo`. A trace id is not a query."""
    for dashboard in dashboards():
        for panel in dashboard["panels"]:
            for target in panel["targets"]:
                if target["datasource"]["type"] == kind and panel["type"] != "traces":
                    text = target["expr"] if kind == "prometheus" else target["query"]
                    yield Query(f"{dashboard['uid']}: {panel['title']} {target['refId']}", text, target)


def of_correlations() -> Iterator[Query]:
    """Yield the TraceQL of the correlations of the data sources."""
    for source in data_sources():
        for correlation in source.get("correlations", ()):
            if correlation.get("targetUID") == "tempo":
                target = correlation["config"]["target"]
                yield Query(f"correlation of {source['name']}", target["query"], target)


def of_pages() -> Iterator[Query]:
    """Yield the blocks of TraceQL in the documentation."""
    for page in sorted((ROOT / "docs").glob("*.md")):
        for number, block in enumerate(_BLOCK.findall(page.read_text("utf-8")), 1):
            yield Query(f"{page.name}: block {number}", block.strip(), {})


def traceql_outside_of_blocks() -> list[str]:
    """Return the lines of the documentation with TraceQL outside of blocks, which `of_pages` does not find."""
    texts = (_BLOCK.sub("", page.read_text("utf-8")) for page in sorted((ROOT / "docs").glob("*.md")))
    return [line for text in texts for line in re.findall(r".*\{ (?:span|resource)\.\w.*", text)]


def interpolated(query: str, variables: Mapping[str, str | Sequence[str]]) -> str:
    """Return the query with the values of its variables, in the formats of Grafana that the query names.

    Args:
        query: PromQL or TraceQL.
        variables: A text is inserted without escaping, as Grafana inserts the text of a text box, `ALL` and its own
            variables. A list holds selected values, which need the format `regex`: each value is escaped for a regular
            expression, and several values are joined to `(one|other)`.
    """

    def value_of(match: re.Match[str]) -> str:
        plain, name, form = match.groups()
        value = variables[plain or name]
        if isinstance(value, str):
            return value
        assert form == "regex", f"{match[0]} inserts names without escaping them"
        escaped = [re.sub(r"[\\^$*+?.()|\[\]{}/]", r"\\\g<0>", one) for one in value]
        return escaped[0] if len(escaped) == 1 else f"({'|'.join(escaped)})"

    return _VARIABLE.sub(value_of, query)
