"""Panels, variables and queries of a dashboard, one function for each kind."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Json = dict[str, Any]

TO_RUN = (
    "/d/cascade-run?var-trace_id=${__data.fields.traceIdHidden}"
    '&var-run_id=${__data.fields["cascade.run.id"]}&${__url_time_range}'
)
"""URL of the dashboard of a run. The row needs a column with the id of the run."""

PROMETHEUS = {"type": "prometheus", "uid": "prometheus"}
TEMPO = {"type": "tempo", "uid": "tempo"}
COLUMNS = 24


@dataclass(frozen=True, slots=True)
class Query:
    """A Prometheus query of a panel.

    Attributes:
        expr: The PromQL expression.
        legend: The name of each series.
        instant: Whether the query returns the current value instead of a time series.
        exemplars: Whether the panel shows exemplars, with links to their traces. The expression must then use metrics of
            Cascade or of the Collector, not recording rules.
    """

    expr: str
    legend: str = ""
    instant: bool = False
    exemplars: bool = False


def new_in(metric: str, selection: str, window: str = "5m") -> str:
    """Return the increase of counters or buckets in a window, which includes the first value of a new series.

    The rules in `stack/prometheus/rules` compute the same. Panels with exemplars need the expression, because the result of
    a rule has no exemplars. Numbers over the whole time range need it too.
    """
    one = f"{metric}{{{selection}}}"
    before = f"last_over_time({one}[1h] offset {window})"
    return f"((last_over_time({one}[{window}]) - {before}) >= 0) or last_over_time({one}[{window}])"


def quantile(share: float, buckets: str, by: str = "") -> str:
    return f"histogram_quantile({share}, sum by (le{by}) ({buckets}))"


def stat(title: str, query: Query, *, unit: str = "short", bad_above: float | None = None, about: str = "") -> Json:
    """Return a panel with a number, which is red above the limit `bad_above`."""
    steps: list[Json] = [{"color": "text", "value": None}]
    if bad_above is not None:
        steps = [{"color": "green", "value": None}, {"color": "red", "value": bad_above}]
    defaults = {"unit": unit, "noValue": "0", "thresholds": {"mode": "absolute", "steps": steps}}
    options = {"reduceOptions": {"calcs": ["lastNotNull"]}, "colorMode": "value", "graphMode": "none"}
    return _prometheus_panel("stat", title, [query], about) | {
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": options,
        "gridPos": {"w": 4, "h": 4},
    }


def time_series(title: str, *queries: Query, unit: str = "short", stacked: bool = False, about: str = "") -> Json:
    """Return a panel with lines over time, or with stacked areas."""
    stacking = {"mode": "normal" if stacked else "none", "group": "A"}
    custom = {"fillOpacity": 30 if stacked else 5, "stacking": stacking, "showPoints": "auto", "spanNulls": False}
    defaults = {"unit": unit, "min": 0, "custom": custom}
    legend = {"displayMode": "table", "placement": "bottom", "showLegend": True, "calcs": ["max"]}
    return _prometheus_panel("timeseries", title, queries, about) | {
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": {"legend": legend, "tooltip": {"mode": "multi", "sort": "desc"}},
        "gridPos": {"w": 12, "h": 8},
    }


@dataclass(frozen=True, slots=True)
class Search:
    """A TraceQL search, one row for each span set.

    Grafana sends only the first query of a panel to Tempo. Tempo stores an incomplete trace in fragments until a compaction.
    Of several span sets of one trace, Tempo returns the one with the most matches, unless `by(...)` makes them different.
    Therefore a search for several spans of a trace groups them by an attribute that is unique to each span.

    Attributes:
        traceql: The query. The selected attributes are columns.
        columns: Titles of the columns after start time and name, by Grafana's names of the columns.
        hidden: Further columns of the response, such as the attributes of conditions and of `by(...)`.
        traces: The largest number of traces.
        sort: The column by which Grafana sorts the rows, in descending order. Tempo does not sort.
        link: The URL of the link of each name.
    """

    traceql: str
    columns: Mapping[str, str]
    hidden: Sequence[str] = ()
    traces: int = 50
    sort: str = "Start time"
    link: str = TO_RUN


def span_table(title: str, search: Search, *, about: str = "", width: int = COLUMNS, height: int = 9) -> Json:
    """Return a table of the spans that a search finds."""
    target = {
        "refId": "A",
        "datasource": TEMPO,
        "queryType": "traceql",
        "query": search.traceql,
        "limit": search.traces,
        "spss": 1,
        "tableType": "spans",
    }
    shown = ["Start time", "Name", *search.columns]
    columns = {
        "indexByName": {name: place for place, name in enumerate(shown)},
        "renameByName": dict(search.columns),
        "excludeByName": dict.fromkeys(("Trace Service", "Trace Name", "Span ID", *search.hidden), True),
    }
    link = {"title": "This run", "url": search.link}
    named = {"matcher": {"id": "byName", "options": "Name"}, "properties": [{"id": "links", "value": [link]}]}
    return _panel("table", title, TEMPO, about) | {
        "targets": [target],
        "transformations": [{"id": "organize", "options": columns}],
        "fieldConfig": {"defaults": {}, "overrides": [named]},
        "options": {"sortBy": [{"displayName": search.sort, "desc": True}]},
        "gridPos": {"w": width, "h": height},
    }


def bars(title: str, traceql: str, *, unit: str, about: str = "", height: int = 9) -> Json:
    """Return a bar chart of the largest value of each series of a TraceQL metric."""
    target = {"refId": "A", "datasource": TEMPO, "queryType": "traceql", "query": traceql}
    return _panel("bargauge", title, TEMPO, about) | {
        "targets": [target],
        "fieldConfig": {"defaults": {"unit": unit, "min": 0}, "overrides": []},
        "options": {"reduceOptions": {"calcs": ["max"]}, "orientation": "horizontal", "displayMode": "basic"},
        "gridPos": {"w": 12, "h": height},
    }


def trace(title: str, trace_id: str) -> Json:
    """Return a panel with one trace."""
    target = {"refId": "A", "datasource": TEMPO, "queryType": "traceql", "query": trace_id}
    return _panel("traces", title, TEMPO, "") | {"targets": [target], "gridPos": {"w": COLUMNS, "h": 20}}


def dashboard(
    uid: str, title: str, about: str, variables: Sequence[Json], panels: Sequence[Json], refresh: str = "30s"
) -> Json:
    """Return a dashboard with its panels from left to right and top to bottom."""
    placed, x, y, height = list[Json](), 0, 0, 0
    for number, panel in enumerate(panels, 1):
        size = panel["gridPos"]
        if x + size["w"] > COLUMNS:
            x, y, height = 0, y + height, 0
        height = max(height, size["h"])
        placed.append({**panel, "id": number, "gridPos": {"x": x, "y": y, **size}})
        x += size["w"]
    return {
        "uid": uid,
        "title": title,
        "description": about,
        "tags": ["cascade"],
        "schemaVersion": 39,
        "version": 1,
        "editable": False,
        "graphTooltip": 1,
        "refresh": refresh,
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "templating": {"list": list(variables)},
        "annotations": {"list": []},
        "links": [{"type": "dashboards", "title": "Cascade", "tags": ["cascade"], "keepTime": True}],
        "panels": placed,
    }


def values_of(name: str, label: str, query: str) -> Json:
    """Return a variable with all values of a label. Several values can be selected; the default is all."""
    return {
        "type": "query",
        "name": name,
        "label": label,
        "datasource": PROMETHEUS,
        "query": {"query": query, "refId": name},
        "definition": query,
        "refresh": 2,
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": "All", "value": "$__all"},
    }


def choice(name: str, label: str, values: Sequence[str]) -> Json:
    """Return a variable with the given values. The default is the first one."""
    options = [{"text": value, "value": value, "selected": value == values[0]} for value in values]
    return {
        "type": "custom",
        "name": name,
        "label": label,
        "query": ",".join(values),
        "options": options,
        "current": options[0],
    }


def text_box(name: str, label: str) -> Json:
    return {"type": "textbox", "name": name, "label": label, "query": "", "current": {"text": "", "value": ""}}


def _prometheus_panel(kind: str, title: str, queries: Sequence[Query], about: str) -> Json:
    targets = [
        {
            "refId": chr(ord("A") + number),
            "datasource": PROMETHEUS,
            "expr": query.expr,
            "legendFormat": query.legend or "__auto",
            "instant": query.instant,
            "range": not query.instant,
            "exemplar": query.exemplars,
        }
        for number, query in enumerate(queries)
    ]
    return _panel(kind, title, PROMETHEUS, about) | {"targets": targets}


def _panel(kind: str, title: str, datasource: Json, about: str) -> Json:
    return {"type": kind, "title": title, "description": about, "datasource": datasource}
