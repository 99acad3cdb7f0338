import cascade as cs


@cs.task
def add(x: object, y: int = 0) -> int:
    return y


def test_every_kind_of_node_and_edge_is_drawn() -> None:
    selector, route, condition, amount, nested = (cs.task(lambda: 1, name=n)() for n in "srcan")
    target = add([nested], y=add(cs.Router(selector, {"k": route}))).run_if(condition).with_constraints(cpu=amount)
    dot = cs.visualize(target)
    assert dot.startswith("digraph CascadeWorkflow {")
    assert dot.endswith("}")
    assert 'rankdir="TB"' in dot
    assert f'"{target._uuid}" [label="add\\n(task)", shape=box];' in dot
    for style in (
        '[label="y"]',
        '[style=dashed, color=gray, label="run_if"]',
        '[style=dotted, color=purple, label="constraint: cpu"]',
        '[style=dashed, color=orange, arrowhead=open, label="route"]',
        '[style=dashed, color=blue, label="route via: 0"]',
        '[style=dotted, color=lightgray, arrowhead=none, label="implicit"]',
    ):
        assert style in dot
    assert f'"{nested._uuid}" -> "{target._uuid}" [style=dotted, color=lightgray' in dot


def test_maps_are_hexagons() -> None:
    target = add.map(x=[1])
    assert f'"{target._uuid}" [label="map(add)\\n(map)", shape=hexagon];' in cs.visualize(target)


def test_names_are_quoted() -> None:
    assert r'label="a\"b\\c\nd\n(task)"' in cs.visualize(cs.task(lambda: 1, name='a"b\\c\nd')())


def test_names_are_masked_and_printable() -> None:
    dot = cs.visualize(cs.task(lambda: 1, name="a\x1b[2J\u202e\u2028 password=hunter2X9\n✅")())
    assert r'label="a\\x1b[2J\\u202e\\u2028 password=***\n✅\n(task)"' in dot
