"""Forked children of an exporting process: each has its own identity and delivers its own telemetry."""

import json
import os
import subprocess
import sys
import textwrap
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.connectors.otel.instances import logs_by_instance, runs_by_instance, spans_by_instance
from tests.connectors.otel.tracing import Collector, collectors
from tests.lab.receiver import FaultyReceiver
from tests.lab.waiting import HANG

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")

HEAD = """
import concurrent.futures, json, logging, multiprocessing, os, sys, threading
import cascade as cs
from cascade.connectors.fanout import FanoutConnector
from cascade.connectors.memory import MemoryConnector
from cascade.connectors.otel import OtelConnector
from opentelemetry import trace

endpoint, protocol, *arguments = sys.argv[1:]
connector = OtelConnector(endpoint, protocol=protocol, logs=True)

def span(name):
    with trace.get_tracer("users").start_as_current_span(name):
        return os.getpid()

@cs.task
def leaf():
    logging.getLogger("users").warning("from a task")
    return span("below leaf")

def run():
    return cs.run(leaf(), connector=connector, log_level="ERROR")

def run_and_span(name="late"):
    run()
    return span(name)

def wait(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
"""


@pytest.fixture
def collector() -> Iterator[Collector]:
    yield from collectors("http/protobuf")


@pytest.fixture(params=["http/protobuf", "grpc"])
def either(request: pytest.FixtureRequest) -> Iterator[Collector]:
    """For programs that do not export before they fork: gRPC does not reliably survive a fork while it is in use."""
    yield from collectors(request.param)


def program(folder: Path, code: str, collector: Collector, *arguments: str, **environ: str) -> str:
    """Run it in a file, as `spawn` needs; Python 3.12 and later warn of a fork beside threads."""
    path = folder / "program.py"
    path.write_text(HEAD + "\nif __name__ == '__main__':\n" + textwrap.indent(textwrap.dedent(code), "    "))
    command = [sys.executable, "-W", "ignore:This process:DeprecationWarning", str(path)]
    done = subprocess.run(
        [*command, collector.endpoint, collector.protocol, *arguments],
        capture_output=True,
        text=True,
        timeout=HANG,
        check=False,
        env={**os.environ, "OTEL_METRIC_EXPORT_INTERVAL": "600000", **environ},
    )
    assert done.returncode == 0, done.stderr
    assert "lost" not in done.stderr
    return done.stdout


def test_spans_metrics_logs_and_messages_agree_on_one_identity_per_process(
    tmp_path: Path, collector: Collector
) -> None:
    printed = program(
        tmp_path,
        """
        memory = MemoryConnector()
        both = FanoutConnector([connector, memory])
        def runs(count):
            for _ in range(count):
                cs.run(leaf(), connector=both, log_level="ERROR")
            sources = {message.payload["source"] for message in memory.messages[before:]}
            print(json.dumps([count, *sources]), flush=True)
        before = 0
        runs(1)
        before = len(memory.messages)
        for count in (2, 3):
            child = os.fork()
            if not child:
                runs(count)
                grandchild = os.fork()
                if not grandchild:
                    before = len(memory.messages)
                    runs(4)
                    os._exit(0)
                os._exit(wait(grandchild))
            assert wait(child) == 0
        """,
        collector,
    )
    expected = {source: count for count, source in map(json.loads, printed.splitlines())}
    assert sorted(expected.values()) == [1, 2, 3, 4, 4]
    receiver = collector.receiver
    for name in ("run leaf", "leaf", "below leaf", "run leaf started"):
        assert spans_by_instance(receiver, name) == expected, name
    assert runs_by_instance(receiver) == expected
    assert logs_by_instance(receiver) == expected


