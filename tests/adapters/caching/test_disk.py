"""`DiskCache`: settings, values, damage, permissions, limits."""

import asyncio
import os
import pickle
import re
import shutil
import stat
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import cascade as cs
from cascade.adapters.caching import _entry_format, disk
from cascade.spec.caching import CacheError, TaskCall

LARGE = 300_000
"""Bytes of a value, or of an argument, that a thread pickles and reads."""


def work(x: Any) -> Any:
    return x


def call(x: Any = 1) -> TaskCall:
    return TaskCall("id", "work", work, {"x": x}, 0)


def stored(cache: cs.DiskCache, value: Any, of: TaskCall | None = None) -> TaskCall:
    """Store a value and return its call."""
    of = of or call()
    assert found(cache, of) == ()
    finished(lambda: cache.store(of, value))
    return of


def found(cache: cs.DiskCache, of: TaskCall | None = None) -> Any:
    """Return the stored value in a tuple, or ()."""
    hit = finished(lambda: cache.look_up(of or call()))
    return () if hit is None else (hit.value,)


def finished(start: Callable[[], Any]) -> Any:
    """Call a method of a cache in an event loop, and return its result."""

    async def main() -> Any:
        result = start()
        return await result if asyncio.iscoroutine(result) else result

    return asyncio.run(main())


def is_threaded(start: Callable[[], Any]) -> bool:
    """Whether a thread computes the result of a method of a cache."""

    async def main() -> bool:
        result = start()
        if asyncio.iscoroutine(result):
            await result
            return True
        return False

    return asyncio.run(main())


@pytest.fixture
def cache(tmp_path: Path) -> cs.DiskCache:
    return cs.DiskCache(tmp_path / "cache")


def files(tmp_path: Path) -> list[Path]:
    return sorted(Path(tmp_path, "cache").glob("[!.]*"))


SEEN: list[Any] = []
GIVEN: list[Any] = []
"""Globals, which are not part of a key."""


def seen(x: Any) -> None:
    SEEN.append(x)


def pop(xs: list[int]) -> int:
    SEEN.append(xs[-1])
    return xs.pop()


def given_value(x: Any) -> Any:
    return GIVEN[0]


@pytest.fixture(autouse=True)
def _no_calls() -> None:
    SEEN.clear()
    GIVEN.clear()


VALUES = [None, 0, "x", b"y" * LARGE, list(range(LARGE)), {"a": [1, 2]}, Path("a"), float("inf")]


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_a_value_is_found_by_another_cache_of_the_directory(cache: cs.DiskCache, tmp_path: Path, value: Any) -> None:
    stored(cache, value)
    assert found(cs.DiskCache(str(tmp_path / "cache"))) == (value,)
    assert found(cache, call(2)) == ()


def test_each_lookup_returns_a_new_object(cache: cs.DiskCache) -> None:
    value = [1]
    stored(cache, value)
    value.append(2)
    first, second = found(cache), found(cache)
    assert first == second == ([1],)
    assert first[0] is not second[0]


def test_a_large_argument_is_hashed_in_a_thread(cache: cs.DiskCache) -> None:
    large = [*range(LARGE)]
    stored(cache, "value", call(large))
    assert is_threaded(lambda: cache.look_up(call(large)))
    assert found(cache, call(large)) == ("value",)
    assert found(cache, call(large[1:])) == ()


@given(st.binary(max_size=200_000), st.data())
def test_a_damaged_entry_is_a_miss_and_is_replaced(
    tmp_path_factory: pytest.TempPathFactory, value: bytes, data: st.DataObject
) -> None:
    cache = cs.DiskCache(tmp_path_factory.mktemp("cache"))
    of = stored(cache, value)
    path = Path(cache._entries.path(of.key))
    content = path.read_bytes()
    start = data.draw(st.integers(0, len(content) - 1))
    kind = data.draw(st.sampled_from(["cut", "changed", "longer", "other"]))
    damaged = {
        "cut": content[:start],
        "changed": content[:start] + bytes([content[start] ^ 1]) + content[start + 1 :],
        "longer": content + b"x",
        "other": data.draw(st.binary()),
    }[kind]
    path.write_bytes(damaged)
    with pytest.raises(CacheError, match=r"is damaged \(.*\) and will be replaced"):
        found(cache)
    path.unlink()
    stored(cache, value)
    assert found(cache) == (value,)


