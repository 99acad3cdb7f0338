"""The dashboard of one run."""

from cascade.telemetry import attributes as a
from stack.grafana.panels import (
    Json,
    Query,
    Search,
    bars,
    choice,
    dashboard,
    new_in,
    quantile,
    span_table,
    text_box,
    time_series,
    trace,
)

# A caller may set any text as the id. Backticks keep quotation marks and backslashes.
_THIS_RUN = f"span.{a.RUN_ID} = `$run_id`"
# The names of attempts and waits differ from that of their task. Spans without a result do not match "!=".
_ITS_TASKS = f'{_THIS_RUN} && span.{a.TASK_RESULT} != "skip" && name = span.{a.TASK_NAME}'
_EACH_TASK = f"by(span.{a.TASK_ID})"


def one_run() -> Json:
    """Return the dashboard of one run: its traces, its tasks, and usual durations of these tasks."""
    return dashboard(
        "cascade-run",
        "Cascade: one run",
        "A run by its id and its trace id, which the lists of runs set. Tasks are found by the id of the run, because "
        "the parts of a large run are separate traces.",
        [
            text_box("trace_id", "Trace id"),
            text_box("run_id", "Run id"),
            choice("at_least", "Tasks of at least", ["0s", "10ms", "100ms", "1s", "10s", "1m", "10m"]),
        ],
        [trace("The trace with this id", "$trace_id"), *_its_traces(), _its_longest_tasks(), _usual()],
        refresh="",  # Tempo takes seconds for thousands of tasks
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
    selected = (
        f"name, span.{a.TASK_RESULT}, span.{a.ERROR_TYPE}, span.{a.MAP_INDEX}, span.{a.TASK_LABEL}, span.{a.RUN_ID}"
    )
    columns = {
        "Duration": "Duration",
        a.TASK_RESULT: "Result",
        a.ERROR_TYPE: "Error",
        a.MAP_INDEX: "Item",
        a.TASK_LABEL: "Label",
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
    return time_series(
        "Usual duration of the tasks of each name",
        Query(usual, "{{cascade_task_name}}", exemplars=True),
        unit="s",
        about="Half of the tasks of this name, of all runs in five minutes each, are faster.",
    )
