"""The pytest plugin in a separate project."""

import pytest

from tests.lab.extras import needs

pytest_plugins = ["pytester"]

WORKFLOW = """
import cascade as cs

@cs.task
def load(rows: int) -> int:
    return rows
"""
WITHOUT_OTEL = """
import sys

sys.modules["opentelemetry"] = None
"""
OPTIONS = ("-p", "no:cacheprovider", "-W", "error")


@pytest.fixture
def project(pytester: pytest.Pytester) -> pytest.Pytester:
    pytester.makepyfile(workflow=WORKFLOW)
    pytester.makeini("[pytest]\nasyncio_default_fixture_loop_scope = function")
    pytester.syspathinsert()
    return pytester


def run(project: pytest.Pytester, *options: str, **outcomes: int) -> pytest.RunResult:
    result = project.runpytest_subprocess(*OPTIONS, *options)
    result.assert_outcomes(**outcomes)
    return result


@needs("otel")
def test_a_run_is_recorded_and_its_error_is_not_raised(project: pytest.Pytester) -> None:
    project.makepyfile("""
        import cascade as cs
        from cascade.testing.plugin import CascadeRun
        from workflow import load

        def test_value(cascade_run: CascadeRun):
            run = cascade_run(load(cs.Param("rows", type=int)), {"rows": 3})
            assert (run.value, run.states("load")) == (3, ["RUNNING", "COMPLETED"])
            assert run.spans.one("load")

        def test_error(cascade_run: CascadeRun):
            def fail():
                raise LookupError("no such row")

            assert isinstance(cascade_run(cs.task(fail)()).error, LookupError)
    """)
    run(project, passed=2)


ASYNC_TESTS = """
import pytest
import cascade as cs
from workflow import load

@pytest.mark.parametrize("default", [1, 2])
@pytest.mark.{mark}
async def test_default(cascade_run_async, default):
    run = await cascade_run_async(load(cs.Param("rows", default, int)), spans=False)
    assert (run.value, run.states("load")) == (default, ["RUNNING", "COMPLETED"])
    assert [spec.default for spec in cs.get_current_context().get_all_specs()] == [default]

@pytest.mark.{mark}
async def test_the_plain_fixture(cascade_run):
    with pytest.raises(RuntimeError, match="cascade_run_async"):
        cascade_run(load(1))

def test_no_param_is_left():
    assert not cs.get_current_context().get_all_specs()
"""
ONLY_ASYNCIO = """
import pytest

@pytest.fixture
def anyio_backend():
    return "asyncio"
"""


@pytest.mark.parametrize("mark", ["asyncio", "anyio"])
def test_async_tests(project: pytest.Pytester, mark: str) -> None:
    if mark == "anyio":
        pytest.importorskip("anyio")
        project.makeconftest(ONLY_ASYNCIO)
    project.makepyfile(ASYNC_TESTS.format(mark=mark))
    run(project, passed=4)


def test_params_of_a_test_do_not_exist_in_the_next_one(project: pytest.Pytester) -> None:
    project.makepyfile("""
        import pytest
        import cascade as cs
        from workflow import load

        @pytest.mark.parametrize("default", [1, 2])
        def test_default(cascade_run, default):
            assert cascade_run(load(cs.Param("rows", default, int)), spans=False).value == default
            assert [spec.default for spec in cs.get_current_context().get_all_specs()] == [default]
    """)
    run(project, passed=2)


RECEIVER = """
import pytest
import cascade as cs
from cascade.testing import OtlpReceiver
from workflow import load

@pytest.mark.parametrize("rows", [1, 2, 3, 4])
def test_spans(otlp_receiver: OtlpReceiver, rows):
    assert cs.run(load(rows), connector=cs.OtelConnector()) == rows
    spans = otlp_receiver.wait_for(lambda spans: any(span.name == "run load" for span in spans))
    assert spans.one("load").parent_span_id == spans.one("run load").span_id
"""


@needs("otel")
@pytest.mark.parametrize("options", [(), ("-n", "2")], ids=["one process", "xdist"])
def test_a_connector_without_an_endpoint_exports_to_the_receiver_of_its_test(
    project: pytest.Pytester, options: tuple[str, ...]
) -> None:
    project.makepyfile(RECEIVER)
    run(project, *options, passed=4)


@needs("otel")
async def test_the_receiver_in_an_async_test(project: pytest.Pytester) -> None:
    project.makepyfile("""
        import pytest
        import cascade as cs
        from workflow import load

        @pytest.mark.asyncio
        async def test_spans(otlp_receiver):
            assert await cs.run_async(load(1), connector=cs.OtelConnector()) == 1
            assert otlp_receiver.spans.one("load")
    """)
    run(project, passed=1)


def test_without_the_extra_the_receiver_names_it_and_the_other_fixtures_work(project: pytest.Pytester) -> None:
    project.makeconftest(WITHOUT_OTEL)
    project.makepyfile("""
        import pytest
        from workflow import load

        def test_run(cascade_run):
            run = cascade_run(load(1))
            assert (run.value, run.states("load")) == (1, ["RUNNING", "COMPLETED"])
            with pytest.raises(ImportError, match=r"pip install 'cascade-runs\\[otel\\]'"):
                run.spans.one("load")

        @pytest.mark.asyncio
        async def test_async_run(cascade_run_async):
            assert (await cascade_run_async(load(1))).value == 1

        def test_receiver(otlp_receiver):
            pass
    """)
    result = run(project, passed=2, errors=1)
    result.stdout.fnmatch_lines(["*ImportError: *: run pip install 'cascade-runs[[]otel]'*"])


def test_a_project_without_cascade_imports_the_plugin_only(project: pytest.Pytester) -> None:
    project.makepyfile("""
        import sys

        def test_modules():
            ours = {name for name in sys.modules if name.partition(".")[0] == "cascade"}
            assert ours == {
                "cascade", "cascade._forks", "cascade._imports", "cascade.testing", "cascade.testing.plugin"
            }
            assert "opentelemetry" not in sys.modules
    """)
    run(project, passed=1)


def test_a_conftest_may_name_the_plugin_too(project: pytest.Pytester) -> None:
    project.makeconftest('pytest_plugins = ["cascade.testing.plugin"]')
    project.makepyfile("""
        from workflow import load

        def test_run(cascade_run):
            assert cascade_run(load(1), spans=False).value == 1
    """)
    run(project, passed=1)


def test_pytest_lists_the_fixtures(project: pytest.Pytester) -> None:
    result = run(project, "--fixtures")
    result.stdout.fnmatch_lines(["cascade_run *", "*Run workflows and return their records.*", "otlp_receiver *"])
