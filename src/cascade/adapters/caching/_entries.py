"""Directory of cache entries: one file for each value.

An entry is written to a temporary file and renamed, so a process that is killed leaves no incomplete entry. No lock is needed
between threads, processes and forks: two writers of one key write two temporary files, and the last rename wins. A damaged
file affects one value. A header has the time of the entry and a digest of its content.

Alternatives: diskcache has no release since 2023, reads pickles from directories that others may write to
(CVE-2025-69872), and takes longer for each value. joblib's Memory keys a value by the identity of objects, and has neither
an age limit nor a check of the owner. One database of `sqlite3` is damaged as a
whole, admits one writer at a time, and excludes network file systems in its mode for concurrent readers (WAL).
"""

import itertools
import os
import stat
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, NamedTuple

from cascade._forks import ForkSafeLock
from cascade._loggers import LimitedWarnings, get_logger
from cascade.adapters.caching._entry_format import Opened
from cascade.spec.caching import CacheError

logger = get_logger(__name__)

SUFFIX = ".result"
_TEMPORARY = ".tmp"
_ABANDONED = 3600.0
"""Age in seconds from which a temporary file belongs to a process that was killed."""

_BLOCK = 4096
"""Size of a block of the file system. An entry of one byte needs one block."""

_TOUCH = 60.0
"""Seconds between two updates of the time of an entry that is used often."""
_FREED = 0.9
"""Part of the size limit that remains after entries were removed."""
_UNSEEN = 0.1
"""Part of the size limit that this process writes before it counts the entries of other processes again."""

_READ = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
_WRITE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH

_numbers = itertools.count()


class UnusableError(Exception):
    """Raised if the directory cannot be used."""


class CacheStats(NamedTuple):
    """Content of a cache directory: the number of its entries, and their size in bytes on the disk."""

    entries: int
    bytes: int


