import json
import re
import subprocess
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import cascade as cs
from cascade.graph.build import build_graph
from tests.lab.programs import program
from tests.lab.waiting import HANG

QUOTED = r'"((?:[^"\\\n]|\\.)*)"'
NODE = re.compile(rf"  {QUOTED} \[label={QUOTED}(, shape=(box|hexagon|ellipse))?\];")
EDGE = re.compile(
    rf"  {QUOTED} -> {QUOTED} \[((style|color|arrowhead)=[a-z]+, )*label={QUOTED}\]( \[label={QUOTED}\])?;"
)

NAMES = [
    "end",
    'a"b',
    "a\\",
    "a\\n",
    "two\nlines",
    "<b>bold</b>",
    "&lt;",
    "#35;",
    "日本 é ✅",
    "[x] {y} (z)",
    "a|b;c",
    "%%{x}%%",
]


@cs.task
def add(x: object, y: object = 0) -> int:
    return 1


def every_kind() -> Any:
    """Return a workflow with each kind of node and edge."""
    selector, route, condition, amount, nested = (cs.task(lambda: 1, name=n)() for n in "srcan")
    routed = add(cs.Router(selector, {"k": route}))
    return add([nested], y=routed).run_if(condition).with_constraints(cpu=amount)


def parsed(dot: str) -> dict[str, str]:
    """Return the last label of each node of a digraph by id. Each line must be a statement of DOT."""
    first, second, *statements, last = dot.split("\n")
    assert (first, second, last) == ("digraph CascadeWorkflow {", '  rankdir="TB";', "}")
    labels: dict[str, str] = {}
    for statement in statements:
        if (node := NODE.fullmatch(statement)) is not None:
            labels[node[1]] = node[2]
        else:
            assert EDGE.fullmatch(statement), statement
    return labels


def test_every_kind_of_node_and_edge_is_drawn() -> None:
    target = every_kind()
    dot = cs.visualize(target)
    assert dot.startswith("digraph CascadeWorkflow {")
    assert dot.endswith("}")
    assert 'rankdir="TB"' in dot
    assert f'"{target._uuid}" [label="add\\n(task)", shape=box];' in dot
    for style in (
        '[label="y"]',
        '[style=dashed, color=gray, label="run_if"]',
        '[style=dotted, color=purple, label="constraint: cpu"]',
        '[style=dashed, color=orange, arrowhead=open, label="route"] [label="route: k"]',
        '[style=dashed, color=blue, label="route via: 0"]',
        '[style=dotted, color=lightgray, arrowhead=none, label="implicit"]',
    ):
        assert style in dot
    nested = next(node.id for node in build_graph(target).nodes if node.name == "n")
    assert f'"{nested}" -> "{target._uuid}" [style=dotted, color=lightgray' in dot


def test_maps_are_hexagons() -> None:
    target = add.map(x=[1])
    assert f'"{target._uuid}" [label="map(add)\\n(map)", shape=hexagon];' in cs.visualize(target)
    assert f'"{target._uuid}" [label="map(add)\\n(map)\\n1 item"];' in cs.visualize(target)


def test_inputs_have_their_names_types_and_defaults() -> None:
    count, home = cs.Param("count", 3, int, "how many"), cs.Env("HOME_TOWN")
    dot = cs.visualize(add(count, home))
    assert f'"{count._uuid}" [label="count\\n(param)", shape=ellipse];' in dot
    assert f'"{count._uuid}" [label="count\\n(param)\\nint, default 3, how many"];' in dot
    assert f'"{home._uuid}" [label="HOME_TOWN\\n(env)\\nrequired"];' in dot
    assert "_get_" not in dot


def test_options_are_lines_of_the_label() -> None:
    target = add(1).with_retry(3, delay=1, backoff=2).with_constraints(cpu=2).with_label("first")
    expected = r'[label="add\n(task)\nconstraints: cpu=2\nretries: 3, delay 1 s, backoff 2\nlabel: first"];'
    assert f'"{target._uuid}" {expected}' in cs.visualize(target)


def test_names_are_quoted() -> None:
    assert r'label="a\"b\\c\nd\n(task)"' in cs.visualize(cs.task(lambda: 1, name='a"b\\c\nd')())


def test_names_are_masked_and_printable() -> None:
    dot = cs.visualize(cs.task(lambda: 1, name="a\x1b[2J\u202e\u2028 password=hunter2X9\n✅")())
    assert r'label="a\\x1b[2J\\u202e\\u2028 password=***\n✅\n(task)"' in dot


def test_secret_defaults_and_labels_are_masked() -> None:
    target = add(cs.Param("api_token", "hunter2X9")).with_label("password=hunter2X9")
    assert "hunter2X9" not in cs.visualize(target) + cs.visualize(target, format="mermaid")


def test_an_unknown_format_is_refused() -> None:
    unknown: Any = "svg"
    with pytest.raises(ValueError, match=r"format='svg': choose 'dot' or 'mermaid'"):
        cs.visualize(add(1), format=unknown)


@given(st.text(min_size=1, max_size=20).filter(str.isprintable))
def test_each_name_is_a_label_of_the_grammar(name: str) -> None:
    routed = cs.Router(cs.Param(name), {name: add(1)})
    assert len(parsed(cs.visualize(cs.task(lambda x: x, name=name)(routed)))) == 3


def test_graphviz_reads_the_names_unchanged() -> None:
    target = cs.task(lambda *values: values, name="all")(*(cs.task(lambda: 1, name=name)() for name in NAMES))
    dot = subprocess.run(
        [program("dot"), "-Tjson"],
        input=cs.visualize(target),
        capture_output=True,
        encoding="utf-8",
        timeout=HANG,
        check=True,
    )
    labels = {node["label"] for node in json.loads(dot.stdout)["objects"]}
    expected = {name.replace("\\", "\\\\").replace("\n", "\\n") + "\\n(task)" for name in [*NAMES, "all"]}
    assert labels == expected


def test_graphviz_draws_every_kind_with_the_keys_of_the_routes() -> None:
    done = subprocess.run(
        [program("dot"), "-Tsvg"],
        input=cs.visualize(every_kind()),
        capture_output=True,
        text=True,
        timeout=HANG,
        check=True,
    )
    assert done.stderr == ""
    texts = re.findall(r"<text[^>]*>([^<]*)</text>", done.stdout)
    assert {"route: k", "route via: 0", "run_if", "constraint: cpu", "implicit"} <= set(texts)
