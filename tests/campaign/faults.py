"""Ports that fail: what a neuron of the campaign gets instead of buckets and a chain that work.

Each request may meet one fault, drawn by chance. What a reader is given instead of an object is what a bad bucket, a
bad line or a bad disk would give it; what a writer is refused is what its store would refuse. Every fault is noted, in
one line of a file that all processes of a network share, before it strikes: a process that is killed loses no note.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from protocol.errors import ChainUnreachable
from storage.bucket import Bucket, ObjectInfo, Writer
from storage.directory import DirectoryBucket
from storage.errors import NotFound, StorageError, Unavailable, WrongSize

REQUESTS = ("lost", "late", "reordered")
"""What happens to a request that reads. `lost`: no answer; `late`: an answer after up to two blocks; `reordered`: for
some blocks the object is not there, though what was written after it is."""

CONTENTS = ("truncated", "flipped", "swapped", "stale")
"""What happens to what is read. `truncated`: the end is missing; `flipped`: one bit is another one; `swapped`: it is
the last object of this kind, somebody else's say; `stale`: it is an old one, of a window ago say."""

WRITE, CHAIN = "unwritten", "no chain"
"""A write to the own bucket that fails, before or after it has happened; a chain that does not answer."""

_LATE_SECONDS = 1.0
_HIDDEN_SECONDS = 2.0
_KILL_WITHIN_SECONDS = 0.02
_REMEMBERED = 64

NOTES_FILE = "faults.log"


@dataclass(slots=True)
class Source:
    """Where one process's faults come from. `is_over` says whether there are none any more."""

    name: str
    chance: random.Random
    note: Callable[[str, str], None]
    is_over: Callable[[], bool]

    def strikes(self, share: float) -> bool:
        """Whether the next request meets a fault."""
        return not self.is_over() and self.chance.random() < share

    def struck(self, kind: str, what: str) -> None:
        """Take note of a fault that is about to happen."""
        self.note(kind, f"{self.name} {what}")


def note_in(folder: Path) -> Callable[[str, str], None]:
    """Notes at the end of a file in `folder`, each whole: lines this short are appended at once."""
    descriptor = os.open(folder / NOTES_FILE, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)

    def note(kind: str, what: str) -> None:
        os.write(descriptor, f"{kind}\t{what}\n".encode())

    return note


