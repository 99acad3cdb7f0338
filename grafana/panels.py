"""Grafana's panels in a few words each; `generate.py` makes dashboards of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

Json = dict[str, Any]

PROMETHEUS = {"type": "prometheus", "uid": "prometheus"}
TEMPO = {"type": "tempo", "uid": "tempo"}
COLUMNS = 24


@dataclass(frozen=True, slots=True)
class Query:
    """One line, or family of lines, of a Prometheus panel.

    Attributes:
        instant: The value now, not its course.
        exemplars: Single measurements as dots that lead to their traces. They are found by the metrics that the
            expression names, so it must be one that Cascade or the Collector measures, not a recording rule.
    """

    expr: str
    legend: str = ""
    instant: bool = False
    exemplars: bool = False


def stat(title: str, query: Query, *, unit: str = "short", bad_above: float | None = None, about: str = "") -> Json:
    """A number; red above a limit, if there is one."""
    steps: list[Json] = [{"color": "text", "value": None}]
    if bad_above is not None:
        steps = [{"color": "green", "value": None}, {"color": "red", "value": bad_above}]
    defaults = {"unit": unit, "noValue": "0", "thresholds": {"mode": "absolute", "steps": steps}}
    options = {"reduceOptions": {"calcs": ["lastNotNull"]}, "colorMode": "value", "graphMode": "none"}
    return (
        _panel("stat", title, [query], about)
        | {"fieldConfig": {"defaults": defaults, "overrides": []}}
        | {
            "options": options,
            "gridPos": {"w": 4, "h": 4},
        }
    )


def course(title: str, *queries: Query, unit: str = "short", stacked: bool = False, about: str = "") -> Json:
    """Lines over time, or areas that add up."""
    stacking = {"mode": "normal" if stacked else "none", "group": "A"}
    custom = {"fillOpacity": 30 if stacked else 5, "stacking": stacking, "showPoints": "auto", "spanNulls": False}
    defaults = {"unit": unit, "min": 0, "custom": custom}
    legend = {"displayMode": "table", "placement": "bottom", "showLegend": True, "calcs": ["max"]}
    return _panel("timeseries", title, queries, about) | {
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": {"legend": legend, "tooltip": {"mode": "multi", "sort": "desc"}},
        "gridPos": {"w": 12, "h": 8},
    }


def trace_list(title: str, traceql: str, about: str = "") -> Json:
    """Traces that a search in Tempo finds; each leads to the dashboard of one run."""
    target = {"refId": "A", "datasource": TEMPO, "queryType": "traceql", "query": traceql, "limit": 50}
    link = {"title": "This run", "url": "/d/cascade-run?var-trace_id=${__value.raw}"}
    override = {
        "matcher": {"id": "byName", "options": "traceID"},
        "properties": [{"id": "links", "value": [link]}],
    }
    return _bare("table", title, TEMPO, about) | {
        "targets": [{**target, "tableType": "traces"}],
        "fieldConfig": {"defaults": {}, "overrides": [override]},
        "gridPos": {"w": COLUMNS, "h": 9},
    }


def span_table(title: str, traceql: str, about: str = "") -> Json:
    """The spans that a search in Tempo finds, the longest first."""
    target = {"refId": "A", "datasource": TEMPO, "queryType": "traceql", "query": traceql, "limit": 100, "spss": 100}
    return _bare("table", title, TEMPO, about) | {
        "targets": [{**target, "tableType": "spans"}],
        "options": {"sortBy": [{"displayName": "Duration", "desc": True}]},
        "gridPos": {"w": 12, "h": 12},
    }


def trace(title: str, trace_id: str) -> Json:
    """One trace, as Grafana shows it."""
    target = {"refId": "A", "datasource": TEMPO, "queryType": "traceql", "query": trace_id}
    return _bare("traces", title, TEMPO, "") | {"targets": [target], "gridPos": {"w": COLUMNS, "h": 20}}


def dashboard(uid: str, title: str, about: str, variables: Sequence[Json], panels: Sequence[Json]) -> Json:
    """The panels from left to right and top to bottom, in lines as high as their first."""
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
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "templating": {"list": list(variables)},
        "annotations": {"list": []},
        "links": [{"type": "dashboards", "title": "Cascade", "tags": ["cascade"], "keepTime": True}],
        "panels": placed,
    }


def values_of(name: str, label: str, query: str) -> Json:
    """A variable with all values of a label; several may be chosen, and all are at first."""
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


def text_box(name: str, label: str) -> Json:
    return {"type": "textbox", "name": name, "label": label, "query": "", "current": {"text": "", "value": ""}}


def _panel(kind: str, title: str, queries: Sequence[Query], about: str) -> Json:
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
    return _bare(kind, title, PROMETHEUS, about) | {"targets": targets}


def _bare(kind: str, title: str, datasource: Json, about: str) -> Json:
    return {"type": kind, "title": title, "description": about, "datasource": datasource}
