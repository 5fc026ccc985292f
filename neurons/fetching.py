"""The payloads that manifests name, from the buckets of their miners or the mirrors of validators (protocol §12); and,
for who is behind, what the next windows need, while this one is applied."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path

from neurons.clock import tick
from neurons.rounds import Peer, Place, Reader
from protocol.chain.port import Chain
from protocol.errors import ChainUnreachable, Rejected
from protocol.ledger.manifest import Contribution, Manifest
from protocol.sealing import SealedShard
from protocol.sparseloco.payload import Payload
from storage.bucket import Bucket
from storage.errors import DamagedFile, DiskUnusable, StorageError
from storage.together import together

log = logging.getLogger(__name__)

_AHEAD_WINDOWS, _AHEAD_BYTES = 8, 4 << 30
"""How far ahead is read: so many windows, or as many as have so many bytes with full lists, but one at least."""

_AHEAD_AT_ONCE = 16
"""How many payloads of windows to come are on their way at a time."""

Say = Callable[[str], object]


class Fetcher:
    """What a node applies, on its way. `ledger_sources` are the validators' buckets, `manifest_at` gives the manifest
    of a window, as the ledger stands; `open_bucket` opens a bucket from its commitment; `complain` is told what is
    wrong with a payload and where it lies, `report` what is waited for."""

    def __init__(
        self,
        reader: Reader,
        chain: Chain,
        ledger_sources: Callable[[], Awaitable[tuple[Peer, ...]]],
        manifest_at: Callable[[int], Awaitable[Manifest | None]],
        open_bucket: Callable[[bytes], Bucket],
        complain: Say,
        report: Say,
    ) -> None:
        self._reader, self._chain = reader, chain
        self._ledger_sources, self._manifest_at, self._open_bucket = ledger_sources, manifest_at, open_bucket
        self._complain, self._report = complain, report
        self._passes: dict[tuple[int, str, str], asyncio.Task[list[Path] | None]] = {}
        self._ahead: dict[int, asyncio.Task[None]] = {}
        self._turn = asyncio.Semaphore(_AHEAD_AT_ONCE)
        self._next: dict[int, Manifest] = {}
        """The manifests whose payloads are read ahead, by window."""

    # --- this window --------------------------------------------------------------------------------------

    async def payloads(self, manifest: Manifest) -> list[Payload]:
        """All that `manifest` names, in its order. It is binding: this tries again until somebody has them. Raises
        `DiskUnusable`."""
        return await together(self.payload(manifest.window, named) for named in manifest.contributions)

    async def payload(self, window: int, named: Contribution) -> Payload:
        """The one that a manifest of `window` names so; as `payloads`."""
        while (payload := self._reader.opened(named)) is None:
            sealed = await self._sealed(window, named)
            try:
                if sealed is not None:
                    return await self._reader.open(
                        window, named.hotkey, bytes.fromhex(named.key), sealed, named.payload_digest
                    )
            except DamagedFile as error:
                self._complain(str(error))
                continue
            except Rejected as error:
                self._complain(f"window {window}, uid {named.uid}: {error}")
            self._report(f"waiting for the payload of uid {named.uid}, window {window}")
            await tick(self._chain)
        return payload

    async def _sealed(self, window: int, named: Contribution) -> list[Path] | None:
        """Files with the shards of a payload, or None if nobody has them now. Who asks for what is on its way already
        waits for that."""
        key = (window, named.hotkey, named.payload_digest)
        if key not in self._passes:
            self._passes[key] = asyncio.create_task(self._first_of(window, named))
            self._passes[key].add_done_callback(lambda _: self._passes.pop(key, None))
        return await asyncio.shield(self._passes[key])

    async def _first_of(self, window: int, named: Contribution) -> list[Path] | None:
        """What the first place that has it gives. Each has a block's head start on the next: a miner whose bucket is
        silent must not cost everybody the window."""
        places = list(self._places(named, await self._ledger_sources()))
        reading: dict[asyncio.Task[list[Path]], Place] = {}
        try:
            for place in places:
                step = self._reader.read_shards(place.bucket, window, named.hotkey, named.shards)
                reading[asyncio.create_task(step)] = place
                timeout = None if place is places[-1] else self._chain.block_seconds
                while reading:
                    done, _ = await asyncio.wait(reading, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
                    for task in done:
                        where = reading.pop(task)
                        try:
                            return task.result()
                        except DiskUnusable:
                            raise
                        except (StorageError, Rejected) as error:
                            self._complain(f"window {window}, uid {named.uid}, in {where.name}: {error}")
                    if not done:
                        break
        finally:
            for task in reading:
                task.cancel()
            await asyncio.gather(*reading, return_exceptions=True)
        return None

    def _places(self, named: Contribution, sources: Sequence[Peer]) -> Iterator[Place]:
        try:
            yield Place("its own bucket", self._open_bucket(bytes.fromhex(named.location)))
        except StorageError as error:
            self._complain(f"uid {named.uid}: {error}")
        for source in sources:
            yield Place(f"the mirror of uid {source.uid}", source.bucket)

    # --- the next windows ---------------------------------------------------------------------------------

    def look_ahead(self, window: int, last: int) -> None:
        """While `window` is applied, read what the windows after it need, up to window `last`. What is not to be had
        now is read when it is needed."""
        for number in [number for number in self._next if number <= window]:
            del self._next[number]
        for number in range(window + 1, min(last, window + self._depth) + 1):
            if number not in self._ahead and number not in self._next:
                self._ahead[number] = asyncio.create_task(self._read_ahead(number))
                self._ahead[number].add_done_callback(lambda _, number=number: self._ahead.pop(number, None))

    def awaited(self) -> list[SealedShard]:
        """Shards of the windows to come, whose files must stay."""
        return [shard for manifest in self._next.values() for named in manifest.contributions for shard in named.shards]

    async def stop(self) -> None:
        """Leave off, whatever is on its way, and forget what was read ahead."""
        tasks = [*self._ahead.values(), *self._passes.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._next.clear()

    @property
    def _depth(self) -> int:
        most = self._reader.run.gauntlet.gather_size * sum(self._reader.sealed_sizes)
        return max(1, min(_AHEAD_WINDOWS, _AHEAD_BYTES // most))

    async def _read_ahead(self, number: int) -> None:
        try:
            manifest = await self._manifest_at(number)
            if manifest is not None:
                self._next[number] = manifest
                await asyncio.gather(*(self._in_turn(number, named) for named in manifest.contributions))
        except (StorageError, ChainUnreachable) as error:
            log.debug("window %d is not read ahead: %s", number, error)

    async def _in_turn(self, number: int, named: Contribution) -> None:
        """A payload of a window to come, behind those that were asked for before: a few at a time keep a line busy, and
        leave the window that is applied its part of it."""
        async with self._turn:
            await self._sealed(number, named)
