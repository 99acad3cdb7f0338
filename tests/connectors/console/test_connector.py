import io
import re
import subprocess
import sys
from typing import Any

import pytest

import cascade as cs
from cascade.connectors.by_name import connectors_from
from cascade.connectors.console import ConsoleConnector
from cascade.connectors.report import ConnectorReport
from cascade.testing import ConnectorConformance, OtlpReceiver, render_trace
from tests.lab.extras import needs

TREE = re.compile(r"^([│├└─┄ ]*[^ ]+)", re.MULTILINE)


class TestConsoleConnector(ConnectorConformance):
    def make_connector(self) -> ConsoleConnector:
        return ConsoleConnector()


class TestConsoleConnectorWithoutTree(ConnectorConformance):
    def make_connector(self) -> ConsoleConnector:
        return ConsoleConnector(live=False, tree=False)


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FORCE_COLOR", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)


@cs.task
def double(n: int) -> int:
    return 2 * n


@cs.task
def add(*values: Any) -> int:
    return sum(values)


def test_without_a_terminal_the_log_is_unchanged_and_the_tree_follows(capsys: pytest.CaptureFixture[str]) -> None:
    cs.run(add(double(1), double(2)), connector=cs.MemoryConnector())
    without = capsys.readouterr().err.splitlines()
    cs.run(add(double(1), double(2)), connector=ConsoleConnector())
    shown = capsys.readouterr().err.splitlines()
    assert [line.split(" in ")[0] for line in shown[:-6]] == [line.split(" in ")[0] for line in without[:-1]]
    tree = shown[-6:-1]
    assert re.fullmatch(r"trace [0-9a-f]{32} · 4 spans +0 ─+ .*", tree[0])
    assert [TREE.findall(line)[0] for line in tree[1:]] == ["run", "├─ double", "├─ double", "└─ add"]
    assert "← 2 x double" in tree[4]
    assert shown[-1].startswith("🔎 Trace ")


def test_the_first_wait_of_a_task_for_each_reason_is_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    limited = double.map(n=[1, 2, 3]).with_constraints(gpu=1)
    cs.run(limited, connector=ConsoleConnector(tree=False), system_resources={"gpu": 1}, log_level="OFF")
    assert capsys.readouterr().err == "⏳ double[1]: waits for resources\n"


def test_a_large_run_has_a_short_tree_with_its_failed_and_slowest_parts(capsys: pytest.CaptureFixture[str]) -> None:
    @cs.task
    def item(n: int) -> int:
        if n == 2_000:
            raise ValueError("the bad one")
        return n

    tasks = [double.map(n=range(50)) for _ in range(40)]
    with pytest.raises(ValueError, match="the bad one"):
        cs.run(add(item.map(n=range(3_000)), *tasks), connector=ConsoleConnector(), log_level="OFF")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) < 110
    assert any("✗ ValueError: the bad one" in line and "item[2000]" in line for line in lines)
    assert any("more item" in line for line in lines)
    spans = int(re.findall(r"· ([\d,]+) spans, 2 errors", lines[0])[0].replace(",", ""))
    assert spans > 2_000


