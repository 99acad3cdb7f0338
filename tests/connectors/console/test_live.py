"""The live view, in a pseudo-terminal."""

import os
import re
from pathlib import Path

import pytest

from tests.lab.terminal import Terminal

PRELUDE = """
import asyncio, logging, sys, threading
import cascade as cs

def gate(name):
    with open(f"{sys.argv[1]}/{name}") as fifo:  # until the test opens it
        fifo.read()

@cs.task
def wait_for(name):
    gate(name)
    return name
"""
PAGE = Path(__file__).parents[3] / "docs/tracing.md"
MOVES_UP = re.compile(rb"\x1b\[\d+A")
COLORS = re.compile(rb"\x1b\[[0-9;]+m")


class Gates:
    """Points at which a program waits for the test."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def make(self, *names: str) -> None:
        for name in names:
            os.mkfifo(self.folder / name)

    def open(self, name: str) -> None:
        with (self.folder / name).open("w"):
            pass


@pytest.fixture
def gates(tmp_path: Path) -> Gates:
    gates = Gates(tmp_path)
    gates.make("a", "b", "c", "d", "e")
    return gates


def has(*texts: str):  # type: ignore[no-untyped-def]
    """Return a condition: each text is in a line of the screen."""
    return lambda lines: all(any(text in line for line in lines) for text in texts)


def test_the_view_has_a_line_for_each_task_a_bar_for_a_map_and_reasons(gates: Gates) -> None:
    program = f"""{PRELUDE}
@cs.task
def item(n):
    if n == 3:
        raise ConnectionError("reset by peer")
    if n > 7:
        gate("b")
    return n

@cs.task
def fail():
    raise LookupError("no such table")

@cs.task
def collect(*values): pass

items = item.map(n=list(range(9))).with_retry(3, delay=3600)
limited = [wait_for("a").with_constraints(gpu=1), wait_for("c").with_constraints(gpu=1)]
cs.run(collect(items, *limited), connector=cs.ConsoleConnector(), system_resources={{"gpu": 1}})
"""
    with Terminal(program, [str(gates.folder)]) as terminal:
        lines = terminal.until(
            has(
                "run collect",
                "7 of 9",
                "attempt 2 of 4 in 59m 59s: ConnectionError: reset by peer",
                "waits for resources",
            )
        )
        shown = "\n".join(lines)
        assert re.search(r"▸ run collect  \d+ s  0 of 4 tasks, 1 waiting", shown)
        assert re.search(r"  ▸ map\(item\) +█+░+  7 of 9", shown)
        assert "    ↻ item[3]" in shown
        assert re.search(r"  ▸ wait_for +\d+ s", shown)
        assert re.search(r"  ◦ wait_for +waits for resources", shown)
        assert "… 1 not started" in shown


def test_what_a_program_prints_is_above_the_view_in_its_order(gates: Gates) -> None:
    program = f"""{PRELUDE}
logging.basicConfig(level="INFO", format="%(message)s")  # keeps the stream from before the run

@cs.task
def talk():
    print("out 1")
    print("err 2", file=sys.stderr)
    logging.info("log 3")
    sys.stdout.write("out ")
    sys.stdout.write("4\\n")
    gate("a")
    print("unfinished", end="", flush=True)
    gate("b")
    print(" line", flush=True)

cs.run(talk(), connector=cs.ConsoleConnector())
print("after")
"""
    with Terminal(program, [str(gates.folder)]) as terminal:
        lines = terminal.until(has("out 4", "run talk"))
        order = [next(i for i, line in enumerate(lines) if text in line) for text in ("out 1", "err 2", "log 3")]
        assert order == sorted(order)
        assert lines[-2].startswith("▸ run talk")
        gates.open("a")
        assert terminal.until(has("unfinished"))[-3] == "unfinished"  # above the view
        gates.open("b")
        assert terminal.finish() == 0
        text = terminal.scrolled
        assert [line for line in text if line in {"out 1", "err 2", "log 3", "out 4", "unfinished line", "after"}] == [
            *("out 1", "err 2", "log 3", "out 4", "unfinished line", "after")
        ]
        assert not any("▸" in line for line in text)
        assert any("run talk" in line for line in text)  # the tree


def test_the_lines_of_the_log_that_the_view_shows_are_not_printed(gates: Gates) -> None:
    program = f"""{PRELUDE}
