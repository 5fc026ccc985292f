"""Objects that do not fit into memory: from a bucket into a file and back, in a memory that does not grow with them.

Several ranges are on their way at once, and what arrives is written where it belongs by a thread, some pieces at a
time. Nothing is forced to the disk: after a power cut a file may be broken, which its digest then tells.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Lock

from blake3 import blake3

from storage.bucket import Bucket
from storage.errors import DiskUnusable, StorageError, WrongSize
from storage.s3 import S3Bucket
from storage.together import in_thread, together

RANGE_BYTES = 64 << 20
RANGES_AT_ONCE = 4

_BATCH_BYTES = 2 << 20
_READ_BYTES = 256 << 10
"""What is hashed from the file goes through a buffer that fits the processor's second cache: a quarter faster."""

_BATCH_PIECES = 512
"""How many pieces one system call may write: Linux takes 1024."""


async def download(
    bucket: Bucket, key: str, size_bytes: int, path: Path, *, ranges_at_once: int = RANGES_AT_ONCE
) -> str:
    """Store the object `key`, which must have `size_bytes` bytes, at `path`; returns its BLAKE3 in hexadecimal. At most
    `ranges_at_once` connections are taken.

    Whatever was at `path` is replaced at the end. After an error or a cancellation it is as it was, and no half file
    stays. Raises what the bucket raises, `WrongSize` when the object has another size, and `DiskUnusable` when the file
    cannot be written.
    """
    if not size_bytes and (await bucket.head(key)).size_bytes:  # of nothing no range can be read
        raise WrongSize(f"{key} is not empty, as it should be")
    with _replaced(path) as descriptor:
        file = _File(descriptor)
        starts = iter(range(0, size_bytes, RANGE_BYTES))

        async def work() -> None:
            for start in starts:  # shared: whoever is free takes the next one
                part = _Range(file, start)
                length = min(RANGE_BYTES, size_bytes - start)
                await bucket.copy_range(key, start, length, part, size_bytes=size_bytes)
                await part.end()

        await together(work() for _ in range(ranges_at_once))
        return file.digest(size_bytes)


async def upload(bucket: S3Bucket, key: str, path: Path) -> None:
    """Store the file at `path` under `key`, read part by part. Raises what `S3Bucket.put_from` raises, `StorageError`
    when the file becomes shorter meanwhile, and `OSError` when it cannot be opened."""
    with path.open("rb", buffering=0) as file:
        await bucket.put_from(key, FileSource(file.fileno(), os.fstat(file.fileno()).st_size))


def digest_of_file(path: Path) -> str:
    """BLAKE3 of the file at `path`, in hexadecimal. Raises `DiskUnusable` when it cannot be read."""
    try:
        return blake3().update_mmap(path).hexdigest()
    except OSError as error:
        raise DiskUnusable(f"{path} cannot be read: {error.strerror}") from error


class FileSource:
    """A `Source` that reads an open file."""

    def __init__(self, descriptor: int, size_bytes: int) -> None:
        self._descriptor, self._size_bytes = descriptor, size_bytes

    @property
    def size_bytes(self) -> int:
        """See `Source.size_bytes`."""
        return self._size_bytes

    async def read(self, start: int, length: int) -> memoryview:
        """See `Source.read`."""
        buffer = memoryview(bytearray(length))
        await in_thread(lambda: _read_into(self._descriptor, start, buffer))
        return buffer


class _Range:
    """Writes one range into a file, some pieces at a time."""

    def __init__(self, file: _File, start: int) -> None:
        self._file, self._start = file, start
        self._at = start
        self._pieces: list[bytes] = []
        self._bytes = 0

    async def write(self, at: int, piece: bytes) -> None:
        """See `Writer.write`."""
        if self._start + at != self._at + self._bytes:  # from the beginning again
            self._at, self._bytes = self._start + at, 0
            self._pieces.clear()
        self._pieces.append(piece)
        self._bytes += len(piece)
        if self._bytes >= _BATCH_BYTES or len(self._pieces) == _BATCH_PIECES:
            await self._flush()

    async def end(self) -> None:
        """All of it came."""
        await self._flush()
        await in_thread(lambda: self._file.complete(self._start, self._at))

    async def _flush(self) -> None:
        pieces, at = self._pieces, self._at
        self._pieces, self._at, self._bytes = [], at + self._bytes, 0
        await in_thread(lambda: self._file.write(self._start, at, pieces))


class _File:
    """A file that is written in several places at once, and the BLAKE3 of it. Its methods are for threads.

    Bytes are hashed in order: those that come when all before them is hashed, at once; all others from the file, when
    their range is whole and its turn has come.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._lock = Lock()
        self._hasher = blake3()
        self._hashed = 0
        self._at_start = self._hasher.copy()
        self._whole: dict[int, int] = {}

    def write(self, start: int, at: int, pieces: Sequence[bytes]) -> None:
        """Write `pieces` at `at`, within the range that begins at `start`. A range may be begun again, and with other
        bytes if the object has changed: then its hash goes back to where it began."""
        _write_all(self._descriptor, at, pieces)
        with self._lock:
            if start == at < self._hashed:
                self._hasher, self._hashed = self._at_start.copy(), start
            if at != self._hashed:
                return
            if start == at:
                self._at_start = self._hasher.copy()
            for piece in pieces:
                self._hasher.update(piece)
                self._hashed += len(piece)

    def complete(self, start: int, end: int) -> None:
        """The range from `start` to `end` is written."""
        with self._lock:
            self._whole[start] = end
            buffer = memoryview(bytearray(_READ_BYTES))
            while (end_of_next := self._whole.get(self._hashed)) is not None:
                while self._hashed < end_of_next:
                    piece = buffer[: end_of_next - self._hashed]
                    _read_into(self._descriptor, self._hashed, piece)
                    self._hasher.update(piece)
                    self._hashed += len(piece)

    def digest(self, size_bytes: int) -> str:
        """Of all its bytes, which are so many."""
        assert self._hashed == size_bytes
        return self._hasher.hexdigest()


@contextmanager
def _replaced(path: Path) -> Iterator[int]:
    """A descriptor of a new file that takes the place of `path` at the end, or vanishes."""
    partial = path.with_name(f"~{path.name}.{secrets.token_hex(8)}")
    try:
        descriptor = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            yield descriptor
        finally:
            os.close(descriptor)
        os.replace(partial, path)
    except OSError as error:
        raise DiskUnusable(f"{path} cannot be written: {error.strerror}") from error
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def _write_all(descriptor: int, at: int, pieces: Sequence[bytes]) -> None:
    while pieces:
        try:
            written = os.pwritev(descriptor, pieces, at)
        except OSError as error:  # not to be taken for the network's
            raise DiskUnusable(f"a file cannot be written: {error.strerror}") from error
        at += written
        # Rarely more than once: what is left of the first piece that did not go, and all after it.
        pieces = [piece for piece in _after(pieces, written) if piece]


def _after(pieces: Sequence[bytes], count: int) -> Iterator[bytes]:
    for piece in pieces:
        yield piece[count:]
        count = max(0, count - len(piece))


def _read_into(descriptor: int, start: int, buffer: memoryview) -> None:
    """Fill `buffer` from `start` on; raises `StorageError` when the file ends before."""
    filled = 0
    while filled < len(buffer):
        try:
            count = os.preadv(descriptor, [buffer[filled:]], start + filled)
        except OSError as error:
            raise DiskUnusable(f"a file cannot be read: {error.strerror}") from error
        if not count:
            raise StorageError("the file became shorter while it was read")
        filled += count