def test_a_run_replaces_a_damaged_entry_with_one_warning(
    cache: cs.DiskCache, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    calls = SEEN
    target = cs.task(seen, threaded=False).map(x=[1, 2])
    cs.run(target, cache=cache, log_level="OFF")
    for path in files(tmp_path):
        path.write_bytes(path.read_bytes()[:-1])
    cs.run(target, cache=cache, log_level="OFF")
    cs.run(target, cache=cache, log_level="OFF")
    assert calls == [1, 2, 1, 2]
    assert len(caplog.messages) == 1
    assert "could not look up the value, so the task runs: " in caplog.messages[0]
    assert ".result is damaged (it has a wrong length) and will be replaced" in caplog.messages[0]


class Gone:
    """A class that does not exist when its value is restored."""


def test_a_value_that_cannot_be_restored_is_a_miss(cache: cs.DiskCache, monkeypatch: pytest.MonkeyPatch) -> None:
    stored(cache, Gone())
    monkeypatch.delattr(f"{__name__}.Gone")
    with pytest.raises(CacheError, match=r"cannot be restored \(AttributeError: .*Gone.*will be replaced"):
        found(cache)


class Exiting:
    """A value whose restoration ends the program, as the import of a script without a main guard does."""

    def __reduce__(self) -> Any:
        return sys.exit, (3,)


@pytest.mark.parametrize("size", [0, LARGE], ids=["small", "large"])
def test_a_value_whose_restoration_ends_the_program_is_a_miss(
    cache: cs.DiskCache, caplog: pytest.LogCaptureFixture, size: int
) -> None:
    values = [Exiting(), b"x" * size]
    GIVEN.append(values)
    give = cs.task(given_value)
    for _ in range(2):
        assert cs.run(give(size), cache=cache, log_level="OFF") is values
    (message,) = caplog.messages
    assert "cannot be restored (SystemExit: 3) and will be replaced" in message


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ((x for x in "a"), r"type generator cannot be pickled: cannot pickle 'generator' object; return a list"),
        (lambda: 1, "type function cannot be pickled"),
        ([b"x" * LARGE, threading.Lock()], "type list cannot be pickled: cannot pickle '_thread.lock' object"),
    ],
    ids=["generator", "lambda", "large"],
)
def test_a_value_that_cannot_be_pickled_causes_one_warning(
    cache: cs.DiskCache, tmp_path: Path, caplog: pytest.LogCaptureFixture, value: Any, reason: str
) -> None:
    GIVEN.append(value)
    give = cs.task(given_value)
    for _ in range(2):
        assert cs.run(give.map(x=[1, 2]), cache=cache, log_level="OFF") == [value, value]
    assert len(caplog.messages) == 2
    assert all(
        re.search(f"item . could not save its value: a value of {reason}", message) for message in caplog.messages
    )
    assert files(tmp_path) == []


