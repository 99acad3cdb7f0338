"""Names and descriptions of the attributes of spans, metrics, log records and resources, for `docs/attributes.md`.

Names are those of the semantic conventions of OpenTelemetry where these have one, otherwise `cascade.*`.
"""

from dataclasses import dataclass

ERROR_TYPE = "error.type"
EXCEPTION_TYPE = "exception.type"
EXCEPTION_MESSAGE = "exception.message"
EXCEPTION_STACKTRACE = "exception.stacktrace"
CODE_FUNCTION_NAME = "code.function.name"
CODE_FILE_PATH = "code.file.path"
CODE_LINE_NUMBER = "code.line.number"
CODE_STACKTRACE = "code.stacktrace"
SERVICE_NAME = "service.name"
SERVICE_VERSION = "service.version"
SERVICE_INSTANCE_ID = "service.instance.id"
HOST_NAME = "host.name"

ORG_ID = "cascade.org.id"
PROJECT_ID = "cascade.project.id"

RUN_ID = "cascade.run.id"
RUN_TARGET = "cascade.run.target"
RUN_TAGS = "cascade.run.tags"
RUN_STARTED = "cascade.run.started"
RUN_RESULT = "cascade.run.result"
RUN_INPUTS = "cascade.run.inputs"
RUN_PARAMS = "cascade.run.params"
RUN_TASKS_COMPLETED = "cascade.run.tasks.completed"
RUN_TASKS_FAILED = "cascade.run.tasks.failed"
RUN_TASKS_CANCELLED = "cascade.run.tasks.cancelled"
RUN_TASKS_SKIPPED = "cascade.run.tasks.skipped"
RUN_TASKS_CACHED = "cascade.run.tasks.cached"
RUN_TASKS_RETRIED = "cascade.run.tasks.retried"
RUN_TASKS_HELD_BACK = "cascade.run.tasks.held_back"
RUN_MESSAGES_DROPPED = "cascade.run.messages.dropped"
RUN_SPANS_LEFT_OUT = "cascade.run.spans.left_out"
RUN_STARVED_SLOWDOWN = "cascade.run.starved.slowdown"
RUN_STARVED_THREADS = "cascade.run.starved.threads"
RUN_STARVED_CORES = "cascade.run.starved.cores"
RUN_STARVED_MAX_WORKERS = "cascade.run.starved.max_workers"

TASK_ID = "cascade.task.id"
TASK_NAME = "cascade.task.name"
TASK_RESULT = "cascade.task.result"
TASK_CANCELLATION_REASON = "cascade.task.cancellation.reason"
TASK_ATTEMPT = "cascade.task.attempt"
TASK_ATTEMPTS = "cascade.task.attempts"
TASK_MAX_ATTEMPTS = "cascade.task.max_attempts"
TASK_DEPENDENCIES = "cascade.task.dependencies"
TASK_SKIP_REASON = "cascade.task.skip.reason"
TASK_ARGUMENTS = "cascade.task.arguments"
TASK_OUTPUT = "cascade.task.output"
TASK_LABEL = "cascade.task.label"
TASK_TAGS = "cascade.task.tags"
TASK_CPU_SECONDS = "cascade.task.cpu_seconds"
TASK_QUEUE_SECONDS = "cascade.task.queue_seconds"
MAP_INDEX = "cascade.map.index"
MAP_SIZE = "cascade.map.size"
PARTS = "cascade.parts"
PART_NUMBER = "cascade.part.number"
PART_FIRST = "cascade.part.first"
PART_LAST = "cascade.part.last"
PART_TRACE_ID = "cascade.part.trace_id"
PART_PARENT_TRACE_ID = "cascade.part.parent.trace_id"
LINK_NAME = "cascade.link.name"
WAIT_REASON = "cascade.wait.reason"
CONTROL_ACTION = "cascade.control.action"
CONTROL_SCOPE = "cascade.control.scope"
CONTROL_TYPE = "cascade.control.type"
CONTROL_ID = "cascade.control.id"
CONTROL_REASON = "cascade.control.reason"
CONTROL_PARAMS = "cascade.control.params"
RUN_CONTROL_DECISIONS = "cascade.run.control.decisions"
RESOURCE_NAME = "cascade.resource.name"
RESOURCE_RESULT = "cascade.resource.result"
RESOURCE_HOLD_SECONDS = "cascade.resource.hold_seconds"
TELEMETRY_SIGNAL = "cascade.telemetry.signal"
METRIC_OVERFLOW = "otel.metric.overflow"

