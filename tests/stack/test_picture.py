import time
from xml.etree import ElementTree as ET

import cascade as cs
from cascade.testing import record_run
from stack.picture import draw

SVG = "{http://www.w3.org/2000/svg}"


@cs.task
async def load() -> list[int]:
    return list(range(20))


@cs.task
async def square(x: int) -> int:
    return x * x


@cs.task
async def fail(numbers: list[int]) -> int:
    raise ValueError("<no & never>")


def test_the_picture_shows_the_tree_errors_and_the_number_of_similar_spans() -> None:
    picture = ET.fromstring(draw(record_run(fail(square.map(x=load()))).spans))  # noqa: S314 - it is ours
    texts = ["".join(text.itertext()) for text in picture.iter(f"{SVG}text")]
    assert "map(square)← load" in texts
    assert "… 16 more square" in texts
    assert "failValueError" in texts
    assert any("25 spans, 2 errors" in text for text in texts)
    bars = [bar for bar in picture.iter(f"{SVG}rect") if bar.get("rx") == "2"]
    assert len(bars) == len(["run fail", "run fail started", "load", "map(square)", *["square"] * 4, "16 more", "fail"])


def test_a_wait_before_the_start_is_drawn_below_its_item() -> None:
    held = cs.task(lambda x: time.sleep(0.01), name="held").map(x=[1, 2]).with_constraints(slot=1)
    spans = record_run(held, system_resources={"slot": 1}).spans
    picture = ET.fromstring(draw(spans))  # noqa: S314 - it is ours
    shown = [(float(text.get("x") or 0), "".join(text.itertext())) for text in picture.iter(f"{SVG}text")]
    names = [(x, name) for x, name in shown if name.startswith("held")]
    assert names == [(48, "held[0]"), (48, "held[1]"), (64, "held wait[1]resource")]


def test_all_elements_are_inside_the_picture() -> None:
    picture = ET.fromstring(draw(record_run(load()).spans))  # noqa: S314 - it is ours
    width = float(picture.get("width") or 0)
    for bar in picture.iter(f"{SVG}rect"):
        assert 0 <= float(bar.get("x") or 0) <= float(bar.get("x") or 0) + float(bar.get("width") or 0) <= width
