"""One window's exchange of objects: seal, reveal, collect, open (protocol §10, §11)."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Collection, Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from bittensor_core import Keypair
from blake3 import blake3

from neurons.spool import Spool
from protocol.errors import Reason, Rejected
from protocol.gauntlet.checks import (
    StaleBase,
    check_base,
    check_payload_digest,
    check_reveal,
    check_seal,
    check_sync_proof,
)
from protocol.gauntlet.receipts import Submission
from protocol.gauntlet.verdict import Outcome
from protocol.ledger.manifest import Contribution
from protocol.ledger.state import State
from protocol.run import Run
from protocol.sealing import SEAL_LIMIT_BYTES, Reveal, Seal, SealedShard
from protocol.sparseloco.layout import Layout
from protocol.sparseloco.payload import Payload, read_payload, shard_sizes, split
from storage.bucket import Bucket
from storage.errors import DiskUnusable, NotFound, SealError, StorageError, TooLarge
from storage.keys import Keys
from storage.seal import SEAL_OVERHEAD_BYTES, associated_data, decrypt_shard, encrypt_shard

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Peer:
    """A neuron, its commitment, and the bucket that stands behind it."""

    uid: int
    hotkey: str
    location: bytes = field(repr=False)  # it holds a read key, which no log needs
    bucket: Bucket


@dataclass(frozen=True, slots=True)
class Sealed:
    """A miner's own contribution after sealing: the seal as published, and the key that is still secret."""

    seal: Seal
    key: bytes = field(repr=False)


class Reader:
    """How anybody reads the objects of a window. `spool` keeps what it fetches."""

    def __init__(self, run: Run, layout: Layout, spool: Spool) -> None:
        self.run, self.layout = run, layout
        self.keys = Keys(run.digest()[:16])
        self._spool = spool
        self._opened: dict[tuple[str, str], Payload] = {}

    @cached_property
    def plain_sizes(self) -> tuple[int, ...]:
        """Bytes of each shard before encryption."""
        return shard_sizes(self.layout, self.run)

    @cached_property
    def sealed_sizes(self) -> tuple[int, ...]:
        """Bytes of each shard as it lies in a bucket."""
        return tuple(size + SEAL_OVERHEAD_BYTES for size in self.plain_sizes)

    def forget(self) -> None:
        """Drop what was kept of the window that has been applied."""
        self._spool.clear()
        self._opened.clear()

    async def read_seal(self, peer: Peer, window: int) -> Seal:
        """The checked seal of `peer`; raises `NotFound`, another `StorageError`, or `Rejected`."""
        data = await peer.bucket.get(self.keys.seal(window, peer.hotkey), limit_bytes=SEAL_LIMIT_BYTES)
        return check_seal(data, peer.hotkey, self.run, self.layout, window, self.sealed_sizes)

    async def prefetch(self, window: int, peers: Sequence[Peer]) -> None:
        """Fetch sealed shards before their keys are out, so that only keys cross the network after the close.
        What cannot be had now is fetched again when a manifest names it."""

        async def one(peer: Peer) -> None:
            try:
                await self.read_shards(peer.bucket, window, peer.hotkey, (await self.read_seal(peer, window)).shards)
            except (StorageError, Rejected) as error:
                log.debug("uid %d: nothing to prefetch: %s", peer.uid, error)

        await asyncio.gather(*(one(peer) for peer in peers))

    async def read_shards(self, bucket: Bucket, window: int, hotkey: str, shards: Sequence[SealedShard]) -> list[Path]:
        """Files of encrypted shards with the sealed digests, which are fetched from `bucket` unless they are here."""
        names = [self.keys.shard(window, hotkey, index) for index in range(len(shards))]
        return [await self._spool.fetch(bucket, name, shard) for name, shard in zip(names, shards, strict=True)]

    async def open(self, window: int, hotkey: str, key: bytes, sealed: Sequence[Path], digest: str) -> Payload:
        """Decrypt and decode, in a worker thread, the payload with this digest; raises `Rejected`."""
        # By hotkey too: a seal that names another's payload must not get by without opening it under its own name.
        if (hotkey, digest) not in self._opened:
            data = await asyncio.to_thread(self.decrypt, window, hotkey, key, sealed)
            check_payload_digest(data, digest)
            self._opened[hotkey, digest] = await asyncio.to_thread(
                read_payload, data, self.run, self.layout, hotkey, window
            )
        return self._opened[hotkey, digest]

    def decrypt(self, window: int, hotkey: str, key: bytes, sealed: Sequence[Path]) -> bytes:
        """The bytes of a payload; `Rejected(wrong_key)` if its shards do not open under this key and hotkey."""
        associated = associated_data(self.run.digest_bytes, window, hotkey)
        try:
            return b"".join(decrypt_shard(key, i, associated, self._spool.read(path)) for i, path in enumerate(sealed))
        except SealError as error:
            raise Rejected(Reason.WRONG_KEY, str(error)) from error

    async def contribution(self, bucket: Bucket, window: int, named: Contribution) -> Payload:
        """The payload a manifest names, from memory or from `bucket`; raises `StorageError` or `Rejected` if it
        is not there."""
        if (named.hotkey, named.payload_digest) in self._opened:
            return self._opened[named.hotkey, named.payload_digest]
        sealed = await self.read_shards(bucket, window, named.hotkey, named.shards)
        return await self.open(window, named.hotkey, bytes.fromhex(named.key), sealed, named.payload_digest)