cs.run(wait_for("a"), connector=[cs.ConsoleConnector(), cs.MemoryConnector()], log_level=sys.argv[2])
"""
    for level, is_printed in (("INFO", False), ("DEBUG", True)):
        with Terminal(program, [str(gates.folder), level]) as terminal:
            terminal.until(has("▸ wait_for"))
            gates.open("a")
            assert terminal.finish() == 0
            text = "\n".join(terminal.scrolled)
            assert ("Running wait_for" in text) is is_printed
            assert ("Finished wait_for" in text) is is_printed
            assert "Starting run" in text
            assert "Run finished" in text


@pytest.mark.parametrize(("option", "expected"), [("log_level='OFF'", []), ("log_format='json'", ["run.started"])])
def test_the_view_does_not_depend_on_the_log(gates: Gates, option: str, expected: list[str]) -> None:
    program = f"{PRELUDE}\ncs.run(wait_for('a'), connector=cs.ConsoleConnector(), {option})"
    with Terminal(program, [str(gates.folder)], columns=200) as terminal:
        terminal.until(has("▸ wait_for"))
        gates.open("a")
        assert terminal.finish() == 0
        text = "\n".join(terminal.scrolled)
        assert [event for event in ("run.started", "Starting run") if event in text] == expected
        assert "└─ wait_for" in text


def test_a_narrow_terminal_and_a_new_size(gates: Gates) -> None:
    program = f"""{PRELUDE}
@cs.task
def a_task_with_a_very_long_name_that_does_not_fit(n):
    gate("a")

run = a_task_with_a_very_long_name_that_does_not_fit.map(n=[1])
cs.run(run, connector=cs.ConsoleConnector(), log_level="OFF")
"""
    with Terminal(program, [str(gates.folder)], columns=40) as terminal:
        assert all(len(line) < 40 for line in terminal.until(has("0 of 1")))
        assert "░" not in "".join(terminal.shown)
        terminal.resize(100, 30)
        terminal.until(has("░"))
        gates.open("a")
        assert terminal.finish() == 0


def test_more_tasks_than_lines_show_the_failed_and_running_ones_and_numbers(gates: Gates) -> None:
    program = f"""{PRELUDE}
@cs.task
async def work():
    await asyncio.Event().wait()

@cs.task
def bad():
    raise ValueError("no data")

@cs.task
def collect(*values): pass

tasks = [*(work() for _ in range(60)), bad().with_retry(1, delay=3600), work().with_constraints(gpu=1), work().with_constraints(gpu=1)]
cs.run(collect(*tasks), connector=cs.ConsoleConnector(), log_level="OFF", system_resources={{"gpu": 1}})
"""
    with Terminal(program, [str(gates.folder)], lines=12) as terminal:
        lines = terminal.until(has("▸ run collect", "53 more running, 1 more waiting, 1 not started"))
        assert len(lines) == 11
        assert sum("▸ work" in line for line in lines) == 8
        assert any("↻ bad" in line and "ValueError: no data" in line for line in lines)


def test_concurrent_runs_share_one_view(gates: Gates) -> None:
    program = f"""{PRELUDE}
async def main():
    one, two = cs.ConsoleConnector(), cs.ConsoleConnector()
    await asyncio.gather(cs.run_async(wait_for("a"), connector=one), cs.run_async(wait_for("b"), connector=two))

asyncio.run(main())
"""
    with Terminal(program, [str(gates.folder)]) as terminal:
        both = [["▸ run wait_for", "  ▸ wait_for"]] * 2
        terminal.until(lambda lines: _views(lines) == both)
        gates.open("a")
        terminal.until(lambda lines: _views(lines) == both[:1])
        gates.open("b")
        assert terminal.finish() == 0
        assert sum("└─ wait_for" in line for line in terminal.scrolled) == 2


def _views(lines: list[str]) -> list[list[str]]:
    """Return the names in the view of each run."""
    found: list[list[str]] = []
    for line in lines:
        if line.startswith("▸ run"):
            found.append([])
        if "▸" in line:
            found[-1].append(re.sub(r"  +\d.*", "", line))
    return found


def test_a_nested_run_is_in_the_view_and_the_tree_of_its_task(gates: Gates) -> None:
    program = f"""{PRELUDE}
@cs.task
def outer():
    return cs.run(wait_for("a"), connector=cs.ConsoleConnector(), log_level="OFF")

