"""Cache of the values of tasks in a directory, for later runs and other processes."""

import math
import os
import pickle
import time
from collections.abc import Awaitable
from functools import partial
from pathlib import Path
from typing import Any

from cascade.adapters.caching._digests import FailureKeyError, TooLargeError
from cascade.adapters.caching._entries import CacheStats, Entries, UnusableError
from cascade.adapters.caching._entry_format import PROTOCOL, Opened, dump_entry, write_entry
from cascade.adapters.caching._keys import key_of
from cascade.runtime.threads import in_thread, to_end_in_thread
from cascade.spec.caching import CacheError, CacheHit, TaskCall

MAX_BYTES = 1 << 30
"""Default size limit: 1 GiB."""

_SMALL = 1 << 16
"""Largest number of bytes that the event loop encodes, pickles or reads. The start of a thread takes as long as these."""
_SLOW = 0.01
"""Seconds of a read in the event loop from which the disk counts as slow."""
_SLOW_PERIOD = 1.0
"""Seconds in which threads read from a slow disk."""


class DiskCache:
    """Cache in a directory. A task with the same function and the same arguments has its stored value.

    The key consists of the module, the name and the compiled code of the function, the values that it uses from enclosing
    functions, and the arguments with their defaults. Other functions, global variables, resources and the content of files are
    not part of the key. A call without a key, a value that cannot be pickled and an unusable directory cause one warning,
    and the task runs as without a cache.

    Args:
        directory: The directory. It is created when the first value is stored, for the current user only. Values are pickles,
            in clear text. They are read only if the directory and the file belong to the current user, and other users
            may not write to them.
        version: A text that replaces the code of the functions in the key. None uses the code: a value is computed again
            after each change of its function, other than of comments and formatting, and with another minor version of Python.
        ttl: Largest age of a value in seconds, above 0. None is unlimited.
        max_bytes: Largest size of the directory in bytes on the disk, 1 or more. The values that were not used for the
            longest time are removed. Each running process may exceed the limit by a tenth. None is unlimited.

    Raises:
        TypeError: An argument has a wrong type.
        ValueError: `directory` or `version` is empty, `directory` contains a null character, or `ttl` or `max_bytes` is out of range.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str] = ".cascade",
        *,
        version: str | None = None,
        ttl: float | None = None,
        max_bytes: int | None = MAX_BYTES,
    ) -> None:
        self._directory = _checked_directory(directory)
        self._version = _checked_version(version)
        self._ttl = _checked_ttl(ttl)
        self._max_bytes = _checked_size(max_bytes)
        self._entries = Entries(self._directory, self._max_bytes)
        self._slow_until = 0.0

    def __repr__(self) -> str:
        return f"<DiskCache {self._directory}>"

    def __reduce__(self) -> Any:
        settings = {"version": self._version, "ttl": self._ttl, "max_bytes": self._max_bytes}
        return _restored, (self._directory, settings)

    def clear(self) -> int:
        """Remove all values, those of other functions and versions included. Returns their number.

        Raises:
            OSError: A value cannot be removed.
        """
        return self._entries.clear()

    def stats(self) -> CacheStats:
        """Return the number of values, and their size in bytes on the disk.

        Raises:
            OSError: The directory cannot be read.
        """
        return self._entries.stats()

    def look_up(self, call: TaskCall) -> CacheHit | Awaitable[CacheHit | None] | None:
        """Return the value of a call, None without one, or an awaitable if the arguments or the value are large."""
        try:
            call.key = key_of(call, self._version, _SMALL)
        except TooLargeError:
            return in_thread(self._look_up_large, call)
        except FailureKeyError:
            return None
        start = time.perf_counter()
        if start < self._slow_until:
            return in_thread(self._load, call.key)
        try:
            opened = self._open(call.key)
            if opened is None or opened.size <= _SMALL:
                return self._loaded(opened, call.key)
        finally:
            end = time.perf_counter()
            if end - start > _SLOW:
                self._slow_until = end + _SLOW_PERIOD
        return in_thread(self._loaded, opened, call.key)

    def store(self, call: TaskCall, value: Any) -> Awaitable[None] | None:
        """Store a value. The directory is written to in a thread."""
        if call.key is None:
            return None
        # A run that is cancelled still stores the values of the tasks that have ended.
        return to_end_in_thread(self._write, call.key, value, _small_pickle(value))

    def _write(self, key: str, value: Any, payload: bytes | None) -> None:
        try:
            self._entries.write(key, partial(dump_entry, value) if payload is None else partial(write_entry, payload))
        except UnusableError as error:
            self._warn(error)
        except CacheError:
            raise
        except Exception as error:
            raise _cannot_pickle(value, error) from error

    def _look_up_large(self, call: TaskCall) -> CacheHit | None:
        try:
            call.key = key_of(call, self._version)
        except FailureKeyError:
            return None
        return self._load(call.key)

    def _load(self, key: str) -> CacheHit | None:
        return self._loaded(self._open(key), key)

    def _open(self, key: str) -> Opened | None:
        try:
            return self._entries.open(key)
        except UnusableError as error:
            self._warn(error)
            return None

    def _loaded(self, opened: Opened | None, key: str) -> CacheHit | None:
        """Read and close an entry. Returns None if there is none, or if it is too old.

        Raises:
            CacheError: The entry is damaged, or its value cannot be restored.
        """
        if opened is None:
            return None
        path = self._entries.path(key)
        with opened:
            try:
                created, file = opened.content(key, _SMALL)
            except (OSError, ValueError) as error:
                raise CacheError(f"{path} is damaged ({error}) and will be replaced") from error
            # A clock that was wrong has stored values of the future, which would be fresh for years.
            if self._ttl is not None and abs(time.time() - created) > self._ttl:
                return None
            try:
                # The directory and the file belong to the user.
                value = pickle.loads(file) if isinstance(file, memoryview) else pickle.load(file)  # noqa: S301
            except (Exception, SystemExit) as error:  # it imports the modules of classes
                text = f"{path} cannot be restored ({type(error).__name__}: {error}) and will be replaced"
                raise CacheError(text) from error
        self._entries.touch(key, opened.modified)
        return CacheHit(value)

    def _warn(self, error: UnusableError) -> None:
        self._entries.warn(f"DiskCache: {error}. Tasks run as without a cache")


def _restored(directory: str, settings: dict[str, Any]) -> DiskCache:
    return DiskCache(directory, **settings)


class _LimitError(Exception):
    pass


class _LimitedBuffer(bytearray):
    """File of a pickler that refuses more than `_SMALL` bytes."""

    def write(self, data: Any) -> int:
        view = memoryview(data)
        if len(self) + view.nbytes > _SMALL:
            raise _LimitError
        self.extend(view)
        return view.nbytes


def _small_pickle(value: Any) -> bytes | None:
    """Return the pickle of a value; None if it is large.

    Raises:
        CacheError: The value cannot be pickled.
    """
    buffer = _LimitedBuffer()
    try:
        pickle.Pickler(buffer, PROTOCOL).dump(value)
    except _LimitError:
        return None
    except Exception as error:
        raise _cannot_pickle(value, error) from error
    return bytes(buffer)


def _cannot_pickle(value: Any, error: Exception) -> CacheError:
    hint = "; return a list" if "generator" in str(error) else ""
    return CacheError(f"a value of type {type(value).__qualname__} cannot be pickled: {error}{hint}")


def _checked_directory(directory: Any) -> str:
    path = os.fspath(directory)
    if not isinstance(path, str):
        raise TypeError(f"DiskCache: directory must be a text or a path, got {type(path).__name__}")
    if not path:
        raise ValueError("DiskCache: directory is empty; give the path of a directory, such as '.cascade'")
    if "\0" in path:
        raise ValueError(f"DiskCache: directory contains a null character: {path!r}; give the path of a directory")
    return str(Path(path).expanduser().absolute())


def _checked_version(version: Any) -> str | None:
    if version is not None and not isinstance(version, str):
        raise TypeError(f"DiskCache: version must be a text, got {type(version).__name__}")
    if version is not None and not version:
        raise ValueError("DiskCache: version is empty; leave it out to use the code of the functions")
    return version


def _checked_ttl(ttl: Any) -> float | None:
    if ttl is None:
        return None
    if isinstance(ttl, bool) or not isinstance(ttl, (int, float)):
        raise TypeError(f"DiskCache: ttl must be a number of seconds, got {type(ttl).__name__}")
    if not ttl > 0 or math.isinf(ttl):
        raise ValueError(f"DiskCache: ttl must be a finite number of seconds above 0, got {ttl}; None is unlimited")
    return float(ttl)


def _checked_size(size: Any) -> int | None:
    if size is None:
        return None
    if isinstance(size, bool) or not isinstance(size, int):
        raise TypeError(f"DiskCache: max_bytes must be an integer, got {type(size).__name__}")
    if size < 1:
        raise ValueError(f"DiskCache: max_bytes must be 1 or more, got {size}; None is unlimited")
    return size
