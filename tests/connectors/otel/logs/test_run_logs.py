import contextvars
import logging
import math
import subprocess
import sys
import textwrap
import threading
from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider

import cascade as cs
from cascade.connectors.otel.buffer import FlushReport
from cascade.connectors.otel.logs import chosen_level
from cascade.connectors.otel.reply import Reply
from cascade.runtime.task_context import TaskContext
from cascade.telemetry.identity import place_run
from tests.connectors.otel import servers
from tests.connectors.otel.logs.conftest import RUN, TASK, LogsTo, inside, lines
from tests.lab.receiver import Fault, FaultyReceiver
from tests.lab.waiting import HANG, NEVER

PROTOCOLS = pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])


@PROTOCOLS
def test_records_of_a_task_have_the_ids_of_its_span(
    protocol: str, receiver: FaultyReceiver, logs_to: LogsTo, app: logging.Logger
) -> None:
    logs = logs_to(receiver.endpoint(protocol), protocol)
    with inside():
        app.info("%d rows", 3, extra={"rows": 3})
        with TracerProvider(shutdown_on_exit=False).get_tracer("mine").start_as_current_span("own") as span:
            app.warning("within")
    app.info("outside of a task")
    assert logs.queue.flush(HANG) == FlushReport(put=2, sent=2)
    first, second = lines(receiver.logs)
    assert (first.scope, first.body, first.attributes["rows"]) == ("tests.app", "3 rows", 3)
    assert first.ids == (TASK.trace_id, TASK.span_id, 1)
    assert second.ids[1] == f"{span.get_span_context().span_id:016x}"
    assert logs.start_flush(HANG)(math.inf) == ""