class Exchange(Reader):
    """How one neuron reads and writes the objects of a window. `hotkey` signs, and `bucket` is its own."""

    def __init__(self, run: Run, layout: Layout, hotkey: Keypair, bucket: Bucket, spool: Spool) -> None:
        super().__init__(run, layout, spool)
        self.bucket = bucket
        self._hotkey = hotkey

    @property
    def hotkey(self) -> str:
        """The own ss58 address."""
        return self._hotkey.ss58_address

    async def publish_seal(self, window: int, base_root: str, payload: bytes) -> Sealed:
        """Encrypt `payload` under a fresh key, upload its shards, then the signed seal. The key stays here."""
        key = os.urandom(32)
        associated = associated_data(self.run.digest_bytes, window, self.hotkey)
        shards = [encrypt_shard(key, i, associated, part) for i, part in enumerate(split(payload, self.plain_sizes))]
        for index, shard in enumerate(shards):
            await self.bucket.put(self.keys.shard(window, self.hotkey, index), shard)
        seal = Seal(
            signer=self.hotkey,
            run_digest=self.run.digest(),
            window=window,
            layout_digest=self.layout.digest,
            base_root=base_root,
            shards=tuple(SealedShard(size_bytes=len(s), digest=blake3(s).hexdigest()) for s in shards),
            payload_digest=blake3(payload).hexdigest(),
            key_digest=blake3(key).hexdigest(),
        ).signed(self._hotkey)
        await self.bucket.put(self.keys.seal(window, self.hotkey), seal.canonical())
        return Sealed(seal, key)

    async def publish_key(self, sealed: Sealed) -> None:
        """Reveal the key. Only from block C + g + 1 on: a reader of an earlier key could still seal a copy."""
        reveal = Reveal(window=sealed.seal.window, key=sealed.key.hex())
        await self.bucket.put(self.keys.key(reveal.window, self.hotkey), reveal.canonical())

    async def mirror(self, window: int, hotkey: str, shards: Sequence[SealedShard]) -> None:
        """Keep a copy of another peer's sealed shards in the own bucket, so that its owner can vanish."""
        for index, shard in enumerate(shards):
            data = await asyncio.to_thread(self._spool.read, self._spool.path(shard))
            await self.bucket.put(self.keys.shard(window, hotkey, index), data)


# --- a validator's side -----------------------------------------------------------------------------------


@dataclass(slots=True)
class Entry:
    """What a validator knows of one peer in one window. `rejected` is set by the first check that fails."""

    peer: Peer
    seal: Seal | None = None
    key: bytes | None = None
    payload: Payload | None = None
    rejected: Rejected | None = None
    stored_at: float | None = None

    @property
    def known_seal(self) -> Seal:
        """The seal of a peer whose checks have passed."""
        assert self.seal is not None
        return self.seal

    @property
    def known_key(self) -> bytes:
        """The key of a peer whose checks have passed."""
        assert self.key is not None
        return self.key

    @property
    def settled(self) -> bool:
        """Whether its checks have ended, one way or the other."""
        return self.payload is not None or self.rejected is not None

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
            steps_behind=rejected.steps if isinstance(rejected, StaleBase) else 0,
            submission=submission,
        )


