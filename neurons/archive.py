"""What a validator holds of the ledger in its own bucket: every manifest, and the payloads of those it attests."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

from neurons.ledger import Ledger
from neurons.rounds import Exchange
from protocol.errors import Rejected
from protocol.ledger.manifest import MANIFEST_LIMIT_BYTES, Manifest
from storage.bucket import Bucket
from storage.errors import AlreadyExists, NotFound, StorageError, TooLarge

_PUT_RIGHT_WINDOWS = 8
"""How far behind the final manifest what was kept is still put right."""


class Archive:
    """The ledger in `bucket`. `payloads` fetches all that a manifest names into the spool of `exchange`; `complain` is
    told why a manifest cannot be attested.

    A manifest is *proven* when its root is that of a state this node has been in, and all payloads that it names were
    read and lie in the bucket: only such a one may be voted for, so that it can be fetched when its signer is gone.
    """

    def __init__(
        self,
        ledger: Ledger,
        exchange: Exchange,
        bucket: Bucket,
        payloads: Callable[[Manifest], Awaitable[object]],
        complain: Callable[[str], None],
    ) -> None:
        self.ledger, self.exchange, self.bucket = ledger, exchange, bucket
        self.keys = ledger.keys
        self._payloads, self._complain = payloads, complain
        self._proofs: dict[str, asyncio.Task[None]] = {}
        self._right_to = ledger.final_window - 1

    async def keep(self, manifest: Manifest) -> None:
        """Hold a manifest as that of its window, in place of another one."""
        await self.mirror(manifest)
        await self.bucket.put(self.keys.manifest(manifest.window), manifest.canonical())
        await self.bucket.put(self.keys.ledger_head(), self.keys.manifest(manifest.window).encode())

    async def mirror(self, manifest: Manifest) -> None:
        """Hold a manifest by its digest, beside its rivals."""
        with suppress(AlreadyExists):
            key = self.keys.manifest_of(manifest.window, manifest.digest())
            await self.bucket.put_if_absent(key, manifest.canonical())

    # --- what may be voted for ----------------------------------------------------------------------------

    def prove_open(self) -> None:
        """Begin to prove what is not final yet: the way to the head, and what somebody votes for."""
        for manifest in (*self.ledger.open_path(), *(self.ledger.manifests[digest] for digest in self.ledger.voted())):
            if manifest.window > self.ledger.final_window:
                self._prove(manifest)
        for digest in [digest for digest in self._proofs if digest not in self.ledger.manifests]:
            self._proofs.pop(digest).cancel()

    def proven(self) -> set[str]:
        """Digests of the known manifests that are."""
        return {digest for digest in self._proofs if self._holds(digest)} & self.ledger.manifests.keys()

    def is_proven(self, manifest: Manifest) -> bool:
        """Whether this one is."""
        return self._holds(manifest.digest())

    async def prove(self, manifest: Manifest, seconds: float) -> bool:
        """Whether this one is; waits for that, for `seconds` at most."""
        if (task := self._prove(manifest)) is not None:
            await asyncio.wait({task}, timeout=seconds)
        return self.is_proven(manifest)

    async def stop(self) -> None:
        """Leave off proving."""
        for task in self._proofs.values():
            task.cancel()
        await asyncio.gather(*self._proofs.values(), return_exceptions=True)

    def _holds(self, digest: str) -> bool:
        task = self._proofs.get(digest)
        return task is not None and task.done() and not task.cancelled() and task.exception() is None

    def _prove(self, manifest: Manifest) -> asyncio.Task[None] | None:
        """Begin with one, or begin again, if this node has been in the state that it follows."""
        digest = manifest.digest()
        task = self._proofs.get(digest)
        failed = task is not None and task.done() and not self._holds(digest)
        if (task is None or failed) and self.ledger.roots.get(manifest.previous) == manifest.root:
            task = self._proofs[digest] = asyncio.create_task(self._mirror_all(manifest))
        return task

    async def _mirror_all(self, manifest: Manifest) -> None:
        try:
            await self._payloads(manifest)
            for named in manifest.contributions:
                await self.exchange.mirror_shards(manifest.window, named.hotkey, named.shards)
            await self.mirror(manifest)
        except (StorageError, Rejected) as error:
            self._complain(f"manifest {manifest.window} cannot be attested: {error}")
            raise

    # --- what was left ------------------------------------------------------------------------------------

    async def put_right(self) -> None:
        """Replace one manifest that a final one excludes by now. Whoever leaves a branch keeps each manifest on its way
        anew; but one that was killed on that branch starts from a checkpoint beyond."""
        final = self.ledger.final_window
        number = max(self.ledger.run.time.first_window, self._right_to + 1, final - _PUT_RIGHT_WINDOWS)
        if number > final or (manifest := await self.ledger.at(number)) is None:
            return
        key, data = self.keys.manifest(number), manifest.canonical()
        try:
            kept = await self.bucket.get(key, limit_bytes=MANIFEST_LIMIT_BYTES)
        except (NotFound, TooLarge):
            kept = b""
        if kept != data:
            await self.mirror(manifest)
            await self.bucket.put(key, data)
        self._right_to = number
