"""Format of a cache entry: a header with the time and a digest of the content, then a pickle."""

import os
import pickle
import struct
import time
from hashlib import blake2b
from typing import Any, BinaryIO

PROTOCOL = 5
"""Protocol of pickle that all supported versions of Python read."""
_MAGIC = b"cascade1"
_HEADER = struct.Struct(">8sdQ16s")
"""Format and version, time in seconds since the Unix epoch, length of the content, digest."""
_DIGEST_SIZE = 16
_CHUNK = 1 << 20


class Opened:
    """An open entry of the current user, its size in bytes, and the time of its last use. Closed at the end of the block."""

    __slots__ = ("_descriptor", "modified", "size")

    def __init__(self, descriptor: int, size: int, modified: float) -> None:
        self._descriptor = descriptor
        self.size = size
        self.modified = modified

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)

    def content(self, key: str, limit: int) -> tuple[float, memoryview | BinaryIO]:
        """Return the time of the entry, and its pickle: in memory up to `limit` bytes, else as a file.

        Raises:
            ValueError: The entry is damaged. The text describes the damage.
            OSError: It cannot be read.
        """
        if self.size > limit:
            file = os.fdopen(self._descriptor, "rb", closefd=False)
            created, digest = _parsed(file.read(_HEADER.size), self.size)
            hasher = _hasher(key, created)
            while chunk := file.read(_CHUNK):
                hasher.update(chunk)
            file.seek(_HEADER.size)
            content: memoryview | BinaryIO = file
        else:
            data = memoryview(os.read(self._descriptor, self.size))
            created, digest = _parsed(data[: _HEADER.size], self.size)
            content = data[_HEADER.size :]
            hasher = _hasher(key, created)
            hasher.update(content)
        if hasher.digest() != digest:
            raise ValueError("its content has changed")
        return created, content


def _parsed(header: bytes | memoryview, size: int) -> tuple[float, bytes]:
    """Return the time and the digest of an entry of `size` bytes."""
    if len(header) < _HEADER.size:
        raise ValueError("it is truncated")
    magic, created, length, digest = _HEADER.unpack(header)
    if magic != _MAGIC:
        raise ValueError("it has another format")
    if size != _HEADER.size + length:
        raise ValueError("it has a wrong length")
    return created, digest


def write_entry(payload: bytes, file: BinaryIO, key: str) -> None:
    """Write an entry of a pickle."""
    created = time.time()
    header = _HEADER.pack(_MAGIC, created, len(payload), _digest(key, created, payload))
    _write_all(file, header + payload)


def dump_entry(value: Any, file: BinaryIO, key: str) -> None:
    """Write an entry of a value. The value is pickled in parts, and other threads run between them."""
    created = time.time()
    _write_all(file, bytes(_HEADER.size))
    writer = _DigestWriter(file, _hasher(key, created))
    pickle.Pickler(writer, PROTOCOL).dump(value)
    file.seek(0)
    _write_all(file, _HEADER.pack(_MAGIC, created, writer.length, writer.digest.digest()))


def _hasher(key: str, created: float) -> Any:
    return blake2b(struct.pack(">d", created), digest_size=_DIGEST_SIZE, key=key.encode())


def _digest(key: str, created: float, payload: bytes) -> bytes:
    hasher = _hasher(key, created)
    hasher.update(payload)
    digest: bytes = hasher.digest()
    return digest


def _write_all(file: BinaryIO, data: Any) -> None:
    view = memoryview(data).cast("B")
    while view:
        view = view[file.write(view) :]


class _DigestWriter:
    """File of a pickler that writes to another file and to a digest."""

    def __init__(self, file: BinaryIO, digest: Any) -> None:
        self._file = file
        self.digest = digest
        self.length = 0

    def write(self, data: Any) -> int:
        view = memoryview(data)
        self.digest.update(view)
        _write_all(self._file, view)
        self.length += view.nbytes
        return view.nbytes