def test_a_value_expires_after_its_ttl(cache: cs.DiskCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stored(cache, 1)
    now = time.time()
    aged = cs.DiskCache(tmp_path / "cache", ttl=60)
    monkeypatch.setattr(time, "time", lambda: now + 59)
    assert found(aged) == (1,)
    monkeypatch.setattr(time, "time", lambda: now + 61)
    assert found(cs.DiskCache(tmp_path / "cache")) == (1,)
    stored(aged, 2)
    assert found(aged) == (2,)


def test_a_value_of_a_wrong_clock_expires_too(
    cache: cs.DiskCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.time()
    aged = cs.DiskCache(tmp_path / "cache", ttl=60)
    monkeypatch.setattr(time, "time", lambda: now + 59)
    stored(aged, 1)
    monkeypatch.setattr(time, "time", lambda: now)
    assert found(aged) == (1,)
    monkeypatch.setattr(time, "time", lambda: now - 2)
    stored(aged, 2)
    assert found(aged) == (2,)


def age_of(cache: cs.DiskCache, of: TaskCall, seconds: float) -> Path:
    path = Path(cache._entries.path(of.key))
    at = time.time() - seconds
    os.utime(path, (at, at))
    return path


def test_the_values_that_were_not_used_for_the_longest_time_are_removed(tmp_path: Path) -> None:
    cache = cs.DiskCache(tmp_path / "cache", max_bytes=10 * 4096)
    calls = [stored(cache, x, call(x)) for x in range(10)]
    for x, one in enumerate(calls):
        age_of(cache, one, 10_000 - x)
    assert found(cache, calls[0]) == (0,)  # used now
    stored(cache, 10, call(10))
    assert [x for x in range(11) if found(cache, call(x)) == ()] == [1, 2]
    assert cache.stats() == (9, 9 * 4096)


def test_a_value_above_the_limit_is_not_stored_and_removes_no_other(tmp_path: Path) -> None:
    cache = cs.DiskCache(tmp_path / "cache", max_bytes=10 * 4096)
    stored(cache, 1)
    with pytest.raises(CacheError, match="it needs 303,104 bytes on the disk, and max_bytes of the cache is 40,960"):
        stored(cache, b"x" * LARGE, call(2))
    assert found(cache) == (1,)
    assert len(files(tmp_path)) == 1


def test_the_limit_holds_for_the_entries_of_other_processes(tmp_path: Path) -> None:
    first, second = (cs.DiskCache(tmp_path / "cache", max_bytes=20 * 4096) for _ in range(2))
    for x in range(100):
        stored(first if x % 2 else second, x, call(x))
        assert first.stats().entries <= 24


def test_clear_removes_all_values(cache: cs.DiskCache, tmp_path: Path) -> None:
    assert cache.clear() == 0
    for x in range(3):
        stored(cache, x, call(x))
    abandoned = tmp_path / "cache" / "a.1-2-3.tmp"
    abandoned.touch()
    assert cache.stats().entries == cache.clear() == 3
    assert files(tmp_path) == []
    assert found(cache, call(1)) == ()
    stored(cache, 1, call(1))


def test_the_temporary_files_of_a_killed_process_are_removed_after_an_hour(cache: cs.DiskCache, tmp_path: Path) -> None:
    directory = tmp_path / "cache"
    stored(cache, 1)
    old, new = directory / "a.1-2-3.tmp", directory / "b.1-2-3.tmp"
    for path, age in ((old, 4000), (new, 0)):
        path.touch()
        at = time.time() - age
        os.utime(path, (at, at))
    stored(cs.DiskCache(directory), 2, call(2))
    assert (old.exists(), new.exists()) == (False, True)


def test_files_are_those_of_the_user_only(cache: cs.DiskCache, tmp_path: Path) -> None:
    stored(cache, 1)
    directory = tmp_path / "cache"
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert [stat.S_IMODE(path.stat().st_mode) for path in files(tmp_path)] == [0o600]
    assert "*" in (directory / ".gitignore").read_text().splitlines()


class Payload:
    """A pickle that runs code when it is read."""

    def __reduce__(self) -> Any:
        return _run_code, ()


def _run_code() -> None:
    raise AssertionError("a pickle of another user was read")


def plant(cache: cs.DiskCache) -> Path:
    """Replace the entry by a valid entry whose pickle runs code."""
    of = call()
    cache.look_up(of)
    path = Path(cache._entries.path(of.key))
    with path.open("w+b") as file:
        _entry_format.write_entry(pickle.dumps(Payload()), file, of.key)
    path.chmod(0o600)
    return path


def writable_directory(path: Path) -> None:
    path.parent.chmod(0o777)


def of_other_user(path: Path) -> None:
    os.chown(path.parent, 12345, 12345)


def writable_entry(path: Path) -> None:
    path.chmod(0o620)


def entry_of_other_user(path: Path) -> None:
    os.chown(path, 12345, 12345)


as_root = pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can change the owner")


@pytest.mark.skipif(os.name == "nt", reason="files have no modes")
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            writable_directory,
            r"the directory {directory} can be written to by other users \(mode 777\); run chmod go-w on it",
        ),
        pytest.param(
            of_other_user,
            r"the directory {directory} belongs to user 12345, and this process is user 0; choose a directory of your own",
            marks=as_root,
        ),
        (writable_entry, r"\.result is not used: it can be written to by other users \(mode 620\)"),
        pytest.param(entry_of_other_user, r"\.result is not used: it belongs to user 12345", marks=as_root),
    ],
)
def test_pickles_that_others_may_have_written_are_not_read(
    cache: cs.DiskCache,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    change: Callable[[Path], None],
    reason: str,
) -> None:
    task: Any = cs.task(work)
    cs.run(task("other"), cache=cache, log_level="OFF")
    change(plant(cache))
    fresh = cs.DiskCache(tmp_path / "cache")
    for _ in range(2):
        assert cs.run(task(1), cache=fresh, log_level="OFF") == 1
    pattern = reason.format(directory=re.escape(str(tmp_path / "cache")))
    assert len([message for message in caplog.messages if re.search(pattern, message)]) == 1


