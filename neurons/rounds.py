"""One window's exchange of objects: seal, reveal, fetch, open (protocol §10, §11)."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from bittensor_core import Keypair
from blake3 import blake3

from neurons.spool import Spool
from protocol.errors import Reason, Rejected
from protocol.gauntlet.checks import check_payload_digest, check_reveal, check_seal
from protocol.ledger.manifest import Contribution
from protocol.run import Run
from protocol.sealing import SEAL_LIMIT_BYTES, Reveal, Seal, SealedShard
from protocol.sparseloco.layout import Layout
from protocol.sparseloco.payload import Payload, read_payload, shard_sizes, split
from storage.bucket import Bucket
from storage.errors import NotFound, SealError, StorageError, TooLarge
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
class Place:
    """A bucket and what to call it."""

    name: str
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

    def forget(self, keep: Collection[SealedShard] = ()) -> None:
        """Drop what was kept of the window that has been applied, but for the files of these shards."""
        self._spool.clear(keep)
        self._opened.clear()

    def recover(self, keep: Collection[SealedShard]) -> None:
        """Drop what a process before this one left, but for the files of these shards that are whole."""
        self._spool.recover(keep)

    async def read_seal(self, peer: Peer, window: int) -> Seal:
        """The checked seal of `peer`; raises `NotFound`, another `StorageError`, or `Rejected`."""
        try:
            data = await peer.bucket.get(self.keys.seal(window, peer.hotkey), limit_bytes=SEAL_LIMIT_BYTES)
        except TooLarge as error:
            raise Rejected(Reason.BAD_SIGNATURE, str(error)) from error
        return check_seal(data, peer.hotkey, self.run, self.layout, window, self.sealed_sizes)

    async def read_key(self, peer: Peer, seal: Seal) -> bytes:
        """The key that opens what `seal` commits to; raises `NotFound`, another `StorageError`, or `Rejected`."""
        try:
            data = await peer.bucket.get(self.keys.key(seal.window, peer.hotkey), limit_bytes=SEAL_LIMIT_BYTES)
        except TooLarge as error:
            raise Rejected(Reason.WRONG_KEY, str(error)) from error
        return check_reveal(data, seal)

    async def prefetch(self, window: int, peers: Sequence[Peer]) -> None:
        """Fetch sealed shards before their keys are out, so that only keys cross the network after the close.
        What cannot be had now is fetched again when a manifest names it."""

        async def one(peer: Peer) -> None:
            try:
                seal = await self.read_seal(peer, window)
                await self.read_shards(peer.bucket, window, peer.hotkey, seal.shards)
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
            self._opened[hotkey, digest] = await asyncio.to_thread(self._decode, window, hotkey, key, sealed, digest)
        return self._opened[hotkey, digest]

    def _decode(self, window: int, hotkey: str, key: bytes, sealed: Sequence[Path], digest: str) -> Payload:
        data = self.decrypt(window, hotkey, key, sealed)
        check_payload_digest(data, digest)
        return read_payload(data, self.run, self.layout, hotkey, window)

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
        if (payload := self.opened(named)) is not None:
            return payload
        sealed = await self.read_shards(bucket, window, named.hotkey, named.shards)
        return await self.open(window, named.hotkey, bytes.fromhex(named.key), sealed, named.payload_digest)

    def opened(self, named: Contribution) -> Payload | None:
        """The payload a manifest names, if it is in memory."""
        return self._opened.get((named.hotkey, named.payload_digest))


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

    async def publish_shards(self, window: int, payload: bytes, key: bytes) -> tuple[SealedShard, ...]:
        """Encrypt `payload` under `key` (32 bytes, of this window alone) and upload its shards: what nobody can read
        yet may lie in the open."""
        associated = associated_data(self.run.digest_bytes, window, self.hotkey)
        shards = [encrypt_shard(key, i, associated, part) for i, part in enumerate(split(payload, self.plain_sizes))]
        for index, shard in enumerate(shards):
            await self.bucket.put(self.keys.shard(window, self.hotkey, index), shard)
        return tuple(SealedShard(size_bytes=len(s), digest=blake3(s).hexdigest()) for s in shards)

    async def publish_seal(
        self, window: int, base_root: str, payload: bytes, shards: tuple[SealedShard, ...], key: bytes
    ) -> Sealed:
        """Upload the signed commitment to `payload`, whose `shards` lie in the bucket. The key stays here."""
        seal = Seal(
            signer=self.hotkey,
            run_digest=self.run.digest(),
            window=window,
            layout_digest=self.layout.digest,
            base_root=base_root,
            shards=shards,
            payload_digest=blake3(payload).hexdigest(),
            key_digest=blake3(key).hexdigest(),
        ).signed(self._hotkey)
        await self.bucket.put(self.keys.seal(window, self.hotkey), seal.canonical())
        return Sealed(seal, key)

    async def publish_key(self, sealed: Sealed) -> None:
        """Reveal the key. Only from block C + g + 1 on: a reader of an earlier key could still seal a copy."""
        reveal = Reveal(window=sealed.seal.window, key=sealed.key.hex())
        await self.bucket.put(self.keys.key(reveal.window, self.hotkey), reveal.canonical())

    async def mirror(self, seal: Seal) -> None:
        """Keep a copy of another peer's sealed shards in the own bucket, so that its owner can vanish, and of its seal,
        so that it cannot say later that it sealed something else, or nothing."""
        for index, shard in enumerate(seal.shards):
            await self._mirror_shard(seal.window, seal.signer, index, shard)
        await self.bucket.put(self.keys.seal(seal.window, seal.signer), seal.canonical())

    async def mirror_shards(self, window: int, hotkey: str, shards: Sequence[SealedShard]) -> None:
        """Keep a copy of sealed shards that were fetched in the own bucket, unless there is one."""
        for index, shard in enumerate(shards):
            try:
                await self.bucket.head(self.keys.shard(window, hotkey, index))
            except NotFound:
                await self._mirror_shard(window, hotkey, index, shard)

    async def _mirror_shard(self, window: int, hotkey: str, index: int, shard: SealedShard) -> None:
        data = await asyncio.to_thread(self._spool.read, self._spool.path(shard))
        await self.bucket.put(self.keys.shard(window, hotkey, index), data)
