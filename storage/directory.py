"""The bucket port over a plain folder (protocol §6), for the built-in chain and for tests. POSIX only.

Another peer may own the folder, so nothing in it is trusted. Every path is walked one component at a time from
an open root with O_NOFOLLOW: a link planted anywhere below the root, or as the root, is never followed, and
only regular files are objects. A folder and an object cannot share a name, as they can in an object store;
`storage.keys` never asks for that.
"""

from __future__ import annotations

import asyncio
import errno
import os
import re
import secrets
import stat
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from storage.bucket import ObjectInfo, Writer, check_key, check_prefix
from storage.errors import AlreadyExists, BadKey, NotFound, StorageError, TooLarge, Unavailable, WrongSize

_OPEN_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# O_NONBLOCK: opening a fifo that a peer planted must not wait for a writer.
_OPEN_OBJECT = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_OPEN_TEMPORARY = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC

# What the walk meets where no object is: nothing, a file as a folder, a link, a socket.
_NO_OBJECT = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO})

_TEMPORARY = re.compile(r"~[0-9a-f]{16}")
"""`~` is in no key, so what is written under such a name can be neither read nor listed."""

_WRITE_ATTEMPTS = 100
_LIST_BATCH_OBJECTS = 1000
_COPIED_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class DirectoryBucket:
    """A `Bucket` whose objects are the regular files below `root`. The first put creates `root`; until then
    the bucket is empty. File work runs in threads, so the event loop never waits for a disk."""

    root: Path

    async def put(self, key: str, data: bytes) -> None:
        """See `Bucket.put`. The object is on disk, not only in a cache, when this returns."""
        check_key(key)
        await asyncio.to_thread(_write, self.root, key, data, replace=True)

    async def put_if_absent(self, key: str, data: bytes) -> None:
        """See `Bucket.put_if_absent`. Of any number of processes that try, exactly one succeeds."""
        check_key(key)
        await asyncio.to_thread(_write, self.root, key, data, replace=False)

    async def get(self, key: str, *, limit_bytes: int) -> bytes:
        """See `Bucket.get`."""
        check_key(key)
        return await asyncio.to_thread(_read, self.root, key, limit_bytes)

    async def get_range(self, key: str, start: int, length: int) -> bytes:
        """See `Bucket.get_range`. `start` ≥ 0 and `length` ≥ 1, else `ValueError`."""
        check_key(key)
        if start < 0 or length < 1:
            raise ValueError(f"a range needs start >= 0 and length >= 1, not {start} and {length}")
        return await asyncio.to_thread(_read_range, self.root, key, start, length)

    async def copy_range(self, key: str, start: int, length: int, writer: Writer, *, size_bytes: int) -> None:
        """See `Bucket.copy_range`."""
        if (there := (await self.head(key)).size_bytes) != size_bytes:
            raise WrongSize(f"{key} has {there} bytes, not the {size_bytes} that it should have")
        for at in range(0, length, _COPIED_BYTES):
            piece = await self.get_range(key, start + at, min(_COPIED_BYTES, length - at))
            await writer.write(at, piece)

    async def head(self, key: str) -> ObjectInfo:
        """See `Bucket.head`. The time is the file's own modification time."""
        check_key(key)
        return await asyncio.to_thread(_head, self.root, key)

    async def list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        """See `Bucket.list`. Objects that come or go meanwhile may or may not be among them."""
        check_prefix(prefix)
        walk = _walk(self.root, tuple(prefix.split("/")[:-1]), prefix)
        while batch := await asyncio.to_thread(lambda: tuple(islice(walk, _LIST_BATCH_OBJECTS))):
            for info in batch:
                yield info

    async def delete(self, key: str) -> None:
        """See `Bucket.delete`. Folders left empty below the root go with it."""
        check_key(key)
        await asyncio.to_thread(_delete, self.root, key)

    async def remove_unfinished(self) -> None:
        """Remove what writers left that were killed, and the folders that are empty then. Only for the bucket's owner,
        while nobody writes: the file of a living writer would go too."""
        await asyncio.to_thread(_remove_unfinished, self.root)


def _unavailable(root: Path, error: OSError) -> Unavailable:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return Unavailable(f"the disk that holds {root} is full: free some space")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return Unavailable(f"{root} may not be read or written by this user: change its owner or its mount")
    if error.errno in (errno.EEXIST, errno.EISDIR, errno.ENOTDIR, errno.ELOOP):
        return Unavailable(f"something that is no object stands in the way below {root}: remove it")
    return Unavailable(f"{root} cannot be used: {error.strerror}")


@contextmanager
def _folder(root: Path, parts: Sequence[str], *, create: bool = False) -> Iterator[int]:
    """A descriptor of the folder `parts` below `root`, reached without following a link. Raises OSError."""
    if create:
        root.mkdir(parents=True, exist_ok=True)
    folder = _open_root(root)
    try:
        for part in parts:
            if create:
                _make_folder(folder, part)
            inner = os.open(part, _OPEN_FOLDER, dir_fd=folder)
            os.close(folder)
            folder = inner
        yield folder
    finally:
        os.close(folder)


def _open_root(root: Path) -> int:
    try:
        return os.open(root, _OPEN_FOLDER)
    except OSError as error:
        if error.errno in (errno.ENOTDIR, errno.ELOOP):
            raise Unavailable(f"{root} is not a folder, or only a link to one: name the folder itself") from error
        raise


def _make_folder(folder: int, name: str) -> None:
    with suppress(FileExistsError):
        os.mkdir(name, 0o755, dir_fd=folder)
        os.fsync(folder)