def test_an_instance_id_that_the_user_has_set_is_that_of_all_children(tmp_path: Path, collector: Collector) -> None:
    program(
        tmp_path,
        """
        run()
        child = os.fork()
        if not child:
            run()
            os._exit(0)
        assert wait(child) == 0
        """,
        collector,
        OTEL_RESOURCE_ATTRIBUTES="team=a, service.instance.id=mine",
    )
    for name in ("run leaf", "leaf", "below leaf"):
        assert spans_by_instance(collector.receiver, name) == {"mine": 2}
    assert runs_by_instance(collector.receiver).keys() == logs_by_instance(collector.receiver).keys() == {"mine"}


def test_a_connector_before_its_first_run_has_no_thread(tmp_path: Path, either: Collector) -> None:
    assert program(tmp_path, "print(threading.enumerate() == [threading.main_thread()])", either) == "True\n"
    assert either.receiver.requests == []


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
@pytest.mark.parametrize("way", ["process", "pool", "executor"])
def test_a_child_of_multiprocessing_delivers_what_ends_last(
    tmp_path: Path, either: Collector, method: str, way: str
) -> None:
    program(
        tmp_path,
        """
        method, way = arguments
        context = multiprocessing.get_context(method)
        if way == "process":
            children = [context.Process(target=run_and_span) for _ in range(2)]
            for child in children:
                child.start()
            for child in children:
                child.join()
            assert [child.exitcode for child in children] == [0, 0]
        elif way == "pool":
            with context.Pool(2) as pool:
                pool.map(run_and_span, ["late"] * 2, chunksize=1)
                pool.close()
                pool.join()
        else:
            with concurrent.futures.ProcessPoolExecutor(2, mp_context=context) as pool:
                list(pool.map(run_and_span, ["late"] * 2))
        """,
        either,
        method,
        way,
    )
    late = spans_by_instance(either.receiver, "late")
    assert late.total() == 2
    assert spans_by_instance(either.receiver, "run leaf") == late
    assert runs_by_instance(either.receiver) == late


def test_prefork_workers_export_with_the_connector_of_their_parent(tmp_path: Path, either: Collector) -> None:
    printed = program(
        tmp_path,
        """
        from cascade.telemetry.topics import source
        counts = (1, 2, 3)
        children = []
        for count in counts:
            children.append(os.fork())
            if not children[-1]:
                for _ in range(count):
                    run()
                sys.stdout.write(f"{source()} {count}\\n")  # one write: the lines of the children do not mix
                sys.stdout.flush()
                os._exit(0)
        assert [wait(child) for child in children] == [0, 0, 0]
        """,
        either,
    )
    expected = {source: int(count) for source, count in map(str.split, printed.splitlines())}
    assert sorted(expected.values()) == [1, 2, 3]
    for name in ("run leaf", "leaf", "below leaf", "run leaf started"):
        assert spans_by_instance(either.receiver, name) == expected, name
    assert runs_by_instance(either.receiver) == logs_by_instance(either.receiver) == expected


def test_children_that_tasks_fork_deliver_and_exit_with_success(tmp_path: Path, collector: Collector) -> None:
    program(
        tmp_path,
        """
        def child():
            span("in child")
            run()

        def forks():
            process = multiprocessing.get_context("fork").Process(target=child)
            process.start()
            process.join()
            return process.exitcode

        async def forks_in_the_loop():
            return forks()

        targets = [cs.task(forks)(), cs.task(threaded=False)(forks)(), cs.task(forks_in_the_loop)()]
        for target in targets:
            assert cs.run(target, connector=connector, log_level="ERROR") == 0
        assert cs.run(cs.task(lambda x: forks(), name="item").map(x=[1, 2]), connector=connector, log_level="ERROR") == [0, 0]
        """,
        collector,
    )
    names = Counter(span.name for span in collector.receiver.spans)
    assert (names["in child"], names["run leaf"], names["below leaf"]) == (5, 5, 5)
    assert (names["forks"], names["forks_in_the_loop"], names["item"]) == (2, 1, 2)
    by_id = {span.span_id: span.name for span in collector.receiver.spans}
    parents = Counter(by_id[span.parent_span_id or ""] for span in collector.receiver.spans if span.name == "in child")
    assert parents == {"forks": 2, "forks_in_the_loop": 1, "item": 2}