cs.run(outer(), connector=cs.ConsoleConnector(), log_level="OFF")
"""
    with Terminal(program, [str(gates.folder)]) as terminal:
        terminal.until(has("▸ run outer", "  ▸ outer", "  ▸ run wait_for", "    ▸ wait_for"))
        gates.open("a")
        assert terminal.finish() == 0
        tree = [re.sub(r"  +[\d█▌▐].*", "", line) for line in terminal.scrolled if "└" in line]
        assert tree == ["└─ outer", "   └─ run wait_for  server", "      └─ wait_for"]
        assert sum(line.startswith("trace ") for line in terminal.scrolled) == 1


def test_ctrl_c_leaves_the_cancelled_tree(gates: Gates) -> None:
    program = f"""{PRELUDE}
@cs.task
async def endless():
    await asyncio.Event().wait()

cs.run(endless(), connector=cs.ConsoleConnector())
"""
    with Terminal(program, [str(gates.folder)]) as terminal:
        terminal.until(has("▸ endless"))
        terminal.send("\x03")
        assert terminal.finish() != 0
        text = "\n".join(terminal.scrolled)
        assert "Run cancelled" in text
        assert "└─ endless" in text
        assert "▸" not in text
        assert "Traceback" not in text


def test_redirected_output_stays_in_its_file(gates: Gates, tmp_path: Path) -> None:
    program = f"""{PRELUDE}
@cs.task
def talk():
    print("for the file")
    gate("a")

cs.run(talk(), connector=cs.ConsoleConnector())
"""
    with (tmp_path / "out.txt").open("w") as file, Terminal(program, [str(gates.folder)], stdout=file.fileno()) as it:
        it.until(has("▸ talk"))
        gates.open("a")
        assert it.finish() == 0
        assert "for the file" not in "\n".join(it.scrolled)
    assert (tmp_path / "out.txt").read_text() == "for the file\n"


@pytest.mark.parametrize("environment", [{"TERM": "dumb"}, {"TERM": ""}, {"CI": "true"}], ids=str)
def test_there_is_no_view_on_other_terminals(gates: Gates, environment: dict[str, str]) -> None:
    program = f"{PRELUDE}\ncs.run(wait_for('a'), connector=cs.ConsoleConnector())"
    with Terminal(program, [str(gates.folder)], environment=environment) as terminal:
        terminal.until(has("Running wait_for"))
        gates.open("a")
        assert terminal.finish() == 0
        assert not MOVES_UP.search(terminal.output)
        assert any("└─ wait_for" in line for line in terminal.scrolled)


def test_no_color_has_no_colors(gates: Gates) -> None:
    program = f"{PRELUDE}\ncs.run(wait_for('a'), connector=cs.ConsoleConnector())"
    for environment, is_colored in (({"NO_COLOR": "1"}, False), ({}, True)):
        with Terminal(program, [str(gates.folder)], environment=environment) as terminal:
            terminal.until(has("▸ wait_for"))
            gates.open("a")
            assert terminal.finish() == 0
            assert bool(COLORS.search(terminal.output)) is is_colored
            assert MOVES_UP.search(terminal.output)


def test_an_encoding_without_bars_gets_ascii_characters(gates: Gates) -> None:
    program = f"""{PRELUDE}
@cs.task
def talk():
    print("é ✓", flush=True)
    gate("a")

cs.run(talk(), connector=cs.ConsoleConnector())
"""
    environment = {"PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii:backslashreplace"}
    with Terminal(program, [str(gates.folder)], environment=environment) as terminal:
        terminal.until(has("> talk", "\\xe9"))
        gates.open("a")
        assert terminal.finish() == 0
        assert terminal.output.isascii()
        assert any("`- talk" in line for line in terminal.scrolled)


@pytest.mark.parametrize("close", ["os.close(2)", "sys.stderr.close()", "setattr(sys, 'stderr', None)"])
def test_a_closed_stderr_does_not_end_the_run(gates: Gates, close: str) -> None:
    program = f"""{PRELUDE}
import os

@cs.task
def shut():
    gate("a")
    {close}
    return "value"

@cs.task
def after(value):
    return value

print("result:", cs.run(after(shut()), connector=cs.ConsoleConnector()))
"""
    with Terminal(program, [str(gates.folder)]) as terminal:
        terminal.until(has("▸ shut"))
        gates.open("a")
        terminal.finish()
        assert any("result: value" in line for line in terminal.scrolled)


def test_a_forked_child_prints_its_own_text(gates: Gates) -> None:
    program = f"""{PRELUDE}
