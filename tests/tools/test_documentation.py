"""The plan and the diagram on the page about inspection are those of its example."""

import re
from pathlib import Path

import pytest

import cascade as cs

PAGE = (Path(__file__).parents[2] / "docs" / "inspection.md").read_text(encoding="utf-8")


def block(language: str) -> str:
    found = re.search(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    assert found is not None
    return found[1]


def test_the_page_has_the_plan_and_the_diagram_of_its_example(capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, object] = {"__name__": "page"}
    exec(compile(block("python"), "inspection.md", "exec"), names)  # noqa: S102 - the example of the page
    cs.dry_run(names["report"])
    assert capsys.readouterr().out == block("text")
    assert cs.visualize(names["report"], format="mermaid") + "\n" == block("mermaid")
