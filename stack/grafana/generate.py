"""Writes the dashboards to `dashboards/`, which Grafana reads: `python -m stack.grafana.generate`."""

import json
from pathlib import Path

from cascade.telemetry import attributes as a
from stack.grafana.one_run import one_run
from stack.grafana.panels import (
    Json,
    Query,
    Search,
    dashboard,
    new_in,
    quantile,
    span_table,
    stat,
    time_series,
    values_of,
)

FOLDER = Path(__file__).parent / "dashboards"

# Names of services and tasks may have any characters. The format `regex` escapes the characters of regular expressions. In
# PromQL and TraceQL, a text in backticks keeps backslashes and quotation marks.
_SERVICE = "`${service:regex}`"
_TARGET = "`${target:regex}`"
_OF_SERVICE = f"job=~{_SERVICE}"
_RUNS = f"{_OF_SERVICE}, cascade_run_target=~{_TARGET}"
_FAILED = 'cascade_run_result=~"failure|error|timeout"'
_RANGE = "$__range"


def runs() -> Json:
    """Return the dashboard of all runs of all services."""
    durations = new_in("cascade_run_duration_seconds_bucket", _RUNS)
    variables = [
        values_of("service", "Service", "label_values(cascade_run_duration_seconds_count, job)"),
        values_of(
            "target",
            "Target",
            f"label_values(cascade_run_duration_seconds_count{{{_OF_SERVICE}}}, cascade_run_target)",
        ),
    ]
    return dashboard(
        "cascade-runs",
        "Cascade: runs",
        "Number, results, durations and waits of runs.",
        variables,
        [*_numbers(), *_of_runs(durations), *_of_tasks(), *_of_telemetry(), *_latest()],
    )


def _numbers() -> list[Json]:
    total = f"sum({new_in('cascade_run_duration_seconds_count', _RUNS, _RANGE)})"
    failed = f"sum({new_in('cascade_run_duration_seconds_count', f'{_RUNS}, {_FAILED}', _RANGE)})"
    tasks = f"sum({new_in('cascade_task_duration_seconds_count', _OF_SERVICE, _RANGE)})"
    lost = f"sum({new_in('cascade_telemetry_lost_total', _OF_SERVICE, _RANGE)})"
    return [
        stat("Ended runs", Query(total, instant=True), about="Runs that have ended in this time, with any result."),
        stat(
            "Failed runs",
            Query(f"({failed} or vector(0)) / {total}", instant=True),
            unit="percentunit",
            bad_above=0.05,
            about="The share of the ended runs with the result failure, error or timeout.",
        ),
        stat(
            "Active runs",
            Query(f"sum(cascade_run_active{{{_OF_SERVICE}}})", instant=True),
            about="Now, of all targets of the service.",
        ),
        stat(
            "Active tasks",
            Query(f"sum(cascade_task_active{{{_OF_SERVICE}}})", instant=True),
            about="Now, of all targets of the service.",
        ),
        stat(
            "Ended tasks",
            Query(tasks, instant=True),
            about="Tasks and items of maps that have ended in this time, of all targets of the service.",
        ),
        stat(
            "Lost spans",
            Query(lost, instant=True),
            bad_above=1,
            about="Spans that did not reach the Collector in this time, of all targets of the service.",
        ),
    ]


def _of_runs(durations: str) -> list[Json]:
    return [
        time_series(
            "Runs by result",
            Query(f"sum by (cascade_run_result) (cascade:runs:increase5m{{{_RUNS}}})", "{{cascade_run_result}}"),
            stacked=True,
            about="Runs that have ended, in five minutes each.",
        ),
        time_series(
            "Duration of runs",
            Query(quantile(0.5, durations), "half are faster than"),
            Query(quantile(0.95, durations), "19 of 20 are faster than", exemplars=True),
            unit="s",
            about="Each dot is a run: click on it to see its trace.",
        ),
    ]