def test_a_link_in_place_of_an_entry_is_not_followed(cache: cs.DiskCache, tmp_path: Path) -> None:
    of = stored(cache, 1)
    path = Path(cache._entries.path(of.key))
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    assert found(cache) == ()


@pytest.mark.skipif(os.name == "nt", reason="no FIFO")
def test_an_entry_that_is_not_a_file_is_not_read(cache: cs.DiskCache) -> None:
    of = stored(cache, 1)
    path = Path(cache._entries.path(of.key))
    path.unlink()
    os.mkfifo(path, 0o600)
    with pytest.raises(CacheError, match="it is not a file"):
        found(cache)


def test_a_directory_that_cannot_be_used_causes_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").touch()
    cache = cs.DiskCache(tmp_path / "file" / "cache")
    task: Any = cs.task(work)
    for _ in range(2):
        assert cs.run(task.map(x=[1, 2]), cache=cache, log_level="OFF") == [1, 2]
    assert 1 <= len(caplog.messages) <= 2
    assert str(tmp_path / "file" / "cache") in caplog.messages[0]
    assert caplog.messages[-1].endswith(". Tasks run as without a cache")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_causes_a_warning(
    cache: cs.DiskCache, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.open

    def full(path: str, flags: int, *args: Any) -> int:
        return real("/dev/full", os.O_WRONLY) if str(path).endswith(".tmp") else real(path, flags, *args)

    monkeypatch.setattr("cascade.adapters.caching._entries.os.open", full)
    stored(cache, b"x" * LARGE)
    assert [m.split(": ", 1)[1] for m in caplog.messages] == [
        f"cannot write to {tmp_path / 'cache'}: No space left on device. Tasks run as without a cache"
    ]
    monkeypatch.undo()
    assert found(cache) == ()


def test_a_directory_that_is_deleted_is_created_again(cache: cs.DiskCache, tmp_path: Path) -> None:
    stored(cache, 1)
    shutil.rmtree(tmp_path / "cache")
    stored(cache, 2)
    assert found(cache) == (2,)


def test_threads_read_from_a_slow_disk(cache: cs.DiskCache, monkeypatch: pytest.MonkeyPatch) -> None:
    stored(cache, 1)
    monkeypatch.setattr(disk, "_SLOW", 0)
    assert not is_threaded(lambda: cache.look_up(call()))
    assert is_threaded(lambda: cache.look_up(call()))
    assert found(cache) == (1,)


def test_a_call_without_a_key_causes_one_warning(cache: cs.DiskCache, caplog: pytest.LogCaptureFixture) -> None:
    count = cs.task(lambda x: 1, name="count")
    assert cs.run(count.map(x=[threading.Lock(), threading.Lock()]), cache=cache, log_level="OFF") == [1, 1]
    (message,) = caplog.messages
    assert message.startswith(
        "The cache of task 'count', item 0 could not look up the value, so the task runs: argument 'x': "
    )
    assert message.endswith("the type lock has no stable content: cannot pickle '_thread.lock' object")


def test_arguments_that_the_task_changes_are_keyed_as_they_were(cache: cs.DiskCache) -> None:
    calls: list[Any] = []

    def pop(xs: list[int]) -> int:
        calls.append(None)
        return xs.pop()

    for _ in range(2):
        assert (
            cs.run(cs.task(pop)([1, 2]).with_cache(cs.DiskCache(cache._directory, version="1")), log_level="OFF") == 2
        )


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"directory": 5}, TypeError),
        ({"directory": b"a"}, TypeError),
        ({"directory": ""}, ValueError),
        ({"directory": "a\0b"}, ValueError),
        ({"version": 2}, TypeError),
        ({"version": ""}, ValueError),
        ({"ttl": "1"}, TypeError),
        ({"ttl": True}, TypeError),
        ({"ttl": 0}, ValueError),
        ({"ttl": float("nan")}, ValueError),
        ({"ttl": float("inf")}, ValueError),
        ({"max_bytes": 1.5}, TypeError),
        ({"max_bytes": 0}, ValueError),
    ],
)
def test_a_wrong_setting_is_refused(settings: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        cs.DiskCache(**settings)


def test_the_directory_is_fixed_when_the_cache_is_created(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    cache = cs.DiskCache()
    assert list(tmp_path.iterdir()) == []
    monkeypatch.chdir("/")
    assert repr(cache) == repr(pickle.loads(pickle.dumps(cache))) == f"<DiskCache {tmp_path / '.cascade'}>"  # noqa: S301