@pytest.mark.parametrize("option", [{"tree": False}, {"live": False}], ids=str)
def test_the_tree_can_be_left_out(option: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    cs.run(double(1), connector=ConsoleConnector(**option), log_level="OFF")
    assert ("└─ double" in capsys.readouterr().err) is ("live" in option)


def test_secrets_are_masked_and_texts_are_printable(capsys: pytest.CaptureFixture[str]) -> None:
    @cs.task
    def fail() -> None:
        raise ValueError("password=hunter2 \x1b[2J\r\n end")

    with pytest.raises(ValueError, match="hunter2"):
        cs.run(fail(), connector=ConsoleConnector(), log_level="OFF")
    shown = capsys.readouterr().err
    assert "hunter2" not in shown
    assert "end" in shown
    assert all(line.isprintable() for line in shown.splitlines())
    assert "\x1b" not in shown


def test_the_tree_of_a_run_inside_a_span_of_the_application_misses_no_parent(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trace_id, parent_id = "ab" * 16, "cd" * 8
    monkeypatch.setenv("TRACEPARENT", f"00-{trace_id}-{parent_id}-01")
    cs.run(double(1), connector=ConsoleConnector())
    tree = capsys.readouterr().err
    assert f"trace {trace_id}" in tree
    assert "missing" not in tree


@pytest.mark.injects_errors("the stream raises")
@pytest.mark.parametrize("error", [BrokenPipeError("gone"), ValueError("I/O operation on closed file"), RuntimeError()])
def test_an_error_of_the_stream_does_not_end_the_run(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(io.StringIO):
        def write(self, text: str) -> int:
            raise error

    monkeypatch.setattr(sys, "stderr", Broken())
    limited = double.map(n=[1, 2, 3]).with_constraints(gpu=1)
    assert cs.run(limited, connector=ConsoleConnector(), system_resources={"gpu": 1}) == [2, 4, 6]


def test_no_stderr_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    assert cs.run(double(1), connector=ConsoleConnector(), log_level="OFF") == 2


@pytest.mark.parametrize(
    ("encoding", "expected"), [("latin-1", "`- double"), ("ascii", "`- double"), ("utf-8", "└─ d")]
)
def test_the_tree_uses_characters_of_the_encoding(
    encoding: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = io.BytesIO()
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(data, encoding=encoding, write_through=True))
    cs.run(double(1), connector=ConsoleConnector(), log_level="OFF")
    assert expected in data.getvalue().decode(encoding)


def test_the_environment_can_select_it_beside_others(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    connectors = connectors_from({"CASCADE_CONNECTOR": "console,memory"})
    assert [type(one).__name__ for one in connectors] == ["ConsoleConnector", "MemoryConnector"]
    monkeypatch.setenv("CASCADE_CONNECTOR", "console")
    cs.run(double(1), log_level="OFF")
    assert "└─ double" in capsys.readouterr().err


def test_the_report_has_the_messages_and_the_connection() -> None:
    connector = ConsoleConnector()
    reports = []

    @cs.task
    def look() -> None:
        reports.append(connector.report())

    cs.run(look(), connector=connector, log_level="OFF")
    assert [report.connected for report in reports] == [True]
    assert connector.report() == ConnectorReport(sent=3)  # without a view, the start of a task has no message


def test_without_rich_the_error_names_the_extra() -> None:
    program = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name == "rich":
            raise ModuleNotFoundError("No module named 'rich'", name="rich")
sys.meta_path.insert(0, Absent())
import cascade as cs
try:
    cs.ConsoleConnector
except ImportError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "rich is not installed: run pip install 'cascade-runs[cli]'\n"


def test_it_needs_no_opentelemetry() -> None:
    program = """
import sys
sys.modules["opentelemetry"] = None
import cascade as cs
cs.run(cs.task(lambda: 1, name="one")(), connector=cs.ConsoleConnector())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, encoding="utf-8", check=True)
    assert "└─ one" in done.stderr


@needs("otel")
def test_the_tree_is_that_of_the_received_spans(capsys: pytest.CaptureFixture[str]) -> None:
    calls: list[int] = []

    @cs.task
    def flaky(n: int) -> int:
        calls.append(n)
        if len(calls) == 1:
            raise ConnectionError("reset")
        return n

    @cs.resource
    def pool() -> Any:
        yield 1

    @cs.task
    def use(n: int, pool: int = cs.inject("pool")) -> int:
        return cs.run(double(n), log_level="OFF", connector=connectors)

    target = add(flaky.map(n=[1, 2]).with_retry(1), use(1), double(1).run_if(double(0)))
    with OtlpReceiver() as receiver:
        connectors: list[cs.Connector] = [ConsoleConnector(), cs.OtelConnector(receiver.http_endpoint)]
        with pytest.raises(cs.DependencyMissingError):
            cs.run(target, resources=[pool], log_level="OFF", connector=connectors)
        spans = receiver.wait_for(lambda spans: any(span.name == "run add" for span in spans))
    shown = capsys.readouterr().err
    others = [span for span in spans if not span.name.endswith(" started")]
    expected = render_trace(others, width=100, color=False)
    assert _names(shown) == _names(expected)
    assert "trace" in shown


def _names(tree: str) -> list[str]:
    """Return the tree without the durations, the bars and the services."""
    return [re.sub(r" {2,}(@|[\d.]+ (ns|µs|ms|s)).*|  ← .*", "", line).rstrip() for line in tree.splitlines()[1:]]
