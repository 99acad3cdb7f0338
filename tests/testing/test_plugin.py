"""The pytest plugin in a separate project."""

import pytest

from tests.lab.extras import needs

pytest_plugins = ["pytester"]

CONFTEST = """
pytest_plugins = ["cascade.testing.plugin"]
"""
WORKFLOW = """
import cascade as cs

@cs.task
def load(rows: int) -> int:
    return rows
"""


@pytest.fixture
def project(pytester: pytest.Pytester) -> pytest.Pytester:
    pytester.makeconftest(CONFTEST)
    pytester.makepyfile(workflow=WORKFLOW)
    pytester.syspathinsert()
    return pytester


def run(project: pytest.Pytester, **outcomes: int) -> None:
    result = project.runpytest_subprocess("-p", "no:cacheprovider", "-p", "no:asyncio", "-W", "error")
    result.assert_outcomes(**outcomes)


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


@needs("otel")
def test_a_connector_without_an_endpoint_exports_to_the_receiver(project: pytest.Pytester) -> None:
    project.makepyfile("""
        import cascade as cs
        from cascade.testing import OtlpReceiver
        from workflow import load

        def test_spans(otlp_receiver: OtlpReceiver):
            assert cs.run(load(1), connector=cs.OtelConnector()) == 1
            spans = otlp_receiver.wait_for(lambda spans: any(span.name == "run load" for span in spans))
            assert spans.one("load").parent_span_id == spans.one("run load").span_id
    """)
    run(project, passed=1)
