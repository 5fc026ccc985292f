"""The state, replayed by somebody who only reads: from a checkpoint that the ledger names, manifest by manifest."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from pathlib import Path

from neurons.audit.report import WindowReport
from neurons.documents import Documents, Source
from neurons.loading import read_state
from neurons.onlooker import Onlooker
from neurons.rounds import Peer, Place, Reader
from neurons.spool import Spool
from neurons.training.model import bind, build_model, parameter_shapes
from protocol.errors import Rejected
from protocol.gauntlet.checks import check_reveal
from protocol.gauntlet.receipts import Receipt
from protocol.ledger.manifest import Contribution, Manifest
from protocol.ledger.replay import apply_manifest
from protocol.ledger.state import State
from protocol.sealing import SEAL_LIMIT_BYTES
from protocol.sparseloco.layout import Layout
from protocol.sparseloco.payload import Payload
from storage.checkpoint import complete_windows
from storage.errors import NotFound, StorageError
from storage.keys import WINDOW_LIMIT

_OWN = "its own bucket"


class Replica:
    """θ, its model, and the payloads that take it on. `state` is None while it is not known."""

    def __init__(self, look: Onlooker, documents: Documents, folder: Path) -> None:
        self.look, self.run, self.documents = look, look.run, documents
        self.model = build_model(self.run.model)
        self.layout = Layout.from_shapes(parameter_shapes(self.model))
        spool = Spool(folder / "sealed")
        spool.clear()
        self.reader = Reader(self.run, self.layout, spool)
        self.state: State | None = None

    # --- a state to start from ----------------------------------------------------------------------------

    async def checkpoints(self, sources: Sequence[Source]) -> list[tuple[int, Place]]:
        """Every checkpoint that anybody holds, ascending by window. Whether it is one shows when it is taken."""
        found: list[tuple[int, Place]] = []
        for source in sources:
            try:
                windows = await complete_windows(source.bucket, self.documents.keys, before_window=WINDOW_LIMIT)
            except StorageError:
                continue
            found += [(window, Place(f"uid {source.uid}", source.bucket)) for window in windows]
        if self.look.publisher is not None:
            found.append((self.run.time.first_window, Place("the run's publisher", self.look.publisher)))
        return sorted(found, key=lambda each: each[0])

    async def take(self, window: int, place: Place, root: str, previous: str) -> str | None:
        """Adopt the checkpoint of `window` in `place` if its bytes have this root; else returns why not."""
        wrong: list[str] = []
        theta = await read_state([place], self.documents.keys, self.layout, window, root, wrong.append)
        if theta is None:
            return "; ".join(wrong)
        self.state = State(self.layout, theta, window, previous)
        bind(self.model, theta)
        return None

    # --- payloads -----------------------------------------------------------------------------------------

    async def applied(
        self, manifest: Manifest, sources: Sequence[Source], report: WindowReport
    ) -> list[Payload] | None:
        """The payloads that a manifest names, each from the peer's bucket and from the mirrors of validators. What lies
        there and is not what was sealed is a fault; None, and a gap, if one of them is nowhere."""
        found: list[Payload] = []
        for named in manifest.contributions:
            payload = await self._contribution(manifest, named, sources, report)
            if payload is None:
                report.gap(f"the payload of uid {named.uid} is in no bucket any more: this window cannot be applied")
                return None
            report.payloads += 1
            found.append(payload)
        return found

    async def _contribution(
        self, manifest: Manifest, named: Contribution, sources: Sequence[Source], report: WindowReport
    ) -> Payload | None:
        places = [Place(f"the mirror of validator uid {s.uid}", s.bucket) for s in sources]
        try:
            own = self.look.open_bucket(bytes.fromhex(named.location))
            places.insert(0, Place(_OWN, own))
        except StorageError as error:
            report.fault(f"uid {named.uid}: the manifest names no bucket that could be read: {error}")
        payload = None
        for place in places:
            # What the one bucket gave must not pass for what the next one has.
            self.reader.forget()
            try:
                payload = await self.reader.contribution(place.bucket, manifest.window, named)
            except Rejected as error:
                words = f"uid {named.uid}: in {place.name} lies another payload than the manifest names: {error}"
                # What a peer does with its bucket afterwards is its own affair; a mirror is a validator's promise.
                (report.gap if place.name == _OWN else report.fault)(words)
            except StorageError:
                continue  # swept, or silent: the others may have it
        return payload

    async def judged(
        self, manifest: Manifest, applied: Iterable[Payload], receipts: Sequence[Receipt]
    ) -> tuple[dict[int, Payload], list[str]]:
        """The payloads that were judged by uid, and a sentence for each that is gone. Those that were not applied have
        no mirror: they are read where their peers are read."""
        by_digest = {payload.digest: payload for payload in applied}
        found: dict[int, Payload] = {}
        gone: list[str] = []
        for receipt in receipts:
            digest = receipt.submission.payload_digest if receipt.submission else ""
            try:
                found[receipt.uid] = by_digest.get(digest) or await self._revealed(manifest.window, receipt, digest)
            except (StorageError, Rejected) as error:
                gone.append(f"the payload of uid {receipt.uid}, which was judged and not applied, is gone: {error}")
        return found, gone

    async def _revealed(self, window: int, receipt: Receipt, digest: str) -> Payload:
        commitment = (await self.look.chain.commitments()).get(receipt.hotkey)
        if commitment is None:
            raise NotFound("its hotkey has no bucket now")
        bucket = self.look.open_bucket(commitment)
        peer = Peer(receipt.uid, receipt.hotkey, commitment, bucket)
        seal = await self.reader.read_seal(peer, window)
        name = self.documents.keys.key(window, receipt.hotkey)
        key = check_reveal(await bucket.get(name, limit_bytes=SEAL_LIMIT_BYTES), seal)
        sealed = await self.reader.read_shards(bucket, window, receipt.hotkey, seal.shards)
        return await self.reader.open(window, receipt.hotkey, key, sealed, digest)

    # --- going on -----------------------------------------------------------------------------------------

    async def apply(self, manifest: Manifest, payloads: Sequence[Payload]) -> None:
        """Take the state one window on."""
        assert self.state is not None
        await asyncio.to_thread(apply_manifest, self.state, self.run, manifest, payloads)
        self.reader.forget()

    def lose(self) -> None:
        """The state is not known any more."""
        self.state = None
