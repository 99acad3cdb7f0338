"""`DiskCache` in several processes: a later run executes what is missing, kill -9, forks, concurrent runs."""

import os
import random
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

import cascade as cs
from cascade.testing import record_run
from tests.lab.extras import needs
from tests.lab.waiting import HANG

WORKFLOW = """
import sys
import cascade as cs

def log(*what):
    print(" ".join(map(str, what)) + chr(10), end="", flush=True)

@cs.task
def load(path):
    log("load", path)
    return {"path": path}

@cs.task
async def clean(row, factor=1):
    log("clean", row["path"], factor)
    return row["path"] * factor

@cs.task
def report(rows):
    log("report")
    FAIL
    return "-".join(rows)

target = report(clean.map(row=load.map(path=["a", "b", "c"])))
log("value", cs.run(target, cache=cs.DiskCache(".cascade"), log_level="INFO"))
"""


def run_script(folder: Path, source: str, *, fails: bool = False) -> tuple[list[str], str]:
    """Run a script in a folder. Returns the lines of stdout, sorted, and stderr."""
    script = folder / "flow.py"
    script.write_text(source)
    done = subprocess.run(
        [sys.executable, script], cwd=folder, capture_output=True, text=True, timeout=HANG, check=False
    )
    assert (done.returncode != 0) is fails, done.stderr
    return sorted(done.stdout.splitlines()), done.stderr


def test_the_next_process_executes_only_what_is_missing(tmp_path: Path) -> None:
    failing, fixed = WORKFLOW.replace("FAIL", 'raise ValueError("no")'), WORKFLOW.replace("FAIL", "")
    loads, cleans = [f"load {p}" for p in "abc"], [f"clean {p} 1" for p in "abc"]
    assert run_script(tmp_path, failing, fails=True)[0] == sorted([*loads, *cleans, "report"])
    assert run_script(tmp_path, failing, fails=True)[0] == ["report"]
    out, err = run_script(tmp_path, fixed)
    assert out == ["report", "value a-b-c"]
    assert [line for line in err.splitlines() if "cache" in line] == [
        "⏳ map(load): 3 of 3 done, 3 of them from the cache",
        "⏳ map(clean): 3 of 3 done, 3 of them from the cache",
    ]
    out, err = run_script(tmp_path, fixed)
    assert out == ["value a-b-c"]
    assert "⚪ Skipped report: CacheHit" in err
    changed = fixed.replace("factor=1", "factor=2")
    assert run_script(tmp_path, changed)[0] == sorted([*(f"clean {p} 2" for p in "abc"), "report", "value aa-bb-cc"])
    commented = fixed.replace("@cs.task\n", "# a comment\n@cs.task\n").replace(
        '    log("report")\n', '\n    log("report")  # now\n'
    )
    assert run_script(tmp_path, commented)[0] == ["value a-b-c"]


WRITER = """
import asyncio, sys
import cascade as cs
from cascade.spec.caching import TaskCall

def work(x): ...

async def main():
    cache = cs.DiskCache(sys.argv[1], max_bytes=int(sys.argv[2]))
    number = int(sys.argv[3])
    while True:
        number += 1
        x = number % 50
        call = TaskCall("id", "work", work, {"x": x}, 0)
        hit = cache.look_up(call)  # raises an error for a damaged entry
        hit = await hit if asyncio.iscoroutine(hit) else hit
        assert hit is None or hit.value == [x] * (1 + x * 4_000), x
        await cache.store(call, [x] * (1 + x * 4_000))
        print(number, flush=True)

asyncio.run(main())
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL")
def test_every_value_is_whole_after_kills_at_any_time(tmp_path: Path) -> None:
    script, directory = tmp_path / "writer.py", tmp_path / "cache"
    script.write_text(WRITER)
    chance = random.Random(5)
    for turn in range(8):
        command = [sys.executable, str(script), str(directory), str(1 << 20 if turn % 2 else 1 << 30), str(turn * 7)]
        writers = [
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)
        ]
        for writer in writers:
            for _ in range(chance.randrange(1, 60)):
                assert writer.stdout is not None
                assert writer.stdout.readline(), writer.communicate()[1]
            threading.Event().wait(chance.random() / 200)  # any point of a write
            writer.kill()
            assert writer.communicate()[1] == ""
    values = [path for path in directory.iterdir() if path.suffix == ".result"]
    assert values
    reader = subprocess.Popen(
        [sys.executable, str(script), str(directory), str(1 << 30), "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    for _ in range(101):  # reads each value twice
        assert reader.stdout is not None
        assert reader.stdout.readline(), reader.communicate()[1]
    reader.kill()
    assert reader.communicate()[1] == ""


def work(x: int) -> list[int]:
    CALLS.append(x)
    return [x] * 20_000


CALLS: list[int] = []


def test_concurrent_runs_share_a_directory(tmp_path: Path) -> None:
    task: Any = cs.task(work)
    found: list[Any] = []

    def run() -> None:
        found.append(cs.run(task.map(x=list(range(20))), cache=cs.DiskCache(tmp_path / "cache"), log_level="OFF"))

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [[[x] * 20_000 for x in range(20)]] * 4
    CALLS.clear()
    run()
    assert CALLS == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_forked_child_uses_the_cache_of_its_parent(tmp_path: Path) -> None:
    source = f"""
import os
import cascade as cs

cache = cs.DiskCache({str(tmp_path / "cache")!r}, max_bytes=1 << 20)

@cs.task
def work(x):
    print("work", x, flush=True)
    return x

cs.run(work(1), cache=cache, log_level="OFF")
cache._entries._lock.__enter__()  # another thread of the parent holds the lock
pid = os.fork()
if pid == 0:
    assert cs.run(work(1), cache=cache, log_level="OFF") == 1
    assert cs.run(work(2), cache=cache, log_level="OFF") == 2
    os._exit(0)
cache._entries._lock.__exit__()
assert os.waitpid(pid, 0)[1] == 0
assert cs.run(work(2), cache=cache, log_level="OFF") == 2
"""
    assert run_script(tmp_path, source)[0] == ["work 1", "work 2"]


@needs("otel")
def test_a_cached_value_is_a_skip_in_messages_and_spans(tmp_path: Path) -> None:
    task: Any = cs.task(work)

    def recorded() -> Any:
        CALLS.clear()
        return record_run(task.map(x=[1, 2]).with_cache(cs.DiskCache(tmp_path / "cache")))

    first, second = recorded(), recorded()
    assert first.value == second.value
    assert CALLS == []
    skipped = second.spans.named("work skipped")
    assert [span.attributes["cascade.task.skip.reason"] for span in skipped] == ["CacheHit"] * 2
    states = [m["body"] for m in second.payloads if m["body"].get("task_name") == "work"]
    assert [(body["state"], body["metadata"]["reason"]) for body in states] == [("SKIPPED", "CacheHit")] * 2
    (stopped,) = [m["body"]["metadata"] for m in second.payloads if m["body"].get("event") == "ENGINE_STOPPED"]
    assert stopped["counts"] == {"completed": 1, "skipped": 2, "cached": 2}  # the map, and its items
