"""What a validator finds out about the peers of a window: seals, keys, and what these open (protocol §11)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Collection, Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from blake3 import blake3

from neurons.journal import Journal, Kept
from neurons.rounds import Exchange, Peer
from protocol.errors import Reason, Rejected
from protocol.gauntlet.checks import MISSING_REASONS, StaleBase, check_base, check_sync_proof
from protocol.gauntlet.receipts import Submission
from protocol.gauntlet.verdict import Outcome
from protocol.ledger.manifest import Contribution, Seat
from protocol.ledger.state import State
from protocol.sealing import Seal
from protocol.sparseloco.payload import Payload
from storage.bucket import Bucket
from storage.errors import DiskUnusable, NotFound, StorageError


@dataclass(slots=True)
class Entry:
    """What a validator knows of one peer in one window. `sealed` are the files of its shards, once they and the key
    are here: from then on nothing depends on the peer any more. `rejected` is set by the first check that fails."""

    peer: Peer
    seal: Seal | None = None
    key: bytes | None = None
    sealed: list[Path] | None = None
    payload: Payload | None = None
    rejected: Rejected | None = None
    stored_at: float | None = None

    @property
    def known_seal(self) -> Seal:
        """The seal of a peer that has sealed."""
        assert self.seal is not None
        return self.seal

    @property
    def known_key(self) -> bytes:
        """The key of a peer that has revealed it."""
        assert self.key is not None
        return self.key

    def contribution(self) -> Contribution:
        """How a manifest names the payload of a peer whose checks have passed."""
        return Contribution(
            uid=self.peer.uid,
            hotkey=self.peer.hotkey,
            payload_digest=self.known_seal.payload_digest,
            key=self.known_key.hex(),
            shards=self.known_seal.shards,
            location=self.peer.location.hex(),
        )

    @property
    def seat(self) -> Seat:
        """Who it is, as lists name it."""
        return Seat(uid=self.peer.uid, hotkey=self.peer.hotkey)

    @property
    def settled(self) -> bool:
        """Whether its checks have ended, one way or the other."""
        return self.payload is not None or self.rejected is not None

    @property
    def is_missing(self) -> bool:
        """Whether there is nothing to judge, and nothing wrong either."""
        return self.payload is None and (self.rejected is None or self.rejected.reason in MISSING_REASONS)

    def outcome(self) -> Outcome:
        """The result for scorebook and receipt."""
        rejected = self.rejected
        submission = None
        if self.seal is not None:
            header = self.payload.header if self.payload else None
            submission = Submission(
                size_bytes=sum(shard.size_bytes for shard in self.seal.shards),
                payload_digest=self.seal.payload_digest,
                inner_steps=header.inner_steps if header else 0,
                tokens=header.tokens if header else 0,
                stored_at=self.stored_at,
            )
        return Outcome(
            uid=self.peer.uid,
            hotkey=self.peer.hotkey,
            reason=rejected.reason if rejected else None,
            detail=rejected.detail if rejected else "",
            steps_behind=_steps(rejected),
            submission=submission,
        )


class Round:
    """All peers of one window, read side by side. What one peer sends can only ever settle that peer's entry, and
    nobody waits for a peer that is slow: all are read at once, because a queue could be filled with such peers.

    Those in `first` are the ones that the manifest depends on. Their shards are read a block before those of the
    others, and only they are opened before it: a line and a processor that suffice for the lists are enough to lead.

    `state` is θ_W and `roots` the recent roots with their windows, against which bases and proofs are checked.
    `departed` are slots whose hotkey had left them at the snapshot. A round without a snapshot is `blind`: it has no
    entries, says nothing about anybody, and costs nobody anything.
    """

    def __init__(
        self,
        exchange: Exchange,
        window: int,
        window_hash: bytes,
        peers: Sequence[Peer],
        state: State,
        roots: Mapping[str, int],
        *,
        first: Collection[int] = (),
        departed: Sequence[int] = (),
        blind: bool = False,
    ) -> None:
        self.exchange, self.window, self.window_hash = exchange, window, window_hash
        self.state, self.roots = state, roots
        self.entries = {peer.uid: Entry(peer) for peer in peers}
        self.first = set(first) or set(self.entries)
        self.departed, self.blind = tuple(departed), blind
        self.over = False
        """Whether the reveal deadline has passed and been drawn the line at."""
        self._reading: dict[int, asyncio.Task[None]] = {}

    async def snapshot(self, end: Coroutine[Any, Any, object]) -> None:
        """The one reading of all seals, at block C + g, and of the first shards, until `end` is over: a seal that its
        bucket holds back until the first keys are out proves nothing."""
        steps = [self._guarded(entry, self._read_sealed(entry)) for entry in self._open()]
        reading = asyncio.ensure_future(asyncio.gather(*steps))
        over = asyncio.create_task(end)
        try:
            await asyncio.wait({reading, over}, return_when=asyncio.FIRST_COMPLETED)
            if reading.done():
                reading.result()
        finally:
            reading.cancel()
            over.cancel()
            await asyncio.gather(reading, over, return_exceptions=True)
        for entry in self._open():
            if entry.seal is None:
                entry.rejected = Rejected(Reason.UNREACHABLE, "its bucket did not give the seal before keys were due")

    async def poll(self, seconds: float, uids: Collection[int]) -> None:
        """Look for keys that have come out since the last time, fetch what they open, and open what `uids` sent. This
        takes until they are settled, and `seconds` at most; a peer that takes longer goes on being read while the
        others are looked at again."""
        for entry in self._open():
            if entry.peer.uid not in self._reading and not self.over:
                step = self._guarded(entry, self._advance(entry, entry.peer.uid in uids))
                self._reading[entry.peer.uid] = asyncio.create_task(step)
        end = asyncio.get_running_loop().time() + seconds
        while self._reading and not self.is_settled(uids):
            left = end - asyncio.get_running_loop().time()
            done, _ = await asyncio.wait(
                self._reading.values(), timeout=max(0.0, left), return_when=asyncio.FIRST_COMPLETED
            )
            self._reading = {uid: task for uid, task in self._reading.items() if task not in done}
            for task in done:
                task.result()
            if left <= 0:
                break

    async def end_reading(self) -> None:
        """The reveal deadline for everybody. Due before θ is probed: a sync proof checked against a probe fails."""
        if not self.over:
            await self.settle(self.entries)
            self.over = True

    async def settle(self, uids: Collection[int]) -> None:
        """The reveal deadline for these peers: who has not sent everything by now has contributed nothing, and what has
        come is opened, however long that takes."""
        reading = {uid: task for uid, task in self._reading.items() if uid in uids}
        late = {uid for uid in reading if self.entries[uid].sealed is None}
        await asyncio.gather(*(task for uid, task in reading.items() if uid not in late))
        await self._leave_off(reading)
        open_entries = [entry for entry in self._open() if entry.peer.uid in uids]
        for entry in open_entries:
            if entry.sealed is None and entry.peer.uid in late:
                entry.rejected = Rejected(Reason.UNREACHABLE, "its bucket had not answered by the reveal deadline")
            elif entry.sealed is None:
                entry.rejected = Rejected(Reason.NO_REVEAL, "no key by the reveal deadline")
        sealed = [entry for entry in open_entries if not entry.settled]
        await asyncio.gather(*(self._guarded(entry, self._open_payload(entry)) for entry in sealed))

    async def stop_reading(self) -> None:
        """Leave off, whatever is still being read."""
        await self._leave_off(dict(self._reading))

    def is_settled(self, uids: Collection[int]) -> bool:
        """Whether the checks of these peers have ended."""
        return all(self.entries[uid].settled for uid in uids if uid in self.entries)

    async def adopt(self, named: Contribution, mirror: Bucket | None) -> None:
        """Take over a payload that the manifest applies and that this validator missed: its peer may have shown it to
        some validators only. All that a bucket can hide is absence, so nothing else that was found is taken back; and
        the peer itself must have signed what the manifest names, or a leader could send it in its name."""
        entry = self.entries.get(named.uid)
        if entry is None or entry.peer.hotkey != named.hotkey or not entry.is_missing:
            return
        for bucket in (mirror, entry.peer.bucket):
            if bucket is None:
                continue
            with suppress(NotFound, Rejected):
                seal = entry.seal or await self.exchange.read_seal(replace(entry.peer, bucket=bucket), self.window)
                if seal.payload_digest != named.payload_digest:
                    continue
                if blake3(bytes.fromhex(named.key)).hexdigest() != seal.key_digest:
                    continue
                sealed = await self.exchange.read_shards(bucket, self.window, named.hotkey, seal.shards)
                entry.seal, entry.key, entry.sealed, entry.rejected = seal, bytes.fromhex(named.key), sealed, None
                await self._guarded(entry, self._open_payload(entry))
                return

    async def look_for_late_seals(self, seconds: float) -> None:
        """Name a seal that came after the snapshot as late, so that its owner can see why it did not count. It is told
        for the owner's sake, and nobody waits for longer than `seconds` for that."""
        missing = [e for e in self.entries.values() if e.rejected and e.rejected.reason is Reason.NO_SEAL]
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await asyncio.gather(*(self._look_for_late_seal(entry) for entry in missing))

    def reject(self, found: Mapping[int, Rejected], contributed: Collection[int] = ()) -> None:
        """Reject what comparing payloads found, except for those a manifest already counts."""
        for uid, rejected in found.items():
            if uid not in contributed:
                self.entries[uid].rejected = rejected

    def payloads(self) -> dict[int, Payload]:
        """The valid payloads by uid, ascending."""
        return {u: e.payload for u, e in sorted(self.entries.items()) if e.payload and not e.rejected}

    # --- over a restart -----------------------------------------------------------------------------------

    def journal(self) -> Journal:
        """What a next process of this validator needs to go on with this window."""
        return Journal(
            run_digest=self.exchange.run.digest(),
            window=self.window,
            departed=self.departed,
            over=self.over,
            entries=tuple(_kept(entry) for entry in self.entries.values()),
        )

    async def go_on(self, journal: Journal) -> None:
        """Take over what the last process kept, and open again what it had opened."""
        self.over = journal.over
        for kept in journal.entries:
            entry = self.entries[kept.uid]
            entry.seal, entry.stored_at, entry.rejected = kept.seal, kept.stored_at, kept.rejected()
            entry.key = None if kept.key is None else bytes.fromhex(kept.key)
        opened = [entry for entry in self._open() if entry.key is not None]
        await asyncio.gather(*(self._guarded(entry, self._advance(entry, opens=True)) for entry in opened))

    # --- one peer -----------------------------------------------------------------------------------------

    def _open(self) -> list[Entry]:
        return [entry for entry in self.entries.values() if not entry.settled]

    async def _leave_off(self, reading: Mapping[int, asyncio.Task[None]]) -> None:
        for uid, task in reading.items():
            task.cancel()
            del self._reading[uid]
        await asyncio.gather(*reading.values(), return_exceptions=True)

    async def _read_sealed(self, entry: Entry) -> None:
        await self._read_seal(entry)
        if entry.peer.uid in self.first:
            # A shard that is not there yet is no offence: shards are due with the key, and `_fetch` looks again.
            with suppress(NotFound):
                await self._read_shards(entry)

    async def _read_seal(self, entry: Entry) -> None:
        try:
            entry.seal = await self.exchange.read_seal(entry.peer, self.window)
        except NotFound as error:
            raise Rejected(Reason.NO_SEAL, "no seal at the snapshot") from error
        with suppress(StorageError):  # evidence, never the judge
            entry.stored_at = (await entry.peer.bucket.head(self._seal_key(entry))).last_modified

    async def _read_shards(self, entry: Entry) -> list[Path]:
        shards = entry.known_seal.shards
        return await self.exchange.read_shards(entry.peer.bucket, self.window, entry.peer.hotkey, shards)

    async def _advance(self, entry: Entry, opens: bool) -> None:
        if entry.sealed is None:
            await self._fetch(entry)
        if entry.sealed is not None and opens:
            await self._open_payload(entry)

    async def _fetch(self, entry: Entry) -> None:
        """Key and shards, if the key is out."""
        if entry.key is None:
            try:
                entry.key = await self.exchange.read_key(entry.peer, entry.known_seal)
            except NotFound:
                return
        try:
            entry.sealed = await self._read_shards(entry)
        except NotFound as error:
            raise Rejected(Reason.NO_SHARD, "the key is out but a sealed shard is not in the bucket") from error

    async def _open_payload(self, entry: Entry) -> None:
        assert entry.sealed is not None
        seal, exchange = entry.known_seal, self.exchange
        payload = await exchange.open(
            self.window, entry.peer.hotkey, entry.known_key, entry.sealed, seal.payload_digest
        )
        check_base(payload.header, seal, self.roots, self.window, exchange.run.gauntlet.sync_steps)
        check_sync_proof(payload.header, self.state.theta, self.window_hash)
        entry.payload = payload

    async def _look_for_late_seal(self, entry: Entry) -> None:
        with suppress(StorageError):
            entry.stored_at = (await entry.peer.bucket.head(self._seal_key(entry))).last_modified
            entry.rejected = Rejected(Reason.LATE_SEAL, "a seal appeared after the snapshot")

    async def _guarded(self, entry: Entry, step: Awaitable[None]) -> None:
        """Let whatever goes wrong with one peer end here, as the reason of that peer. Our own disk is nobody's."""
        try:
            await step
        except Rejected as rejected:
            entry.rejected = rejected
        except DiskUnusable:
            raise
        except StorageError as error:
            entry.rejected = Rejected(Reason.UNREACHABLE, str(error)[:200])

    def _seal_key(self, entry: Entry) -> str:
        return self.exchange.keys.seal(self.window, entry.peer.hotkey)


def _kept(entry: Entry) -> Kept:
    # What comparing payloads found is not kept: it is found again in the payloads, and which it spares may change.
    rejected = entry.rejected if entry.payload is None else None
    return Kept(
        uid=entry.peer.uid,
        hotkey=entry.peer.hotkey,
        location=entry.peer.location.hex(),
        seal=entry.seal,
        stored_at=entry.stored_at,
        key=None if entry.key is None else entry.key.hex(),
        reason=rejected.reason if rejected else None,
        detail=rejected.detail if rejected else "",
        steps_behind=_steps(rejected),
    )


def _steps(rejected: Rejected | None) -> int:
    return rejected.steps if isinstance(rejected, StaleBase) else 0