class Entries:
    """The entries of one directory.

    Args:
        directory: The absolute path. It is created at the first use, for the current user only.
        max_bytes: Size limit in bytes on the disk; None is unlimited.
    """

    def __init__(self, directory: str, max_bytes: int | None) -> None:
        self.directory = directory
        self._max_bytes = max_bytes
        self._lock = ForkSafeLock()
        self._size: int | None = None  # in bytes on the disk, without the entries that other processes add meanwhile
        self._written = 0  # since the entries were counted
        self._is_checked = False
        self.warn = LimitedWarnings(logger)

    def path(self, key: str) -> str:
        return f"{self.directory}{os.sep}{key}{SUFFIX}"

    def open(self, key: str) -> Opened | None:
        """Open an entry. Returns None without one.

        Raises:
            UnusableError: The directory is not safe, or cannot be read.
            CacheError: The entry belongs to another user, or others may write to it.
        """
        if not self._is_checked and not self._check():
            return None
        try:
            descriptor = os.open(self.path(key), _READ)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise UnusableError(f"cannot read {self.path(key)}: {error.strerror}") from error
        found = os.fstat(descriptor)
        problem = _access_problem(found) if stat.S_ISREG(found.st_mode) else "is not a file"
        if problem:
            os.close(descriptor)
            raise CacheError(f"{self.path(key)} is not used: it {problem}")
        return Opened(descriptor, found.st_size, found.st_mtime)

    def touch(self, key: str, modified: float) -> None:
        """Record the use of an entry, so that it is removed later than others."""
        if time.time() - modified > _TOUCH:
            with suppress(OSError):
                os.utime(self.path(key))

    def write(self, key: str, write: Callable[[BinaryIO, str], object]) -> None:
        """Create or replace an entry. `write` writes it to a file, with its key; after an error, the entry does not change.

        Raises:
            UnusableError: The directory is not safe, or cannot be written to.
            CacheError: The entry alone exceeds the size limit.
        """
        temporary = f"{self.directory}{os.sep}{key}.{os.getpid()}-{threading.get_ident()}-{next(_numbers)}{_TEMPORARY}"
        try:
            descriptor = self._new_file(temporary)
            try:
                with os.fdopen(descriptor, "wb", buffering=0) as file:
                    write(file, key)
                    size = _on_disk(os.fstat(descriptor).st_size)
                self._check_limit(size)
                os.replace(temporary, self.path(key))  # noqa: PTH105 - a Path takes as long as the call
            except BaseException:
                with suppress(OSError):
                    Path(temporary).unlink()
                raise
        except OSError as error:
            raise UnusableError(f"cannot write to {self.directory}: {error.strerror or error}") from error
        self._add(size)

    def _check_limit(self, size: int) -> None:
        if self._max_bytes is not None and size > self._max_bytes:
            raise CacheError(f"it needs {size:,} bytes on the disk, and max_bytes of the cache is {self._max_bytes:,}")

    def _new_file(self, path: str) -> int:
        if self._is_checked:
            with suppress(FileNotFoundError):
                return os.open(path, _WRITE, 0o600)
        self._create()
        return os.open(path, _WRITE, 0o600)

    def clear(self) -> int:
        """Remove all entries. Returns their number.

        Raises:
            OSError: An entry cannot be removed.
        """
        count = 0
        for entry in self._scan():
            with suppress(FileNotFoundError):
                Path(entry.path).unlink()
                count += entry.name.endswith(SUFFIX)
        with self._lock:
            self._size, self._written = 0, 0
        return count

    def stats(self) -> CacheStats:
        sizes = [_on_disk(size) for _, size, _ in self._listed()]
        return CacheStats(len(sizes), sum(sizes))

    def _create(self) -> None:
        try:
            Path(self.directory).mkdir(0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise UnusableError(f"cannot create {self.directory}: {error.strerror}") from error
        self._check()
        with suppress(OSError), Path(self.directory, ".gitignore").open("x", encoding="utf-8") as file:
            file.write("# The values of tasks in this directory may be secret.\n*\n")

    def _check(self) -> bool:
        """Check the owner and the mode of the directory, once. Returns False if the directory does not exist."""
        try:
            found = Path(self.directory).stat()
        except FileNotFoundError:
            return False
        except OSError as error:
            raise UnusableError(f"cannot read {self.directory}: {error.strerror}") from error
        if not stat.S_ISDIR(found.st_mode):
            raise UnusableError(f"{self.directory} is not a directory")
        if problem := _access_problem(found):
            raise UnusableError(f"the directory {self.directory} {problem}")
        self._is_checked = True
        return True

    def _add(self, size: int) -> None:
        limit = self._max_bytes
        if limit is None:
            return
        with self._lock:
            self._written += size
            self._size = None if self._size is None else self._size + size
            if self._size is None or self._size > limit or self._written > limit * _UNSEEN:
                self._size, self._written = self._evict(limit), 0

    def _evict(self, limit: int) -> int:
        """Count the entries, and remove those that were not used for the longest time if they exceed the limit."""
        entries = sorted(self._listed())
        size = sum(_on_disk(size) for _, size, _ in entries)
        if size > limit:
            for _, one, path in entries:
                if size <= limit * _FREED:
                    break
                with suppress(OSError):  # another process has removed it, or on Windows reads it
                    Path(path).unlink()
                    size -= _on_disk(one)
        return size

    def _listed(self) -> Iterator[tuple[float, int, str]]:
        """Yield time, size and path of each entry. Removes the temporary files of processes that were killed."""
        for entry in self._scan():
            with suppress(OSError):
                found = entry.stat(follow_symlinks=False)
                if entry.name.endswith(SUFFIX):
                    yield found.st_mtime, found.st_size, entry.path
                elif time.time() - found.st_mtime > _ABANDONED:
                    Path(entry.path).unlink()

    def _scan(self) -> Iterator["os.DirEntry[str]"]:
        try:
            with os.scandir(self.directory) as found:
                yield from (entry for entry in found if entry.name.endswith((SUFFIX, _TEMPORARY)))
        except FileNotFoundError:
            return


def _on_disk(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK


def _access_problem(found: os.stat_result) -> str:
    """Return why the content of a file or directory may not be from the current user, and the fix; "" if it is.

    Windows has neither owners nor modes in this sense: there, the access list of the directory applies.
    """
    if not hasattr(os, "geteuid"):
        return ""
    if found.st_uid != (user := os.geteuid()):
        return f"belongs to user {found.st_uid}, and this process is user {user}; choose a directory of your own"
    if found.st_mode & _OTHERS_WRITE:
        return f"can be written to by other users (mode {stat.S_IMODE(found.st_mode):o}); run chmod go-w on it"
    return ""