import multiprocessing, warnings
warnings.simplefilter("ignore")

def child():
    print("of the child", flush=True)

@cs.task
def fork():
    print("of the parent")
    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join()
    gate("a")

cs.run(fork(), connector=cs.ConsoleConnector())
"""
    with Terminal(program, [str(gates.folder)]) as terminal:
        terminal.until(has("▸ fork"))
        gates.open("a")
        assert terminal.finish() == 0
        assert terminal.output.count(b"of the child") == 1
        assert terminal.output.count(b"of the parent") == 1


def test_a_process_that_exits_during_a_run_prints_its_text(gates: Gates) -> None:
    program = f"""{PRELUDE}
@cs.task
async def talk():
    await asyncio.to_thread(gate, "a")
    print("last words")
    main.set()
    await asyncio.Event().wait()

main = threading.Event()
threading.Thread(target=lambda: cs.run(talk(), connector=cs.ConsoleConnector()), daemon=True).start()
main.wait()
"""
    with Terminal(program, [str(gates.folder)]) as terminal:
        terminal.until(has("▸ talk"))
        gates.open("a")
        terminal.finish()
        assert "last words" in terminal.scrolled


def test_the_page_about_traces_shows_a_real_view_and_a_real_tree(gates: Gates) -> None:
    program = f"""{PRELUDE}
calls = []

@cs.task
def list_files():
    return list(range(20))

@cs.task
def extract(n):
    if n == 3:
        calls.append(n)
        if len(calls) == 1:
            raise ConnectionError("reset by peer")
        gate("a")
    if n > 12:
        gate("b" if n < 19 else "c")
    if n == 19:
        raise ValueError("no header")

@cs.task
def train(name):
    gate(name)

@cs.task
def report(*values): pass

files = extract.map(n=list_files()).with_retry(3, delay=0.01, retry_on=ConnectionError)
models = [train(name).with_constraints(gpu=1) for name in ("d", "e")]
cs.run(report(files, *models), connector=cs.ConsoleConnector(), system_resources={{"gpu": 1}}, max_workers=32)
"""
    view, tree = re.findall(r"^```text\n((?:▸|trace).*?)```", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    with Terminal(program, [str(gates.folder)], lines=40) as terminal:
        terminal.until(lambda lines: _normal(view) in _normal("\n".join(lines)))
        for name in "adb":
            gates.open(name)
        terminal.until(has("19 of 20"))
        gates.open("e")
        terminal.until(has("3 of 5 tasks"))
        gates.open("c")
        terminal.finish()
        assert _normal(tree) in _normal("\n".join(terminal.scrolled))


def _normal(text: str) -> str:
    """Return the lines without ids, durations, bars, numbers of items, and widths."""
    text = re.sub(r"[\d.]+(?: [nµm]?s)?\u2013|[\d.]+ [nµm]?s\b|\d+m \d+s", "<time>", text)
    text = re.sub(r"trace [0-9a-f]{32}", "trace <id>", re.sub(r"\[(?!3\]|19\])\d+\]", "[n]", text))
    text = re.sub(r" {2,}[█░▌▐▏▕│]+ *$| 0 ─+.*$", "", text, flags=re.MULTILINE)
    return "\n".join(re.sub(r" {2,}", "  ", line).rstrip() for line in text.splitlines())


def test_a_failed_item_of_a_map_that_continues_is_below_its_map(gates: Gates) -> None:
    program = f"""{PRELUDE}
@cs.task(label=lambda path: path.rpartition("/")[2])
def extract(path):
    if path == "data/bad.csv":
        raise ValueError("no header")
    if path == "data/slow.csv":
        gate("a")

paths = ["data/good.csv", "data/bad.csv", "data/slow.csv"]
cs.run(extract.map(path=paths).allow_failure(), connector=cs.ConsoleConnector(), log_level="OFF", name="nightly")
"""
    with Terminal(program, [str(gates.folder)]) as terminal:
        shown = "\n".join(terminal.until(has("▸ run nightly", "2 of 3, 1 failed", "✗ extract[bad.csv]")))
        assert re.search(r"^    ✗ extract\[bad\.csv\] +ValueError: no header$", shown, re.MULTILINE)
        gates.open("a")
        assert terminal.finish() == 0
        assert any("─ extract[bad.csv]  ✗ ValueError: no header" in line for line in terminal.scrolled)
