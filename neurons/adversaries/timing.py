"""Cheats with what is published, when, and for whom: honest work, dishonest objects."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from neurons.clock import until
from neurons.miner import Miner
from neurons.rounds import Sealed
from protocol.window import Window
from storage.bucket import Writer
from storage.directory import DirectoryBucket
from storage.errors import NotFound


class LateSeal(Miner):
    """Seals one block after the snapshot, hoping that it is not that strict: late work can look at what others did."""

    async def seal(self, window: Window, payload: bytes) -> Sealed:
        """One block too late."""
        await until(self.chain, window.seal_block + 1)
        return await super().seal(window, payload)


class NoReveal(Miner):
    """Seals and never publishes the key, hoping that a seal is enough to be paid."""

    async def reveal(self, window: Window, sealed: Sealed) -> None:
        """Not at all."""
        await until(self.chain, window.key_block)


class Equivocator(Miner):
    """Replaces its seal, its shards and its key by others after the snapshot, hoping that nodes which look at different
    times apply different things."""

    async def reveal(self, window: Window, sealed: Sealed) -> None:
        """Seal the same work a second time, under another key, and reveal that one."""
        await until(self.chain, window.key_block)
        await super().reveal(window, await self.seal(window, self._payload))

    async def seal(self, window: Window, payload: bytes) -> Sealed:
        """As everybody; keeps the payload for the second time."""
        self._payload = payload
        return await super().seal(window, payload)


class Oversized(Miner):
    """Puts a megabyte behind each of its shards, hoping to fill the memory and the disks of those who fetch them."""

    async def seal(self, window: Window, payload: bytes) -> Sealed:
        """Seal as everybody, then let the objects grow."""
        sealed = await super().seal(window, payload)
        for index, shard in enumerate(sealed.seal.shards):
            key = self.keys.shard(window.number, self.hotkey, index)
            data = await self.parts.bucket.get(key, limit_bytes=shard.size_bytes)
            await self.parts.bucket.put(key, data + bytes(2**20))
        return sealed


@dataclass(frozen=True, slots=True)
class DrippingBucket(DirectoryBucket):
    """A bucket that gives `bytes_per_second`, hoping that whoever reads it waits for it and is late for the others."""

    bytes_per_second: float

    async def get(self, key: str, *, limit_bytes: int) -> bytes:
        """See `Bucket.get`."""
        data = await DirectoryBucket.get(self, key, limit_bytes=limit_bytes)
        await asyncio.sleep(len(data) / self.bytes_per_second)
        return data

    async def copy_range(self, key: str, start: int, length: int, writer: Writer, *, size_bytes: int) -> None:
        """See `Bucket.copy_range`."""
        await asyncio.sleep(length / self.bytes_per_second)
        await DirectoryBucket.copy_range(self, key, start, length, writer, size_bytes=size_bytes)


@dataclass(frozen=True, slots=True)
class KeylessBucket(DirectoryBucket):
    """A bucket that shows its owner's keys to nobody who is given this view of it, hoping that validators disagree."""

    async def get(self, key: str, *, limit_bytes: int) -> bytes:
        """See `Bucket.get`."""
        if key.endswith("/key.json"):
            raise NotFound(f"{key} is not for you")
        return await DirectoryBucket.get(self, key, limit_bytes=limit_bytes)