@pytest.mark.parametrize("ending", ["return 1", "sys.exit(0)", "os._exit(0 if flushed() else 1)"])
def test_the_run_is_the_parents_however_a_forked_child_leaves_the_task(
    tmp_path: Path, collector: Collector, ending: str
) -> None:
    program(
        tmp_path,
        f"""
        def flushed():
            return trace.get_tracer_provider().force_flush()

        @cs.task
        def forks():
            child = os.fork()
            if child:
                return wait(child)
            span("in child")
            {ending}

        assert cs.run(forks(), connector=connector, log_level="ERROR") == 0
        """,
        collector,
    )
    names = Counter(span.name for span in collector.receiver.spans)
    assert names == {"run forks started": 1, "in child": 1, "forks": 1, "run forks": 1}


@pytest.mark.parametrize("ending", ["return 1", "sys.exit(0)"])
def test_a_child_that_leaves_the_event_loops_thread_reports_nothing_of_the_run(
    tmp_path: Path, collector: Collector, ending: str
) -> None:
    program(
        tmp_path,
        f"""
        @cs.task(threaded=False)
        def forks():
            child = os.fork()
            if child:
                return wait(child)
            span("in child")
            {ending}

        assert cs.run(forks(), connector=connector, log_level="ERROR") == 0
        """,
        collector,
    )
    names = Counter(span.name for span in collector.receiver.spans)
    assert names == {"run forks started": 1, "in child": 1, "forks": 1, "run forks": 1}
    assert runs_by_instance(collector.receiver).total() == 1


def test_forks_beside_running_exports_do_not_hang(tmp_path: Path, collector: Collector) -> None:
    printed = program(
        tmp_path,
        """
        run()
        done = threading.Event()
        def exports():
            while not done.is_set():
                span("beside")
                trace.get_tracer_provider().force_flush()
                logging.getLogger("users").debug("a lock of logging")
        threads = [threading.Thread(target=exports) for _ in range(2)]
        for thread in threads:
            thread.start()
        codes = []
        for _ in range(10):
            child = os.fork()
            if not child:
                run_and_span()
                os._exit(0 if trace.get_tracer_provider().force_flush() else 1)
            codes.append(wait(child))
        done.set()
        for thread in threads:
            thread.join()
        print(codes)
        """,
        collector,
    )
    assert printed == f"{[0] * 10}\n"
    late = spans_by_instance(collector.receiver, "late")
    assert len(late) == 10
    runs = spans_by_instance(collector.receiver, "run leaf")
    (parent,) = runs.keys() - late.keys()
    assert runs == late + Counter({parent: 1})
    assert spans_by_instance(collector.receiver, "beside").keys() == {parent}


def test_a_grpc_call_without_an_answer_after_a_fork_names_the_fork(tmp_path: Path) -> None:
    with FaultyReceiver() as receiver:
        printed = program(
            tmp_path,
            """
            from cascade.connectors.otel.grpc import GrpcTransport
            from cascade.connectors.otel.options import ExportOptions
            import socket
            silent = socket.create_server(("127.0.0.1", 0))
            endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
            transport = GrpcTransport(ExportOptions.from_environment(endpoint=endpoint, protocol="grpc"))
            before = transport.send(b"", 0.2).reason
            transport = GrpcTransport(ExportOptions.from_environment(endpoint=endpoint, protocol="grpc"))
            transport.send(b"", 0.2)
            child = os.fork()
            if not child:
                os._exit(0)
            print(wait(child), before, transport.send(b"", 0.2).reason, sep="|")
            """,
            Collector(receiver, "http/protobuf"),
        )
    code, before, after = printed.strip().split("|")
    assert (code, before) == ("0", "no answer within 0.2 s")
    assert after.startswith("no answer within 0.2 s (gRPC was in use at a fork")