CICD_PIPELINE_NAME = "cicd.pipeline.name"
CICD_PIPELINE_RUN_ID = "cicd.pipeline.run.id"
CICD_PIPELINE_RESULT = "cicd.pipeline.result"
CICD_TASK_NAME = "cicd.pipeline.task.name"
CICD_TASK_RUN_ID = "cicd.pipeline.task.run.id"
CICD_TASK_RUN_RESULT = "cicd.pipeline.task.run.result"


@dataclass(frozen=True, slots=True)
class AttributeRow:
    """A row of the table of attributes. `spans` are the spans, events or records that have the attribute."""

    name: str
    type: str
    spans: str
    meaning: str


_EVERY, _TASK = "every span", "task, attempt"
_OF_ITEM = "all spans of an item of a map, including your own below it"
_PART = "part, its links, its event"
_FAILED = "`cascade.task.failed` event of a run"
_STARVED = "run whose threads waited for a processor most of the time"
_CONTROL = "wait, control event of a run or of a blocked task"
_WORDS = "`success`, `failure`, `error`, `timeout`, `cancellation` or `skip`"

DOCUMENTED = (
    AttributeRow(RUN_ID, "string", f"{_EVERY}, including your own below a task", "the run's id: 128 bits in UUID form"),
    AttributeRow(ORG_ID, "string", "run", "`CASCADE_ORG_ID`"),
    AttributeRow(PROJECT_ID, "string", "run", "`CASCADE_PROJECT_ID`"),
    AttributeRow(
        RUN_TARGET, "string", "run, `run {target} started`", "name of the run, or else the names of its targets"
    ),
    AttributeRow(RUN_TAGS, "string[]", "run, `run {target} started`", "tags of the run"),
    AttributeRow(
        RUN_STARTED,
        "bool",
        "`run {target} started`",
        "true; absent for a run that a task of another run started in the same trace. A search for it finds active and ended runs",
    ),
    AttributeRow(RUN_RESULT, "string", "run", _WORDS),
    AttributeRow(RUN_INPUTS, "string[]", "run", "names of the Params and Envs"),
    AttributeRow(RUN_PARAMS, "string", "run", "parameters as JSON, if captured"),
    AttributeRow(RUN_TASKS_COMPLETED, "int", "run", "tasks that succeeded, items of maps included"),
    AttributeRow(
        RUN_TASKS_FAILED,
        "int",
        "run",
        "tasks that failed; a run that succeeds has some if their failures were allowed",
    ),
    AttributeRow(RUN_TASKS_CANCELLED, "int", "run", "tasks that were cancelled"),
    AttributeRow(RUN_TASKS_SKIPPED, "int", "run", "tasks that were skipped"),
    AttributeRow(RUN_TASKS_CACHED, "int", "run", "skipped tasks whose value comes from a cache"),
    AttributeRow(RUN_TASKS_RETRIED, "int", "run", "retries"),
    AttributeRow(
        RUN_TASKS_HELD_BACK,
        "int",
        "run",
        "number of times that a ready task was blocked; delays of retries are not counted",
    ),
    AttributeRow(RUN_MESSAGES_DROPPED, "int", "run", "number of messages of the run that were lost"),
    AttributeRow(
        RUN_SPANS_LEFT_OUT,
        "int",
        "run",
        "number of spans of your own that were left out, because their trace had no room; absent if there are none",
    ),
    AttributeRow(
        RUN_STARVED_SLOWDOWN,
        "double",
        _STARVED,
        "duration of the tasks in threads in relation to their CPU time",
    ),
    AttributeRow(RUN_STARVED_THREADS, "int", _STARVED, "largest number of threads that ran tasks at once"),
    AttributeRow(RUN_STARVED_CORES, "double", _STARVED, "mean number of processors that the process used meanwhile"),
    AttributeRow(RUN_STARVED_MAX_WORKERS, "int", _STARVED, "a value of `max_workers` that is sufficient"),
    AttributeRow(
        TASK_ID, "string", "all spans of a task, including your own below it", "the task's id in the workflow"
    ),
    AttributeRow(TASK_NAME, "string", f"task, attempt, wait, {_FAILED}", "the task's name"),
    AttributeRow(
        TASK_LABEL, "string", "all spans of a task with a label, including your own below it", "the label of the call"
    ),
    AttributeRow(TASK_TAGS, "string[]", "task, map", "the tags of the task, with secrets masked"),
    AttributeRow(
        TASK_CPU_SECONDS,
        "double",
        _TASK,
        "CPU time of the thread while the function ran, in seconds; for a task, the sum of its attempts. Absent for an "
        "`async def`, whose steps share the thread with other tasks, and for a function that outlives its timeout",
    ),
    AttributeRow(
        TASK_QUEUE_SECONDS,
        "double",
        "task",
        "seconds from the moment when all inputs were available to the first start, all waits included: from the end of the "
        "last task that it needs; for an item, from the start of its map; without either, from the end of the setup of resources",
    ),
    AttributeRow(TASK_RESULT, "string", _TASK, _WORDS),
    AttributeRow(
        TASK_CANCELLATION_REASON,
        "string",
        _TASK,
        "reason of a cancellation, such as `cancelled by SIGTERM`; a cancellation is no error",
    ),
    AttributeRow(TASK_ATTEMPT, "int", "attempt", "number of the attempt, from 1"),
    AttributeRow(TASK_ATTEMPTS, "int", "task", "number of attempts, with a retry policy"),
    AttributeRow(TASK_MAX_ATTEMPTS, "int", "task", "number of retries that the policy allows"),
    AttributeRow(
        TASK_DEPENDENCIES, "int", "task", "number of tasks whose values it consumed; at most 128 of them have a link"
    ),
    AttributeRow(TASK_SKIP_REASON, "string", "task", "reason of a skip"),
    AttributeRow(TASK_ARGUMENTS, "string", "task", "arguments as JSON, if captured"),
    AttributeRow(
        TASK_OUTPUT,
        "any",
        "task",
        "result, if captured: a text, a number, a boolean or a list of texts is unchanged; another value is JSON",
    ),
    AttributeRow(MAP_INDEX, "int", _OF_ITEM, "index of a map's item, from 0"),
    AttributeRow(MAP_SIZE, "int", "map", "number of items of the map"),
    AttributeRow(
        PARTS, "int", "run, map", "number of further traces with its children; 64 of them have a link and an event"
    ),
    AttributeRow(PART_NUMBER, "int", _PART, "number of the part of the children of a run or map, from 1"),
    AttributeRow(
        PART_FIRST,
        "int",
        _PART,
        "smallest number of its children: index of an item, or position in the order of starts",
    ),
    AttributeRow(PART_LAST, "int", _PART, "largest number of its children"),
    AttributeRow(PART_TRACE_ID, "string", "part event of a run or map", "the part's trace id"),
    AttributeRow(PART_PARENT_TRACE_ID, "string", "part", "trace id of the span of the run or map"),
    AttributeRow(LINK_NAME, "string", "link to or from a part", "name of the linked span"),
    AttributeRow(
        WAIT_REASON,
        "string",
        "wait",
        "`resource`, `retry`, `paused`, `concurrency`, `rate_limit`, `telemetry` or `executor`",
    ),
    AttributeRow(RUN_CONTROL_DECISIONS, "int", "run", "number of decisions about constraints; the first 64 are events"),
    AttributeRow(CONTROL_ACTION, "string", "control event of a run", "`APPLIED`, `REFUSED`, `EXPIRED` or `CLEARED`"),
    AttributeRow(CONTROL_SCOPE, "string", _CONTROL, "`global`, `run/{run_id}` or `task/{name or pattern}`"),
    AttributeRow(CONTROL_TYPE, "string", _CONTROL, "`pause`, `concurrency`, `rate_limit` or `resource`"),
    AttributeRow(CONTROL_ID, "string", _CONTROL, "id of the constraint"),
    AttributeRow(CONTROL_REASON, "string", "control event of a run", "reason of a refusal or expiry"),
    AttributeRow(CONTROL_PARAMS, "string", "control event of a run", "parameters of the constraint as JSON"),
    AttributeRow(RESOURCE_NAME, "string", "setup, teardown", "the resource's name"),
    AttributeRow(RESOURCE_RESULT, "string", "setup, teardown", "`success`, `failure`, `timeout` or `cancellation`"),
    AttributeRow(RESOURCE_HOLD_SECONDS, "double", "teardown", "seconds from the end of the setup to the teardown"),
    AttributeRow(TELEMETRY_SIGNAL, "string", "metrics", "signal of the exported or lost items; always `traces`"),
    AttributeRow(
        METRIC_OVERFLOW,
        "bool",
        "metrics",
        "true for a series that combines all attributes beyond the limits; it replaces them",
    ),
    AttributeRow(CODE_FUNCTION_NAME, "string", "task", "module and name of the task's function"),
    AttributeRow(CODE_FILE_PATH, "string", "log record", "file in which the record was made"),
    AttributeRow(CODE_LINE_NUMBER, "int", "log record", "line in which the record was made"),
    AttributeRow(CODE_STACKTRACE, "string", "log record", "stack of the record, with `stack_info=True`"),
    AttributeRow(
        ERROR_TYPE,
        "string",
        f"failed run, task, attempt, setup, teardown, {_FAILED}",
        "type of the exception; `cancellation` for a cancelled run",
    ),
    AttributeRow(EXCEPTION_TYPE, "string", "exception event", "type of the exception"),
    AttributeRow(EXCEPTION_MESSAGE, "string", f"exception event, {_FAILED}", "its message, with secrets masked"),
    AttributeRow(
        EXCEPTION_STACKTRACE,
        "string",
        "exception event",
        "its stack trace from the first frame of your code, with secrets masked",
    ),
    AttributeRow(SERVICE_NAME, "string", "resource of all signals", "`OTEL_SERVICE_NAME`, else `cascade`"),
    AttributeRow(
        SERVICE_VERSION,
        "string",
        "resource of all signals",
        "version of your application, from `OTEL_RESOURCE_ATTRIBUTES`; the version of the scope `cascade` is that of Cascade",
    ),
    AttributeRow(
        HOST_NAME, "string", "resource of all signals", "name of the host; the environment can set another one"
    ),
    AttributeRow(
        SERVICE_INSTANCE_ID,
        "string",
        "resource of all signals",
        "`{host}-{pid}-{4 hex random}`, the `source` of the messages; a forked child has another one; the environment can set one for all processes",
    ),
    AttributeRow(
        CICD_PIPELINE_NAME, "string", 'run, with `semconv="cicd"`', "name of the run, or else the names of its targets"
    ),
    AttributeRow(CICD_PIPELINE_RUN_ID, "string", 'run, with `semconv="cicd"`', "the run's id: 128 bits in UUID form"),
    AttributeRow(CICD_PIPELINE_RESULT, "string", 'run, with `semconv="cicd"`', _WORDS),
    AttributeRow(CICD_TASK_NAME, "string", 'task, with `semconv="cicd"`', "the task's name"),
    AttributeRow(CICD_TASK_RUN_ID, "string", 'task, with `semconv="cicd"`', "the task's id in the workflow"),
    AttributeRow(CICD_TASK_RUN_RESULT, "string", 'task, with `semconv="cicd"`', _WORDS),
)