def _of_tasks() -> list[Json]:
    tasks = f"cascade:tasks:increase5m{{{_OF_SERVICE}}}"
    failed = f'cascade:tasks:increase5m{{{_OF_SERVICE}, error_type!=""}}'
    durations = new_in("cascade_task_duration_seconds_bucket", _OF_SERVICE)
    by_name = "sum by (cascade_task_name)"
    return [
        time_series(
            "Ended tasks of all targets, the 10 most frequent names",
            Query(f"topk(10, {by_name} ({tasks}))", "{{cascade_task_name}}"),
            stacked=True,
        ),
        time_series(
            "Failed tasks of all targets",
            Query(f"sum by (cascade_task_name, error_type) ({failed})", "{{cascade_task_name}}: {{error_type}}"),
            stacked=True,
        ),
        time_series(
            "Duration of tasks of all targets: 19 of 20 are faster",
            Query(quantile(0.95, durations, ", cascade_task_name"), "{{cascade_task_name}}", exemplars=True),
            unit="s",
        ),
        time_series(
            "Time spent in tasks of all targets, the 10 longest names",
            Query(f"topk(10, {by_name} (cascade:task_seconds:increase5m{{{_OF_SERVICE}}}))", "{{cascade_task_name}}"),
            unit="s",
            stacked=True,
            about="Of all processes together, in five minutes each: where the time goes.",
        ),
        time_series(
            "Waits of all targets",
            Query(
                f"sum by (cascade_wait_reason) (cascade:wait_seconds:increase5m{{{_OF_SERVICE}}})",
                "{{cascade_wait_reason}}",
            ),
            unit="s",
            stacked=True,
            about="Time for which tasks that could run were held back, by reason.",
        ),
        time_series(
            "Retries and skipped tasks of all targets",
            Query(f"{by_name} (cascade:retries:increase5m{{{_OF_SERVICE}}})", "retries of {{cascade_task_name}}"),
            Query(
                f"sum by (cascade_task_skip_reason) (cascade:skips:increase5m{{{_OF_SERVICE}}})",
                "skipped: {{cascade_task_skip_reason}}",
            ),
        ),
        time_series(
            "Operations, from their spans, the 10 most frequent",
            Query(
                f"topk(10, sum by (span_name, status_code) ({new_in('traces_span_metrics_calls_total', _OF_SERVICE)}))",
                "{{span_name}} {{status_code}}",
            ),
            about="All spans, those of instrumentation in the tasks included, in five minutes each.",
        ),
        time_series(
            "Duration of operations, from their spans: 19 of 20 are faster",
            Query(
                quantile(
                    0.95,
                    new_in("traces_span_metrics_duration_milliseconds_bucket", _OF_SERVICE),
                    ", span_name",
                ),
                "{{span_name}}",
                exemplars=True,
            ),
            unit="ms",
        ),
    ]


def _of_telemetry() -> list[Json]:
    return [
        time_series(
            "Spans exported by runs",
            Query(f"sum(cascade:spans_sent:increase5m{{{_OF_SERVICE}}})", "spans sent"),
            Query(f"sum(cascade:spans_retried:increase5m{{{_OF_SERVICE}}})", "spans sent again"),
            Query(f"sum(cascade:spans_lost:increase5m{{{_OF_SERVICE}}})", "spans lost"),
        ),
        time_series(
            "The Collector",
            Query("sum(rate(otelcol_receiver_accepted_spans[$__rate_interval]))", "accepted spans per second"),
            Query("sum(rate(otelcol_receiver_refused_spans[$__rate_interval]))", "refused spans per second"),
            Query("sum by (exporter) (otelcol_exporter_queue_size)", "bytes in the queue for {{exporter}}"),
        ),
    ]


_OF_RUN = {a.RUN_TARGET: "Target", a.SERVICE_NAME: "Service", a.RUN_ID: "Run"}
_SELECTED = f"name, span.{a.RUN_TARGET}, span.{a.RUN_ID}, resource.{a.SERVICE_NAME}"
_CHOSEN = f"resource.{a.SERVICE_NAME} =~ {_SERVICE} && span.{a.RUN_TARGET} =~ {_TARGET}"
_EACH_RUN = f"by(span.{a.RUN_ID})"
# Without `most_recent`, Tempo returns any matches instead of the latest.
_LATEST = "with (most_recent=true)"


def _latest() -> list[Json]:
    active = f"{{ span.{a.RUN_STARTED} = true && {_CHOSEN} }} | select({_SELECTED}) | {_EACH_RUN} {_LATEST}"
    result = f"span.{a.RUN_RESULT}"
    ended = f"{{ {result} != nil && {_CHOSEN} }} | select({_SELECTED}, {result}) | {_EACH_RUN} {_LATEST}"
    return [
        span_table(
            "Latest runs, active and ended (at most 50 traces)",
            Search(active, _OF_RUN, hidden=[_EACH_RUN, a.RUN_STARTED, "Duration"]),
            about="Found by the span that marks the start, which Tempo stores after 5 s or more. Click on a name.",
        ),
        span_table(
            "Results of the latest runs that have ended (at most 50 traces)",
            Search(ended, {a.RUN_RESULT: "Result", "Duration": "Duration", **_OF_RUN}, hidden=[_EACH_RUN]),
            about="Found by the span of the run, which is exported at the end. Click on a name.",
        ),
    ]


def files() -> dict[Path, str]:
    """Return the text of each file."""
    return {
        FOLDER / f"{made['uid']}.json": json.dumps(made, indent=2, ensure_ascii=False) + "\n"
        for made in (runs(), one_run())
    }


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for path, text in files().items():
        path.write_text(text)
