"""Where programs that were built are kept: outside the checkout, so that a new clone finds them."""

import fcntl
import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def folder() -> Path:
    """`$XDG_CACHE_HOME/cascade/bin`, or the same below `~/.cache`."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "cascade" / "bin"


def path_of_sources(name: str, sources: Path) -> Path:
    """The path in the cache of what is built from a folder's files; it contains a digest of them."""
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(sources.glob("*")))).hexdigest()
    return folder() / f"{name}-{digest[:8]}"


@contextmanager
def building(program: Path) -> Iterator[Path | None]:
    """A folder to build in, or None if the program is there, perhaps since another process has just built it.

    What is built as `program.name` in that folder appears in the cache all at once, or not at all.
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