@PROTOCOLS
def test_a_burst_of_records_is_complete(
    protocol: str, receiver: FaultyReceiver, logs_to: LogsTo, app: logging.Logger
) -> None:
    logs = logs_to(receiver.endpoint(protocol), protocol)
    contexts = 2
    app.propagate = False  # pytest keeps what reaches the root logger
    app.addHandler(logs.handler)

    def log(thread: int) -> None:
        for number in range(25_000):
            app.info("%d-%d", thread, number)

    with inside():
        copies = [contextvars.copy_context() for _ in range(contexts)]
    threads = [threading.Thread(target=copy.run, args=(log, n)) for n, copy in enumerate(copies)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    app.removeHandler(logs.handler)
    app.propagate = True
    assert logs.queue.flush(HANG) == FlushReport(put=50_000, sent=50_000)
    assert len({line.body for line in lines(receiver.logs)}) == 50_000


def test_records_are_sent_without_a_flush(receiver: FaultyReceiver, logs_to: LogsTo, app: logging.Logger) -> None:
    logs = logs_to(receiver.http_endpoint)
    with inside():
        app.info("now")
    assert receiver.wait_for_requests(1)[0].signal == "logs"
    assert logs.queue.flush(HANG).sent == 1  # the receiver stores the record after it has counted the request


def test_records_are_exported_while_a_run_is_attached(
    receiver: FaultyReceiver, logs_to: LogsTo, app: logging.Logger
) -> None:
    logs = logs_to(receiver.http_endpoint)
    other = TaskContext("other", "t", "work", place_run("other"))
    logs.attach("other")
    logs.attach("other")
    for run_id in (RUN, "other"):
        logs.detach(run_id)
        with inside(other):
            app.info("once")
    logs.detach("other")
    logs.detach("never attached")
    with inside(other):
        app.info("after the run")
    assert logs.queue.flush(HANG).put == 2
    assert [line.body for line in lines(receiver.logs)] == ["once", "once"]


def test_the_root_logger_has_no_handler_of_cascade(receiver: FaultyReceiver, logs_to: LogsTo) -> None:
    before = list(logging.root.handlers)
    logs_to(receiver.http_endpoint)
    assert logging.root.handlers == before


@PROTOCOLS
def test_a_flush_returns_soon_if_the_collector_is_unreachable(
    protocol: str, logs_to: LogsTo, app: logging.Logger
) -> None:
    logs = logs_to(servers.unused_endpoint(), protocol)
    for count in (1, 2):
        with inside():
            app.info("kept")
        report = logs.queue.flush(NEVER)
        assert (report.put, report.sent, report.lost, report.pending) == (count, 0, 0, count)
        warning = logs.start_flush(NEVER)(math.inf)
        assert ("1 log records are not yet delivered" in warning) == (count == 1), "one warning for an outage"
        assert ("connection refused" in warning) == (count == 1)


@pytest.mark.usefixtures("real_limits")
@PROTOCOLS
def test_a_flush_returns_soon_if_the_collector_is_silent(protocol: str, logs_to: LogsTo, app: logging.Logger) -> None:
    with servers.silent_server() as endpoint:
        logs = logs_to(endpoint, protocol)
        with inside():
            app.info("kept")
        report = logs.queue.flush(NEVER)
        assert (report.sent, report.lost, report.pending) == (0, 0, 1)


@PROTOCOLS
def test_a_request_that_may_be_retried_is_retried(
    protocol: str, receiver: FaultyReceiver, logs_to: LogsTo, app: logging.Logger
) -> None:
    receiver.fault = Fault.unavailable(times=1)
    logs = logs_to(receiver.endpoint(protocol), protocol)
    with inside():
        app.info("again")
    assert logs.queue.flush(HANG).sent == 1
    assert logs.start_flush(HANG)(math.inf) == ""
    assert len(receiver.requests) == 2


@pytest.mark.parametrize(
    ("protocol", "status", "code"),
    [("http/protobuf", n, None) for n in (404, 405, 501)] + [("grpc", None, "UNIMPLEMENTED")],
)
def test_a_collector_without_support_for_logs_is_reported_once(
    protocol: str, status: int | None, code: str | None, receiver: FaultyReceiver, logs_to: LogsTo, app: logging.Logger
) -> None:
    receiver.fault = Fault(http_status=status, grpc_code=code)
    logs = logs_to(receiver.endpoint(protocol), protocol)
    warnings = []
    for _ in range(3):
        with inside():
            app.info("unwanted")
        warnings.append(logs.start_flush(HANG)(math.inf))
    assert logs.queue.flush(HANG).lost == 3
    assert warnings[0].startswith(f"1 log records were lost at {logs.endpoint}: it does not support logs (")
    assert warnings[1:] == ["", ""]


def test_invalid_records_do_not_affect_other_records(
    receiver: FaultyReceiver, logs_to: LogsTo, app: logging.Logger, monkeypatch: pytest.MonkeyPatch
) -> None:
    logs = logs_to(receiver.http_endpoint)
    monkeypatch.setattr(logging, "raiseExceptions", False)
    app.propagate = False
    app.addHandler(logs.handler)
    with inside():
        app.info(*("%s %s", "too few"))
        app.info("\ud800 %s", "password=hunter2", extra={"nan": float("nan"), "token": "hunter2"})
        app.info("x" * 5_000_000)
    app.removeHandler(logs.handler)
    app.propagate = True
    assert logs.queue.flush(HANG) == FlushReport(put=3, sent=3)
    assert "hunter2" not in str(receiver.logs)


def test_records_of_a_transport_are_not_exported(
    receiver: FaultyReceiver, logs_to: LogsTo, app: logging.Logger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This includes a transport that logs on its thread in the context of the task that started the thread."""
    seen = threading.Semaphore(0)

    class LoggingTransport:
        def send(self, body: bytes, timeout: float) -> Reply:
            app.error("sending %d bytes", len(body))
            logging.getLogger("opentelemetry.x").error("sending")
            seen.release()
            return Reply("accepted")

        def close(self) -> None:
            app.error("closing")

    monkeypatch.setattr("cascade.connectors.otel.logs.run_logs.open_transport", lambda _: LoggingTransport())
    logs = logs_to(receiver.http_endpoint)
    with inside():
        app.info("once")
    assert logs.queue.flush(HANG) == FlushReport(put=1, sent=1)
    assert seen.acquire(timeout=HANG)
    assert logs.queue.flush(HANG) == FlushReport(put=1, sent=1)


@pytest.mark.parametrize("way", ["pass", "os.fork() or logging.getLogger().warning('child')"])
def test_records_before_an_exit_or_a_fork_are_delivered(way: str, receiver: FaultyReceiver) -> None:
    script = textwrap.dedent(f"""
        import logging, os, sys
        from opentelemetry.sdk.resources import Resource
        from cascade.connectors.otel.options import ExportOptions
        from cascade.connectors.otel.logs import RunLogs
        from tests.connectors.otel.logs.conftest import RUN, inside
        from tests.lab.time_limits import raise_time_limits
        raise_time_limits()
        options = ExportOptions.from_environment(endpoint={receiver.http_endpoint!r}, signal="logs", environ={{}})
        logs = RunLogs(lambda: Resource({{}}), options, 0, lambda make: make())
        logs.attach(RUN)
        with inside():
            logging.getLogger().warning("parent")
            {way}
    """)
    subprocess.run([sys.executable, "-c", script], check=True)
    receiver.wait_for_requests(2 if "fork" in way else 1)
    bodies = sorted(line.body for line in lines(receiver.logs))
    assert bodies == (["child", "parent"] if "fork" in way else ["parent"])


@pytest.mark.parametrize(
    ("logs", "environ", "level"),
    [
        (None, {}, None),
        (False, {"OTEL_LOGS_EXPORTER": "otlp"}, None),
        (None, {"OTEL_LOGS_EXPORTER": "console, OTLP"}, logging.NOTSET),
        (None, {"OTEL_LOGS_EXPORTER": "none"}, None),
        (True, {"OTEL_LOGS_EXPORTER": "none"}, logging.NOTSET),
        ("info", {}, logging.INFO),
        ("CRITICAL", {}, logging.CRITICAL),
        (True, {"OTEL_SDK_DISABLED": "true"}, None),
    ],
)
def test_logs_are_exported_only_if_they_are_enabled(logs: Any, environ: dict[str, str], level: int | None) -> None:
    assert chosen_level(logs, environ) == level


@pytest.mark.parametrize("logs", ["LOUD", "", 20, 1.5])
def test_an_unknown_level_raises_an_error_with_the_choices(logs: Any) -> None:
    with pytest.raises(ValueError, match=r"logs=.*DEBUG, INFO"):
        chosen_level(logs, {})


def test_messages_as_records_are_exported_once_and_only_within_a_task(
    receiver: FaultyReceiver, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)

    @cs.task
    def inner() -> None:
        cs.get_logger().info("hello")

    outer = cs.task(lambda: cs.run(inner(), log_format="logging", connector=[]), name="outer")
    cs.run(outer(), log_format="logging", connector=cs.OtelConnector(receiver.endpoint("http/protobuf"), logs=True))
    exported = [line for line in lines(receiver.logs) if line.scope.startswith("cascade")]
    events = [line.attributes["event_id"] for line in exported if line.scope == "cascade"]
    assert events == [*("run.started", "task.started", "task.finished_success", "run.finished_success")]
    assert {line.attributes["cascade.task.name"] for line in exported if line.scope == "cascade"} == {"outer"}
    assert len([record for record in caplog.records if record.name == "cascade"]) > len(events)
