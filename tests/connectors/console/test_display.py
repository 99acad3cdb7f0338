import io
import threading
from collections.abc import Callable, Iterator

import pytest

from cascade.connectors.console import display as module
from cascade.connectors.console.display import MAX_PENDING, LiveDisplay
from tests.lab.waiting import HANG, until_blocking


class Screen(io.StringIO):
    """A stream whose writes a test can block or let fail."""

    def __init__(self) -> None:
        super().__init__()
        self.is_writable = threading.Event()
        self.is_writable.set()
        self.blocked = threading.Event()
        self.error: Exception | None = None

    def write(self, text: str) -> int:
        if not self.is_writable.is_set():
            self.blocked.set()
            self.is_writable.wait(HANG)
        if self.error is not None:
            raise self.error
        return super().write(text)


@pytest.fixture
def screen() -> Screen:
    return Screen()


Draw = Callable[[int, int], tuple[list[str], bool]]


@pytest.fixture
def start(screen: Screen) -> Iterator[Callable[[Draw], LiveDisplay]]:
    displays: list[LiveDisplay] = []

    def start(draw: Draw) -> LiveDisplay:
        displays.append(LiveDisplay(screen, draw))
        return displays[-1]

    yield start
    screen.is_writable.set()
    for display in displays:
        display.end().result(HANG)
    assert "write" not in vars(screen)


Start = Callable[[Draw], LiveDisplay]


def test_without_a_change_nothing_is_drawn(screen: Screen, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn, looks = [], []

    def look(stream: io.StringIO) -> tuple[int, int]:
        looks.append(stream)
        return 80, 24

    def draw(columns: int, lines: int) -> tuple[list[str], bool]:
        drawn.append((columns, lines))
        return ["view"], False

    monkeypatch.setattr(module, "TICK_SECONDS", 0.01)
    monkeypatch.setattr(module, "size_of", look)
    display = start(draw)
    display.change()
    until_blocking(lambda: len(drawn) == 1)
    before = len(looks)
    until_blocking(lambda: len(looks) > before + 5)  # it has looked at the size of the terminal only
    assert drawn == [(79, 23)]
    assert screen.getvalue().count("view") == 1


def test_a_view_with_durations_is_drawn_again_with_time(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []

    def draw(columns: int, lines: int) -> tuple[list[str], bool]:
        drawn.append(1)
        return [f"{len(drawn)} s"], True

    monkeypatch.setattr(module, "TICK_SECONDS", 0.01)
    monkeypatch.setattr(module, "FRAME_SECONDS", 0.01)
    start(draw).change()
    until_blocking(lambda: len(drawn) > 5)


def test_a_line_without_its_end_is_bounded(screen: Screen, start: Start) -> None:
    start(lambda *_: ([], False))
    for _ in range(100):
        screen.write("x" * 1_000)
    until_blocking(lambda: screen.getvalue().count("x") >= 90_000)


def test_a_terminal_that_is_stopped_blocks_a_program_that_prints_much(screen: Screen, start: Start) -> None:
    display = start(lambda *_: (["view"], False))
    screen.is_writable.clear()
    display.change()
    screen.blocked.wait(HANG)
    printed: list[int] = []

    def talk() -> None:
        for number in range(10):
            screen.write("y" * (MAX_PENDING // 4) + "\n")
            printed.append(number)

    thread = threading.Thread(target=talk)
    thread.start()
    until_blocking(lambda: len(printed) >= 3)
    screen.is_writable.set()
    thread.join(HANG)
    assert len(printed) == 10
    until_blocking(lambda: screen.getvalue().count("y") == 10 * (MAX_PENDING // 4))


@pytest.mark.injects_errors("the drawing raises")
def test_a_fault_of_the_drawing_ends_the_view_and_not_the_output(
    screen: Screen, start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    def draw(*_: int) -> tuple[list[str], bool]:
        raise LookupError("no such style")

    display = start(draw)
    screen.write("before\n")
    assert display.ended.result(HANG) is None
    screen.write("after\n")
    assert screen.getvalue() == "before\nafter\n"
    assert [record.getMessage() for record in caplog.records] == ["The live view has ended: LookupError: no such style"]


@pytest.mark.parametrize("error", [BrokenPipeError("gone"), ValueError("I/O operation on closed file")])
def test_a_terminal_that_is_gone_ends_the_view_silently(
    error: Exception, screen: Screen, start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    display = start(lambda *_: (["view"], False))
    screen.error = error
    display.change()
    assert display.ended.result(HANG) is None
    assert not caplog.records
    with pytest.raises(type(error)):
        screen.write("as without a view")


def test_a_second_display_of_a_stream_prints_below_the_first_one_until_it_ends(screen: Screen, start: Start) -> None:
    first = start(lambda *_: (["first"], False))
    second = start(lambda *_: (["second"], False))
    first.end().result(HANG)
    screen.write("between\n")
    second.end().result(HANG)
    screen.write("after\n")
    assert screen.getvalue().endswith("after\n")
    assert screen.getvalue().count("between") == 1