def _write(root: Path, key: str, data: bytes, *, replace: bool) -> None:
    *parents, name = key.split("/")
    try:
        for _ in range(_WRITE_ATTEMPTS):
            # A delete elsewhere may prune a folder between its making and its use; then start again.
            with suppress(FileNotFoundError), _folder(root, parents, create=True) as folder:
                _place(folder, key, name, data, replace=replace)
                return
    except OSError as error:
        raise _unavailable(root, error) from error
    raise Unavailable(f"the folder of {key} is removed as often as it is made: stop what empties {root}")


def _place(folder: int, key: str, name: str, data: bytes, *, replace: bool) -> None:
    """Write beside the target, then rename or link: a reader sees the whole object or none of it."""
    temporary = f"~{secrets.token_hex(8)}"
    descriptor = os.open(temporary, _OPEN_TEMPORARY, 0o644, dir_fd=folder)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(descriptor)
        if replace:
            os.replace(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
        else:
            _link(folder, temporary, key, name)
        # Without this a power cut could keep a later object and lose an earlier one, such as the checkpoint
        # behind a pointer.
        os.fsync(folder)
    finally:
        with suppress(FileNotFoundError):
            os.unlink(temporary, dir_fd=folder)


def _link(folder: int, temporary: str, key: str, name: str) -> None:
    try:
        os.link(temporary, name, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=False)
    except FileExistsError as error:
        with suppress(FileNotFoundError):
            if not stat.S_ISREG(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
                raise
        raise AlreadyExists(f"there is an object {key} already") from error


@contextmanager
def _object(root: Path, key: str) -> Iterator[tuple[int, os.stat_result]]:
    """A descriptor of the object and its stat; raises `NotFound` and `Unavailable`."""
    *parents, name = key.split("/")
    try:
        with _folder(root, parents) as folder:
            descriptor = os.open(name, _OPEN_OBJECT, dir_fd=folder)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise NotFound(f"there is no object {key}")
            yield descriptor, status
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno in _NO_OBJECT:
            raise NotFound(f"there is no object {key}") from error
        raise _unavailable(root, error) from error


def _read(root: Path, key: str, limit_bytes: int) -> bytes:
    with _object(root, key) as (descriptor, status):
        if status.st_size > limit_bytes:
            raise TooLarge(f"{key} has {status.st_size} bytes, its limit is {limit_bytes}")
        return _read_exactly(descriptor, key, 0, status.st_size)


def _read_range(root: Path, key: str, start: int, length: int) -> bytes:
    with _object(root, key) as (descriptor, status):
        if start + length > status.st_size:
            raise StorageError(f"{key} ends at {status.st_size}, before {start} + {length}")
        return _read_exactly(descriptor, key, start, length)


def _read_exactly(descriptor: int, key: str, start: int, length: int) -> bytes:
    """`length` bytes from `start`: one system call moves at most 2 GiB, and a hostile file may shrink."""
    pieces = []
    while length:
        piece = os.pread(descriptor, min(length, 1 << 30), start)
        if not piece:
            raise StorageError(f"{key} became shorter while it was read")
        pieces.append(piece)
        start, length = start + len(piece), length - len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _head(root: Path, key: str) -> ObjectInfo:
    with _object(root, key) as (_, status):
        return ObjectInfo(key, status.st_size, status.st_mtime)


def _walk(root: Path, parts: tuple[str, ...], prefix: str) -> Iterator[ObjectInfo]:
    """Objects below the folder `parts` whose key starts with `prefix`. No descriptor is held between two."""
    for name, status in _scan(root, parts):
        key = "".join(f"{part}/" for part in parts) + name
        if not key.startswith(prefix):
            continue
        if name.endswith("/"):
            yield from _walk(root, (*parts, name[:-1]), prefix)
        else:
            yield ObjectInfo(key, status.st_size, status.st_mtime)


def _scan(root: Path, parts: tuple[str, ...]) -> list[tuple[str, os.stat_result]]:
    """Objects and folders of one folder. A folder's name ends in `/`: so sorted, a walk meets whole keys in
    ascending order, `a-b` before `a/b`."""
    found = []
    try:
        with _folder(root, parts) as folder, os.scandir(folder) as entries:
            for entry in entries:
                with suppress(FileNotFoundError, BadKey):
                    check_key("/".join((*parts, entry.name)))
                    status = entry.stat(follow_symlinks=False)
                    if stat.S_ISDIR(status.st_mode):
                        found.append((f"{entry.name}/", status))
                    elif stat.S_ISREG(status.st_mode):
                        found.append((entry.name, status))
    except OSError as error:
        if error.errno in _NO_OBJECT:
            return []
        raise _unavailable(root, error) from error
    return sorted(found, key=lambda item: item[0])


def _delete(root: Path, key: str) -> None:
    *parents, name = key.split("/")
    try:
        with _folder(root, parents) as folder:
            if not stat.S_ISREG(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
                return
            os.unlink(name, dir_fd=folder)
        while parents:
            *parents, name = parents
            with _folder(root, parents) as folder:
                os.rmdir(name, dir_fd=folder)  # refuses a folder that is not empty, or no longer
    except OSError as error:
        if error.errno not in _NO_OBJECT | {errno.ENOTEMPTY, errno.EEXIST}:
            raise _unavailable(root, error) from error


def _remove_unfinished(root: Path) -> None:
    try:
        if not root.is_dir():
            return
        for _, folders, files, folder in os.fwalk(root, topdown=False, follow_symlinks=False):
            for name in files:
                if _TEMPORARY.fullmatch(name):
                    os.unlink(name, dir_fd=folder)
            for name in folders:
                with suppress(OSError):  # refuses what is not empty
                    os.rmdir(name, dir_fd=folder)
    except OSError as error:
        raise _unavailable(root, error) from error