@dataclass(slots=True)
class FaultyBucket:
    """`inner`, where a share of all reads meets a fault. `memory` is what one process has read of all buckets, by
    the last part of its key: where stale and swapped objects come from."""

    inner: Bucket
    source: Source
    reads: float
    memory: dict[str, list[tuple[str, bytes]]]
    hidden: dict[str, float] = field(default_factory=dict)

    async def get(self, key: str, *, limit_bytes: int) -> bytes:
        """See `Bucket.get`."""
        await self._before(key)
        data = await self.inner.get(key, limit_bytes=limit_bytes)
        return self._changed(key, data)

    async def get_range(self, key: str, start: int, length: int) -> bytes:
        """See `Bucket.get_range`."""
        await self._before(key)
        data = await self.inner.get_range(key, start, length)
        found = self._changed(f"{key}@{start}+{length}", data)
        if len(found) < length:
            raise StorageError(f"{key} ends before {start} + {length}")
        return found[:length]

    async def copy_range(self, key: str, start: int, length: int, writer: Writer, *, size_bytes: int) -> None:
        """See `Bucket.copy_range`."""
        await self._before(key)
        if (there := (await self.inner.head(key)).size_bytes) != size_bytes:
            raise WrongSize(f"{key} has {there} bytes, not the {size_bytes} that it should have")
        data = self._changed(f"{key}@{start}+{length}", await self.inner.get_range(key, start, length))
        await writer.write(0, data[:length])
        if len(data) < length:
            raise StorageError(f"{key} ends before {start} + {length}")

    async def head(self, key: str) -> ObjectInfo:
        """See `Bucket.head`."""
        await self._before(key)
        return await self.inner.head(key)

    async def list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        """See `Bucket.list`."""
        async for info in self.inner.list(prefix):
            yield info

    async def put(self, key: str, data: bytes) -> None:
        """See `Bucket.put`."""
        await self.inner.put(key, data)

    async def put_if_absent(self, key: str, data: bytes) -> None:
        """See `Bucket.put_if_absent`."""
        await self.inner.put_if_absent(key, data)

    async def delete(self, key: str) -> None:
        """See `Bucket.delete`."""
        await self.inner.delete(key)

    async def _before(self, key: str) -> None:
        """What goes wrong before a byte is read."""
        now = asyncio.get_running_loop().time()
        if self.hidden.get(key, 0.0) > now and not self.source.is_over():
            raise NotFound(f"there is no object {key}")
        if not self.source.strikes(self.reads):
            return
        kind = self.source.chance.choice(REQUESTS)
        self.source.struck(kind, key)
        if kind == "lost":
            raise Unavailable("the connection was closed")
        if kind == "late":
            await asyncio.sleep(self.source.chance.uniform(0.0, _LATE_SECONDS))
        else:
            self.hidden[key] = now + self.source.chance.uniform(0.0, _HIDDEN_SECONDS)
            raise NotFound(f"there is no object {key}")

    def _changed(self, key: str, data: bytes) -> bytes:
        """What goes wrong with the bytes."""
        like = key.rpartition("/")[2]
        known = self.memory.setdefault(like if not like[:1].isdigit() else "document", [])
        others = [there for name, there in known if name != key]
        known.append((key, data))
        del known[:-_REMEMBERED]
        if not self.source.strikes(self.reads) or not data:
            return data
        kind = self.source.chance.choice(CONTENTS if others else CONTENTS[:2])
        self.source.struck(kind, key)
        if kind == "truncated":
            return data[: self.source.chance.randrange(len(data))]
        if kind == "flipped":
            at = self.source.chance.randrange(len(data))
            return data[:at] + bytes([data[at] ^ 1 << self.source.chance.randrange(8)]) + data[at + 1 :]
        return others[0] if kind == "stale" else others[-1]


@dataclass(frozen=True, slots=True)
class FaultyStore(DirectoryBucket):
    """The own bucket of a process, where a share of all writes fails, before or after it has happened, and in a share
    of them the process is killed."""

    source: Source
    writes: float
    killed: float

    async def put(self, key: str, data: bytes) -> None:
        """See `Bucket.put`."""
        await self._written(key, DirectoryBucket.put(self, key, data))

    async def put_if_absent(self, key: str, data: bytes) -> None:
        """See `Bucket.put_if_absent`."""
        await self._written(key, DirectoryBucket.put_if_absent(self, key, data))

    async def delete(self, key: str) -> None:
        """See `Bucket.delete`."""
        await self._written(key, DirectoryBucket.delete(self, key))

    async def _written(self, key: str, write: Coroutine[Any, Any, None]) -> None:
        if self.source.strikes(self.killed):
            # Somewhere in this write, or in what comes right after it.
            timer = threading.Timer(self.source.chance.uniform(0.0, _KILL_WITHIN_SECONDS), _die)
            timer.daemon = True
            timer.start()
        if not self.source.strikes(self.writes):
            await write
            return
        self.source.struck(WRITE, key)
        if self.source.chance.random() < 0.5:
            await write  # the store did it, and its answer was lost
        else:
            write.close()
        raise Unavailable("the store answers 503 to every attempt")


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class FaultyChain:
    """`inner`, where a share of all calls finds that nothing answers."""

    def __init__(self, inner: Any, source: Source, share: float) -> None:
        self._inner, self._source, self._share = inner, source, share

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        if not asyncio.iscoroutinefunction(found) or name == "close":
            return found

        async def call(*arguments: Any) -> Any:
            if self._source.strikes(self._share):
                self._source.struck(CHAIN, name)
                raise ChainUnreachable("nothing answers at the chain's endpoint")
            return await found(*arguments)

        return call
