"""Make the dashboards: `python -m grafana.generate`. Grafana is given the files in `dashboards/`."""

import json
from pathlib import Path

from grafana.panels import (
    Json,
    Query,
    course,
    dashboard,
    span_table,
    stat,
    text_box,
    trace,
    trace_list,
    values_of,
)

FOLDER = Path(__file__).parent / "dashboards"

# Names of services and tasks may have any characters. The format `regex` escapes those that a regular expression uses,
# and a text in backticks, of PromQL and of TraceQL alike, keeps backslashes and quotation marks as they are.
_SERVICE = "`${service:regex}`"
_TARGET = "`${target:regex}`"
_OF_SERVICE = f"job=~{_SERVICE}"
_RUNS = f"{_OF_SERVICE}, cascade_run_target=~{_TARGET}"
_BAD = 'cascade_run_result=~"failure|error|timeout"'
_SHOWN = "$__range"


def new_in(metric: str, selection: str, window: str = "5m") -> str:
    """What counters, or histograms' buckets, have counted in a time: the rules of `prometheus/rules` in place.

    Panels with exemplars need it, since a rule's result has none; and numbers over the whole time that is shown.
    """
    one = f"{metric}{{{selection}}}"
    before = f"last_over_time({one}[1h] offset {window})"
    return f"((last_over_time({one}[{window}]) - {before}) >= 0) or last_over_time({one}[{window}])"


def quantile(share: float, buckets: str, by: str = "") -> str:
    return f"histogram_quantile({share}, sum by (le{by}) ({buckets}))"


def runs() -> Json:
    """All runs of all services."""
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
        "How many runs there are, how many fail, how long they take, and what they wait for.",
        variables,
        [*_numbers(), *_of_runs(durations), *_of_tasks(), *_of_telemetry(), _latest()],
    )


def _numbers() -> list[Json]:
    total = f"sum({new_in('cascade_run_duration_seconds_count', _RUNS, _SHOWN)})"
    failed = f"sum({new_in('cascade_run_duration_seconds_count', f'{_RUNS}, {_BAD}', _SHOWN)})"
    tasks = f"sum({new_in('cascade_task_duration_seconds_count', _OF_SERVICE, _SHOWN)})"
    lost = f"sum({new_in('cascade_telemetry_lost_total', _OF_SERVICE, _SHOWN)})"
    return [
        stat("Runs", Query(total, instant=True), about="Runs that have ended in this time."),
        stat("Failed", Query(f"({failed} or vector(0)) / {total}", instant=True), unit="percentunit", bad_above=0.05),
        stat("Active runs", Query(f"sum(cascade_run_active{{{_OF_SERVICE}}})", instant=True)),
        stat("Active tasks", Query(f"sum(cascade_task_active{{{_OF_SERVICE}}})", instant=True)),
        stat("Tasks", Query(tasks, instant=True), about="Tasks and items of maps that have ended in this time."),
        stat("Spans lost", Query(lost, instant=True), bad_above=1, about="What did not reach the Collector."),
    ]


def _of_runs(durations: str) -> list[Json]:
    return [
        course(
            "Runs by result",
            Query(f"sum by (cascade_run_result) (cascade:runs:increase5m{{{_RUNS}}})", "{{cascade_run_result}}"),
            stacked=True,
            about="Runs that have ended, in five minutes each.",
        ),
        course(
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
        course("Tasks", Query(f"topk(10, {by_name} ({tasks}))", "{{cascade_task_name}}"), stacked=True),
        course(
            "Tasks that fail",
            Query(f"sum by (cascade_task_name, error_type) ({failed})", "{{cascade_task_name}}: {{error_type}}"),
            stacked=True,
        ),
        course(
            "Duration of tasks: 19 of 20 are faster",
            Query(quantile(0.95, durations, ", cascade_task_name"), "{{cascade_task_name}}", exemplars=True),
            unit="s",
        ),
        course(
            "Time spent in tasks",
            Query(f"topk(10, {by_name} (cascade:task_seconds:increase5m{{{_OF_SERVICE}}}))", "{{cascade_task_name}}"),
            unit="s",
            stacked=True,
            about="Of all processes together, in five minutes each: where the time goes.",
        ),
        course(
            "Waits",
            Query(
                f"sum by (cascade_wait_reason) (cascade:wait_seconds:increase5m{{{_OF_SERVICE}}})",
                "{{cascade_wait_reason}}",
            ),
            unit="s",
            stacked=True,
            about="Time for which tasks that could run were held back, by reason.",
        ),
        course(
            "Retries and skipped tasks",
            Query(f"{by_name} (cascade:retries:increase5m{{{_OF_SERVICE}}})", "{{cascade_task_name}} again"),
            Query(
                f"sum by (cascade_task_skip_reason) (cascade:skips:increase5m{{{_OF_SERVICE}}})",
                "skipped: {{cascade_task_skip_reason}}",
            ),
        ),
        course(
            "Operations, from their spans",
            Query(
                f"topk(10, sum by (span_name, status_code) ({new_in('traces_span_metrics_calls_total', _OF_SERVICE)}))",
                "{{span_name}} {{status_code}}",
            ),
            about="All spans, those of instrumentation in the tasks included, in five minutes each.",
        ),
        course(
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
        course(
            "Telemetry of the runs",
            Query(f"sum(cascade:spans_sent:increase5m{{{_OF_SERVICE}}})", "spans sent"),
            Query(f"sum(cascade:spans_retried:increase5m{{{_OF_SERVICE}}})", "spans sent again"),
            Query(f"sum(cascade:spans_lost:increase5m{{{_OF_SERVICE}}})", "spans lost"),
        ),
        course(
            "The Collector",
            Query("sum(rate(otelcol_receiver_accepted_spans[$__rate_interval]))", "spans taken a second"),
            Query("sum(rate(otelcol_receiver_refused_spans[$__rate_interval]))", "spans refused a second"),
            Query("sum by (exporter) (otelcol_exporter_queue_size)", "bytes in the queue for {{exporter}}"),
        ),
    ]


def _latest() -> Json:
    search = f"{{ resource.service.name =~ {_SERVICE} && kind = server && span.cascade.run.target =~ {_TARGET} }}"
    return trace_list("Latest runs", search, "Click on a trace id to see the run by itself.")


def one_run() -> Json:
    """One run: its trace, its tasks, and how long such tasks usually take."""
    usual = quantile(0.5, new_in("cascade_task_duration_seconds_bucket", 'job=~".*"'), ", cascade_task_name")
    trace_id = "$trace_id"
    return dashboard(
        "cascade-run",
        "Cascade: one run",
        "A run by its trace id: the run's id without dashes.",
        [text_box("trace_id", "Trace id")],
        [
            trace("The run", trace_id),
            span_table(
                "Its tasks",
                f'{{ trace:id = "{trace_id}" && span.cascade.task.result != nil }} | select(span.cascade.task.result)',
            ),
            course(
                "How long such tasks usually take",
                Query(usual, "{{cascade_task_name}}", exemplars=True),
                unit="s",
                about="Half of the tasks of this name, in five minutes each, are faster.",
            ),
        ],
    )


def files() -> dict[Path, str]:
    """What belongs into which file."""
    return {
        FOLDER / f"{made['uid']}.json": json.dumps(made, indent=2, ensure_ascii=False) + "\n"
        for made in (runs(), one_run())
    }


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for path, text in files().items():
        path.write_text(text)
