"""Cache of built programs, outside the checkout, so that all clones share it."""

import fcntl
import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def folder() -> Path:
    """Return `$XDG_CACHE_HOME/cascade/bin`, by default `~/.cache/cascade/bin`."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "cascade" / "bin"


def path_of_sources(name: str, sources: Path) -> Path:
    """Return the path in the cache of a program built from a folder. The name contains a digest of the files."""
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(sources.glob("*")))).hexdigest()
    return folder() / f"{name}-{digest[:8]}"


@contextmanager
def building(program: Path) -> Iterator[Path | None]:
    """Yield a folder for the build, or None if the program exists. Waits for a build in another process.

    The program that is built as `program.name` in that folder is moved into the cache atomically.
    """
    program.parent.mkdir(parents=True, exist_ok=True)
    with (program.parent / f".{program.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if program.exists():
            yield None
            return
        with tempfile.TemporaryDirectory(dir=program.parent, prefix=".building-") as scratch:
            yield Path(scratch)
            (Path(scratch) / program.name).replace(program)
