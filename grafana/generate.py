"""Make the dashboards: `python -m grafana.generate`. Grafana is given the files in `dashboards/`."""

import json
from pathlib import Path

from cascade.telemetry import attributes as a
from grafana.panels import (
    Json,
    Query,
    Search,
    bars,
    choice,
    course,
    dashboard,
    span_table,
    stat,
    text_box,
    trace,
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
        [*_numbers(), *_of_runs(durations), *_of_tasks(), *_of_telemetry(), *_latest()],
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


_OF_RUN = {a.RUN_TARGET: "Target", a.SERVICE_NAME: "Service", a.RUN_ID: "Run"}
_SELECTED = f"name, span.{a.RUN_TARGET}, span.{a.RUN_ID}, resource.{a.SERVICE_NAME}"
_CHOSEN = f"resource.{a.SERVICE_NAME} =~ {_SERVICE} && span.{a.RUN_TARGET} =~ {_TARGET}"
_EACH_RUN = f"by(span.{a.RUN_ID})"
_EACH_TASK = f"by(span.{a.TASK_ID})"
# Without it Tempo returns any matches.
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


_THIS_RUN = f'span.{a.RUN_ID} = "$run_id"'
# Attempts and waits have other names than their task. Spans without a result do not match "!=".
_ITS_TASKS = f'{_THIS_RUN} && span.{a.TASK_RESULT} != "skip" && name = span.{a.TASK_NAME}'


def one_run() -> Json:
    """One run: its traces, its tasks, and how long such tasks usually take."""
    return dashboard(
        "cascade-run",
        "Cascade: one run",
        "A run by its id and the id of its trace, which the lists of runs fill in. Tasks are found by the run's id, since "
        "the parts of a large run are traces of their own.",
        [
            text_box("trace_id", "Trace id"),
            text_box("run_id", "Run id"),
            choice("at_least", "Tasks of at least", ["0s", "10ms", "100ms", "1s", "10s", "1m", "10m"]),
        ],
        [trace("The trace with this id", "$trace_id"), *_its_traces(), _its_longest_tasks(), _usual()],
        refresh="",  # the list of tasks is a search for each of them
    )


def _its_traces() -> list[Json]:
    roots = f"{{ {_THIS_RUN} && (span.{a.RUN_STARTED} = true || span.{a.PART_NUMBER} != nil) }}"
    selected = f"name, span.{a.RUN_ID}, span.{a.PART_NUMBER}, span.{a.PART_FIRST}, span.{a.PART_LAST}"
    parts = {a.PART_FIRST: "First child", a.PART_LAST: "Last child", a.RUN_ID: "Run"}
    search = Search(
        f"{roots} | select({selected})", parts, hidden=[a.RUN_STARTED, a.PART_NUMBER, "Duration"], traces=100
    )
    return [
        span_table(
            "The traces of the run: its own and those of its parts (at most 100)",
            search,
            about="Click on a name to see that trace.",
            width=12,
        ),
        bars(
            "The longest duration of the tasks of each name",
            f"{{ {_ITS_TASKS} }} | max_over_time(duration) by (name)",
            unit="s",
            about="Of all tasks of the run, without a limit: Tempo computes it.",
        ),
    ]


def _its_longest_tasks() -> Json:
    selected = f"name, span.{a.TASK_RESULT}, span.{a.ERROR_TYPE}, span.{a.MAP_INDEX}, span.{a.RUN_ID}"
    columns = {
        "Duration": "Duration",
        a.TASK_RESULT: "Result",
        a.ERROR_TYPE: "Error",
        a.MAP_INDEX: "Item",
        a.RUN_ID: "Run",
    }
    search = Search(
        f"{{ {_ITS_TASKS} && duration >= $at_least }} | select({selected}) | {_EACH_TASK}",
        columns,
        hidden=[_EACH_TASK, a.TASK_NAME, a.TASK_ID],
        traces=10,
        sort="Duration",
    )
    return span_table(
        "Tasks of $at_least or more, the longest first (of at most 10 traces of the run)",
        search,
        about="Without attempts, waits and skipped tasks. Choose a longer duration for a run of thousands of tasks.",
        height=14,
    )


def _usual() -> Json:
    usual = quantile(0.5, new_in("cascade_task_duration_seconds_bucket", 'job=~".*"'), ", cascade_task_name")
    return course(
        "How long tasks of each name usually take",
        Query(usual, "{{cascade_task_name}}", exemplars=True),
        unit="s",
        about="Half of the tasks of this name, of all runs in five minutes each, are faster.",
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
