"""The bucket port: eight verbs over named, immutable-by-convention byte objects (protocol §6).

A key is `/`-separated printable ASCII without empty, `.` or `..` parts, at most 512 characters: `check_key`
is the one place that says so, and every adapter calls it first.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Protocol

from storage.errors import BadKey

KEY_LIMIT_CHARACTERS = 512
_PART = re.compile(r"[A-Za-z0-9_.=+-]{1,128}")


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """What a store tells about an object without reading it. `last_modified` is in Unix seconds and is
    evidence only: a store that a peer runs can report any time."""

    key: str
    size_bytes: int
    last_modified: float


class Writer(Protocol):
    """Where the bytes of an object go that is not held in memory."""

    async def write(self, at: int, piece: bytes) -> None:
        """`piece` belongs `at` bytes after the beginning of what was asked for. After a failure that can be mended,
        bytes that were written already may come once more."""


class Bucket(Protocol):
    """One store. All methods may raise `BadKey` and `Unavailable`."""

    async def put(self, key: str, data: bytes) -> None:
        """Store `data` under `key`, replacing what was there; readers see the old object or the new one whole."""

    async def put_if_absent(self, key: str, data: bytes) -> None:
        """Store `data` only if nothing is there; raises `AlreadyExists`."""

    async def get(self, key: str, *, limit_bytes: int) -> bytes:
        """The whole object; raises `NotFound`, or `TooLarge` before reading more than `limit_bytes`."""

    async def get_range(self, key: str, start: int, length: int) -> bytes:
        """Exactly `length` bytes from `start`; raises `NotFound`, or `StorageError` if the object ends before."""

    async def copy_range(self, key: str, start: int, length: int, writer: Writer, *, size_bytes: int) -> None:
        """Give exactly `length` bytes from `start` to `writer`, without holding them. Raises like `get_range`, what
        `writer` raises, and `WrongSize` if the whole object has not `size_bytes` bytes."""

    async def head(self, key: str) -> ObjectInfo:
        """Size and time of the object; raises `NotFound`."""

    def list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        """Objects whose key starts with `prefix`, in ascending key order."""

    async def delete(self, key: str) -> None:
        """Remove the object; nothing happens when there is none."""


def check_key(key: str) -> None:
    """Raise `BadKey` unless every part of `key` is plain. What comes from a peer must never become a path."""
    if len(key) > KEY_LIMIT_CHARACTERS:
        raise BadKey(f"a key may have {KEY_LIMIT_CHARACTERS} characters, this one has {len(key)}")
    for part in key.split("/"):
        if part in (".", "..") or not _PART.fullmatch(part):
            raise BadKey(f"{key!r} is not a key: each part must be 1-128 of A-Z a-z 0-9 _ . = + - and not a dot path")


def check_prefix(prefix: str) -> None:
    """Raise `BadKey` unless `prefix` can be the beginning of a key. The empty prefix means every object."""
    folder, slash, start = prefix.rpartition("/")
    if slash:
        check_key(folder)
    if start and not _PART.fullmatch(start):
        raise BadKey(f"{prefix!r} is not the beginning of a key: {start!r} holds a character no key may have")