class Round:
    """All peers of one window, read side by side. What one peer sends can only ever settle that peer's entry, and
    nobody waits for a peer that is slow: all are read at once, because a queue could be filled with such peers.

    `state` is θ_W and `roots` the recent roots with their windows, against which bases and proofs are checked.
    """

    def __init__(
        self,
        exchange: Exchange,
        window: int,
        window_hash: bytes,
        peers: Sequence[Peer],
        state: State,
        roots: Mapping[str, int],
    ) -> None:
        self.exchange, self.window, self.window_hash = exchange, window, window_hash
        self.state, self.roots = state, roots
        self.entries = {peer.uid: Entry(peer) for peer in peers}
        self._reading: dict[int, asyncio.Task[None]] = {}

    async def snapshot(self, end: Coroutine[Any, Any, object]) -> None:
        """The one reading of all seals, at block C + g, and of their shards, until `end` is over: a seal that its
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

    async def poll(self, seconds: float) -> None:
        """Look for keys that have come out since the last time, and open what they open. A peer that takes longer
        than `seconds` goes on being read while the others are looked at again."""
        for entry in self._open():
            if entry.peer.uid not in self._reading:
                step = self._guarded(entry, self._read_key(entry))
                self._reading[entry.peer.uid] = asyncio.create_task(step)
        if self._reading:
            done, _ = await asyncio.wait(self._reading.values(), timeout=seconds)
            self._reading = {uid: task for uid, task in self._reading.items() if task not in done}
            for task in done:
                task.result()

    async def stop_reading(self) -> None:
        """Give up on who is still being read. Due before θ is probed: a sync proof checked against a probe fails."""
        for task in self._reading.values():
            task.cancel()
        await asyncio.gather(*self._reading.values(), return_exceptions=True)

    def is_settled(self, uids: Collection[int]) -> bool:
        """Whether the checks of these peers have ended."""
        return all(self.entries[uid].settled for uid in uids if uid in self.entries)

    async def finish(self) -> None:
        """After the deadline: who has not revealed by now has contributed nothing. A seal that came after the
        snapshot is named as late, so that its owner can see why it did not count."""
        for entry in self._open():
            if entry.peer.uid in self._reading:
                entry.rejected = Rejected(Reason.UNREACHABLE, "its bucket had not answered by the reveal deadline")
            else:
                entry.rejected = Rejected(Reason.NO_REVEAL, "no key by the reveal deadline")
        missing = [e for e in self.entries.values() if e.rejected and e.rejected.reason is Reason.NO_SEAL]
        await asyncio.gather(*(self._guarded(entry, self._look_for_late_seal(entry)) for entry in missing))

    def reject(self, found: Mapping[int, Rejected], contributed: Collection[int] = ()) -> None:
        """Reject what comparing payloads found, except for those a manifest already counts."""
        for uid, rejected in found.items():
            if uid not in contributed:
                self.entries[uid].rejected = rejected

    def payloads(self) -> dict[int, Payload]:
        """The valid payloads by uid, ascending."""
        return {u: e.payload for u, e in sorted(self.entries.items()) if e.payload and not e.rejected}

    def _open(self) -> list[Entry]:
        return [entry for entry in self.entries.values() if not entry.settled]

    async def _read_sealed(self, entry: Entry) -> None:
        await self._read_seal(entry)
        await self._read_shards(entry)

    async def _read_seal(self, entry: Entry) -> None:
        try:
            entry.seal = await self.exchange.read_seal(entry.peer, self.window)
        except NotFound as error:
            raise Rejected(Reason.NO_SEAL, "no seal at the snapshot") from error
        except TooLarge as error:
            raise Rejected(Reason.BAD_SIGNATURE, str(error)) from error
        entry.stored_at = (await entry.peer.bucket.head(self._seal_key(entry))).last_modified

    async def _read_shards(self, entry: Entry) -> None:
        assert entry.seal is not None
        # A shard that is not there yet is no offence: shards are due with the key, and `_read_key` looks again.
        with suppress(NotFound):
            await self.exchange.read_shards(entry.peer.bucket, self.window, entry.peer.hotkey, entry.seal.shards)

    async def _read_key(self, entry: Entry) -> None:
        peer, seal, exchange = entry.peer, entry.seal, self.exchange
        assert seal is not None
        if entry.key is None:
            try:
                name = exchange.keys.key(self.window, peer.hotkey)
                entry.key = check_reveal(await peer.bucket.get(name, limit_bytes=SEAL_LIMIT_BYTES), seal)
            except NotFound:
                return
            except TooLarge as error:
                raise Rejected(Reason.WRONG_KEY, str(error)) from error
        try:
            sealed = await exchange.read_shards(peer.bucket, self.window, peer.hotkey, seal.shards)
        except NotFound as error:
            raise Rejected(Reason.NO_SHARD, "the key is out but a sealed shard is not in the bucket") from error
        payload = await exchange.open(self.window, peer.hotkey, entry.key, sealed, seal.payload_digest)
        check_base(payload.header, seal, self.roots, self.window, exchange.run.gauntlet.sync_steps)
        check_sync_proof(payload.header, self.state.theta, self.window_hash)
        entry.payload = payload

    async def _look_for_late_seal(self, entry: Entry) -> None:
        try:
            entry.stored_at = (await entry.peer.bucket.head(self._seal_key(entry))).last_modified
        except NotFound:
            return
        raise Rejected(Reason.LATE_SEAL, "a seal appeared after the snapshot")

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
