"""What every neuron does: join a run, follow the chain, and keep its replica at the head of the ledger."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import AsyncGenerator, Callable, Collection, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from bittensor_core import Keypair

from neurons.clock import tick, until
from neurons.errors import NodeError
from neurons.fetching import Fetcher
from neurons.loading import Loader
from neurons.rounds import Exchange, Peer, Place
from neurons.spool import Spool
from neurons.status import NodeStatus, write_status
from neurons.training.model import bind, build_model, empty_flat, parameter_shapes
from protocol.assignment import Assignment
from protocol.chain.port import Chain, Neuron
from protocol.errors import ChainUnreachable, Divergence, DocumentError, LedgerError
from protocol.ledger.manifest import (
    FIRST_PREVIOUS,
    MANIFEST_LIMIT_BYTES,
    Manifest,
    Seat,
    check_contributions,
    check_manifest,
    leader_order,
)
from protocol.ledger.replay import apply_manifest
from protocol.ledger.state import State
from protocol.run import Run
from protocol.sealing import SealedShard
from protocol.sparseloco.layout import Layout
from protocol.window import Window, deadlines, failover_block, window_of
from storage.bucket import Bucket
from storage.dataset import Dataset
from storage.errors import NotFound, StorageError
from storage.patience import PatientBucket
from storage.retention import recover, sweep

log = logging.getLogger(__name__)

_RECENT_ROOTS = 16


@dataclass(frozen=True, slots=True)
class Parts:
    """What a neuron is made of. `location` is the commitment that says where `bucket`, its own, is read;
    `open_bucket` opens a peer's bucket from its commitment; `folder` holds its local state; `publisher` is the bucket
    in which the run was published, if it was, with its first checkpoint."""

    name: str
    run: Run
    chain: Chain
    dataset: Dataset
    hotkey: Keypair
    bucket: Bucket
    location: bytes = field(repr=False)
    open_bucket: Callable[[bytes], Bucket]
    folder: Path
    dtype: torch.dtype
    publisher: Bucket | None = None


class Node:
    """A replica of the run that follows the ledger. Miners and validators add what they do in a window."""

    role: ClassVar[str] = "node"

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self.run, self.chain, self.dataset = parts.run, parts.chain, parts.dataset
        self.hotkey = parts.hotkey.ss58_address
        self.model = build_model(self.run.model)
        self.layout = Layout.from_shapes(parameter_shapes(self.model))
        self.exchange = Exchange(self.run, self.layout, parts.hotkey, parts.bucket, Spool(parts.folder / "sealed"))
        self.keys = self.exchange.keys
        self.fetcher = Fetcher(
            self.exchange, self.chain, self.ledger_sources, self.open_bucket, self.complain, self.report
        )
        self.uid = -1
        self.roots: dict[str, int] = {}
        """Root of each recent θ → its window."""
        self.lists: dict[int, tuple[tuple[Seat, ...], tuple[Seat, ...]]] = {}
        """Gather and reserve lists by the window in which they take effect."""
        self.state = State(self.layout, empty_flat(self.layout.size), -1, FIRST_PREVIOUS)
        self._doubted: set[int] = set()
        self._complaints: set[str] = set()
        self._activity, self._since = "", time.time()
        self._loss: float | None = None

    # --- life ---------------------------------------------------------------------------------------------

    async def run_forever(self) -> None:
        """Join, then one window after the other until cancelled."""
        try:
            await self._live()
        finally:
            await self.fetcher.stop()

    async def _live(self) -> None:
        joined = False
        while True:
            try:
                if not joined:
                    await self.join()
                    joined = True
                await self.window(await self.next_window())
            except Divergence as error:
                log.error("this state is not the ledger's, starting again from a checkpoint: %s", error)
                await self.load()
            except (StorageError, ChainUnreachable) as error:
                # The own bucket, the dataset or the chain is away: what belongs to a peer never gets here.
                self.complain(f"lost this window: {error}" if joined else f"cannot join yet: {error}")
                self.report(f"trying again: {error}")
                await tick(self.chain)

    async def window(self, number: int) -> None:
        """Take part in window `number`."""
        raise NotImplementedError

    async def next_window(self) -> int:
        """The window to take part in now: the one the chain is in, or the next of the ledger if that is later."""
        await self.follow_to_head()
        return self.state.window

    async def join(self) -> None:
        """Find the own slot, publish where the bucket is, and load the newest checkpoint the ledger confirms."""
        self.report("joining")
        await asyncio.to_thread(self.exchange.recover, self.kept_shards())
        await recover(self.parts.bucket)
        neurons = await self.chain.neurons()
        own = next((n for n in neurons if n.hotkey == self.hotkey), None)
        if own is None:
            raise NodeError(f"hotkey {self.hotkey} is not registered on this subnet; add --register to register it")
        self.uid = own.uid
        if self.uid >= self.run.dataset.slots:
            raise NodeError(f"uid {self.uid} has no slot: this run deals pages to {self.run.dataset.slots} uids")
        if (await self.chain.commitments()).get(self.hotkey) != self.parts.location:
            await self.chain.commit(self.parts.hotkey, self.parts.location)
        first = deadlines(self.run.time.first_window, self.run.time).start_block
        if (await self.chain.head()).number < first:
            self.report(f"waiting for block {first}, in which the run begins")
            await until(self.chain, first)
        await self.load()

    # --- the ledger ---------------------------------------------------------------------------------------

    async def validators(self) -> tuple[Neuron, ...]:
        """Validators in leader order."""
        return leader_order(await self.chain.neurons())

    async def peers(self) -> tuple[Peer, ...]:
        """Every neuron in a slot of this run with a commitment this node can read, in ascending uid."""
        commitments = await self.chain.commitments()
        found = []
        for neuron in await self.chain.neurons():
            if neuron.hotkey not in commitments or neuron.uid >= self.run.dataset.slots:
                continue
            try:
                bucket = self.open_bucket(commitments[neuron.hotkey])
            except StorageError as error:
                self.complain(f"uid {neuron.uid}: its commitment names no bucket: {error}")
                continue
            found.append(Peer(neuron.uid, neuron.hotkey, commitments[neuron.hotkey], bucket))
        return tuple(found)

    async def ledger_sources(self) -> tuple[Peer, ...]:
        """The buckets of the validators, in leader order: where manifests, checkpoints and mirrors lie."""
        peers = {peer.hotkey: peer for peer in await self.peers()}
        return tuple(peers[v.hotkey] for v in await self.validators() if v.hotkey in peers)

    async def find_manifest(self, number: int) -> Manifest | None:
        """The manifest of window `number` that this state can take, or None while there is none. A validator of
        rank j counts only from its fail-over block on. Raises `Divergence`, once a window, when a manifest is right
        in everything but the root; if a fresh start gives the same root again, it is the manifest that is wrong."""
        head = await self.chain.head()
        turns = [
            validator.hotkey
            for rank, validator in enumerate(await self.validators())
            if head.number >= failover_block(number, rank, self.run.time)
        ]
        sources = await self.ledger_sources()
        if turns == [self.hotkey]:  # nobody else's could count: whoever leads waits for nobody
            sources = tuple(source for source in sources if source.hotkey == self.hotkey)
        async with aclosing(self._manifests(sources, number)) as manifests:
            async for source, manifest in manifests:
                if manifest.signer not in turns:
                    continue
                try:
                    check_contributions(manifest, self.run, *self.listed(number), self.exchange.sealed_sizes)
                    check_manifest(manifest, self.run, number, self.state.previous, self.root(), manifest.signer)
                except Divergence:
                    if number in self._doubted:
                        continue
                    self._doubted.add(number)
                    raise
                except LedgerError as error:
                    self.complain(f"refused from uid {source.uid}: {error}")
                    continue
                return manifest
        return None

    async def _manifests(self, sources: Sequence[Peer], number: int) -> AsyncGenerator[tuple[Peer, Manifest], None]:
        """What these validators' buckets have as manifest `number`, in their order. All are read at once and have one
        block together: one that is silent, or slow, must not keep anybody from another's."""
        end = asyncio.get_running_loop().time() + self.chain.block_seconds
        reading = [(source, asyncio.create_task(self._read_manifest(source, number))) for source in sources]
        try:
            for source, task in reading:
                left = end - asyncio.get_running_loop().time()
                done, _ = await asyncio.wait({task}, timeout=max(0.0, left))
                if done and (manifest := task.result()) is not None:
                    yield source, manifest
        finally:
            for _, task in reading:
                task.cancel()
            await asyncio.gather(*(task for _, task in reading), return_exceptions=True)

    async def _read_manifest(self, source: Peer, number: int) -> Manifest | None:
        if (known := self.fetcher.manifest(number, source.hotkey)) is not None:
            return known
        try:
            return Manifest.parse(await source.bucket.get(self.keys.manifest(number), limit_bytes=MANIFEST_LIMIT_BYTES))
        except NotFound:
            return None
        except (StorageError, DocumentError) as error:
            self.complain(f"manifest {number} from uid {source.uid}: {error}")
            return None

    async def signed_manifest(self, number: int) -> Manifest | None:
        """The manifest of a past window, if a present validator signed it."""
        hotkeys = {v.hotkey for v in await self.validators()}
        async with aclosing(self._manifests(await self.ledger_sources(), number)) as manifests:
            async for source, manifest in manifests:
                if manifest.signer not in hotkeys:
                    continue
                try:
                    manifest.verify()
                except DocumentError as error:
                    self.complain(f"manifest {number} from uid {source.uid}: {error}")
                    continue
                return manifest
        return None

    async def follow_to_head(self) -> None:
        """Apply every manifest up to the window the chain is in; wait for those that are still to come."""
        while self.state.window < window_of((await self.chain.head()).number, self.run.time):
            number = self.state.window
            self.report(f"waiting for manifest {number}")
            while (manifest := await self.find_manifest(number)) is None:
                await tick(self.chain)
            await self.apply(manifest)

    async def apply(self, manifest: Manifest) -> None:
        """Fetch what the manifest names and take the state one window on."""
        self.report(f"applying manifest {manifest.window}")
        self.fetcher.look_ahead(manifest.window, window_of((await self.chain.head()).number, self.run.time) - 1)
        payloads = await self.fetcher.payloads(manifest)
        await asyncio.to_thread(apply_manifest, self.state, self.run, manifest, payloads)
        self.exchange.forget([*self.kept_shards(), *self.fetcher.awaited()])
        self._enter(manifest)

    async def load(self) -> None:
        """Take over the newest checkpoint that the ledger confirms. The first one of a run lies where it was
        published."""
        await self.fetcher.stop()
        loader = Loader(self.run, self.layout, self.signed_manifest, self.complain, self.report)
        while True:
            head = window_of((await self.chain.head()).number, self.run.time)
            places = [Place(f"uid {source.uid}", source.bucket) for source in await self.ledger_sources()]
            start = await loader.newest(places, self.parts.publisher, head, self.patience_seconds)
            if start is not None:
                break
            self.report("waiting for a checkpoint")
            await tick(self.chain)
        self.state = State(self.layout, start.theta, start.window, FIRST_PREVIOUS)
        bind(self.model, start.theta)
        self.roots, self.lists = {start.root: start.window}, {}
        for manifest in start.before:
            self.lists[manifest.window + 2] = (manifest.gather, manifest.reserve)
            self.state.previous = manifest.digest()
            self.roots.setdefault(manifest.root, manifest.window)
        self.report(f"loaded checkpoint {start.window}")

    def _enter(self, manifest: Manifest) -> None:
        """Book-keeping after the state moved to a new window."""
        self.lists[manifest.window + 2] = (manifest.gather, manifest.reserve)
        self.lists = {w: lists for w, lists in self.lists.items() if w >= self.state.window}
        # A window without contributions leaves θ as it was; its root then stands for the newer window.
        self.roots[self.state.root()] = self.state.window
        self.roots = dict(sorted(self.roots.items(), key=lambda item: item[1])[-_RECENT_ROOTS:])
        self._doubted = {window for window in self._doubted if window >= self.state.window}
        self._complaints.clear()
        self.report("following")

    # --- what both kinds of neuron need -------------------------------------------------------------------

    def root(self) -> str:
        """Root of θ now."""
        return next(root for root, window in self.roots.items() if window == self.state.window)

    async def assignment(self, window: Window) -> Assignment:
        """Who trains on what in `window`."""
        start = await self.chain.block(window.start_block)
        return Assignment(self.run, start.hash, self.dataset.index.pages)

    def kept_shards(self) -> Collection[SealedShard]:
        """Sealed shards that this neuron still needs when their window has been applied."""
        return ()

    def listed(self, window: int) -> tuple[tuple[Seat, ...], tuple[Seat, ...]]:
        """Gather and reserve list in effect in `window`; empty while there are none."""
        return self.lists.get(window, ((), ()))

    async def read_pages(self, numbers: tuple[int, ...]) -> list[np.ndarray]:
        """Pages of the dataset, int64 [page_sequences, sequence_tokens] each."""
        return list(await asyncio.gather(*(self.dataset.read_page(number) for number in numbers)))

    def open_bucket(self, commitment: bytes) -> Bucket:
        """A peer's bucket, which must answer in time; raises `StorageError` when the commitment names none."""
        return PatientBucket(self.parts.open_bucket(commitment), self.patience_seconds)

    @property
    def patience_seconds(self) -> float:
        """How long one step with one peer's bucket may take."""
        return self.chain.block_seconds * self.run.time.reveal_blocks

    def complain(self, sentence: str) -> None:
        """Log what is wrong with a peer, once a window: what is asked every tick fails every tick."""
        if sentence not in self._complaints:
            self._complaints.add(sentence)
            log.warning("%s", sentence)

    async def tidy(self, number: int) -> None:
        """Sweep what retention no longer keeps after window `number`: everything older than the oldest checkpoint
        that somebody may start from."""
        every, keep = self.run.checkpoints.every_windows, self.run.checkpoints.keep
        before = max(0, number - every * keep)
        try:
            await sweep(self.parts.bucket, self.keys, before_window=before, keep_checkpoints=keep)
        except StorageError as error:  # what stays costs room, not the window
            self.complain(f"old objects stay in the own bucket: {error}")

    def report(self, activity: str, loss: float | None = None) -> None:
        """Say what this neuron does now, to the log and to the live screen."""
        if activity != self._activity:
            log.info("window %d: %s", self.state.window, activity)
        self._activity, self._since = activity, time.time()
        self._loss = self._loss if loss is None else loss
        status = NodeStatus(
            name=self.parts.name,
            role=self.role,
            uid=self.uid,
            hotkey=self.hotkey,
            pid=os.getpid(),
            window=self.state.window,
            activity=activity,
            since=self._since,
            roots={window: root for root, window in self.roots.items()},
            loss=self._loss,
        )
        try:
            write_status(self.parts.folder, status)
        except OSError as error:  # a full disk, say: what nobody can be shown is told in the log
            self.complain(f"the status cannot be written: {error.strerror}")
