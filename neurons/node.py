"""What every neuron does: join a run, follow the chain, and keep its replica at the head of the ledger."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from bittensor_core import Keypair

from neurons.clock import tick, tick_seconds, until
from neurons.errors import NodeError, Overtaken
from neurons.fetching import Fetcher
from neurons.ledger import Ledger
from neurons.loading import Loader, Start
from neurons.rounds import Exchange, Peer, Place
from neurons.spool import Spool
from neurons.status import NodeStatus, write_status
from neurons.training.model import bind, build_model, empty_flat, parameter_shapes
from protocol.assignment import Assignment
from protocol.chain.port import Chain, Neuron
from protocol.errors import ChainError, ChainUnreachable, Divergence
from protocol.ledger.manifest import (
    FIRST_PREVIOUS,
    Manifest,
    Seat,
    check_manifest,
    leader_order,
)
from protocol.ledger.replay import apply_manifest
from protocol.ledger.state import State
from protocol.run import Run
from protocol.sealing import SealedShard
from protocol.sparseloco.layout import Layout
from protocol.sparseloco.payload import Payload
from protocol.window import Window, deadlines, window_of
from storage.bucket import Bucket
from storage.dataset import Dataset
from storage.errors import StorageError
from storage.patience import PatientBucket
from storage.retention import recover, sweep
from storage.together import until_one_ends

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
        self.ledger = Ledger(
            self.run, self.chain, parts.folder, self.exchange.sealed_sizes, self.ledger_sources, self.complain
        )
        self.fetcher = Fetcher(
            self.exchange,
            self.chain,
            self.ledger_sources,
            self.ledger.at,
            self.open_bucket,
            self.complain,
            self.report,
        )
        self.uid = -1
        self.roots: dict[str, int] = {}
        """Root of each recent θ → its window."""
        self.lists: dict[int, tuple[tuple[Seat, ...], tuple[Seat, ...]]] = {}
        """Gather and reserve lists by the window in which they take effect."""
        self.state = State(self.layout, empty_flat(self.layout.size), -1, FIRST_PREVIOUS)
        self._doubted: set[int] = set()
        self._shown: tuple[object, ...] = ()
        self._complaints: set[str] = set()
        self._activity, self._since = "", time.time()
        self._loss: float | None = None

    # --- life ---------------------------------------------------------------------------------------------

    async def run_forever(self) -> None:
        """Join, then one window after the other until cancelled; what others publish is read beside that."""
        try:
            await until_one_ends((self._live(), self._keep_up()))
        finally:
            await self.leave()

    async def _live(self) -> None:
        joined, astray = False, False
        while True:
            try:
                if not joined:
                    await self.join()
                elif astray:
                    await self.load()
                joined, astray = True, False
                await self.window(await self.next_window())
            except Divergence as error:
                log.error("this state is not the ledger's, starting again from a checkpoint: %s", error)
                astray = True
            except Overtaken as error:
                astray = self._is_astray()
                way = "going back to a checkpoint before the fork" if astray else "going on from here"
                log.warning("the head of the ledger has changed, %s: %s", way, error)
            except (StorageError, ChainUnreachable) as error:
                # The own bucket, the dataset or the chain is away: what belongs to a peer never gets here.
                self.complain(f"lost this window: {error}" if joined else f"cannot join yet: {error}")
                self.report(f"trying again: {error}")
                await tick(self.chain)

    def _is_astray(self) -> bool:
        """Whether this state is not on the way to the head of the ledger."""
        try:
            self.ledger.after(self.state.window, self.state.previous)
        except Overtaken:
            return True
        return False

    async def _keep_up(self) -> None:
        """Read what the validators publish, every tick, and do what is due."""
        while True:
            try:
                if not self.ledger.is_read((await self.chain.head()).number):
                    await self.ledger.refresh(self.chain.block_seconds / 2)
                await self.take_part()
                self._show_ledger()
            except (StorageError, ChainError) as error:
                self.complain(f"what the validators say was not followed: {error}")
            await tick(self.chain)

    async def take_part(self) -> None:
        """What else is due in this block, whatever the window's work is at."""

    async def leave(self) -> None:
        """End whatever goes on beside the window's work."""
        await self.fetcher.stop()
        await self.ledger.close()

    def latest_start(self, head: int) -> int:
        """The newest window from whose checkpoint this node may start, when the chain is in window `head`."""
        return head

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
        """The manifest of window `number` that this state takes next, or None while there is none. Reads what is new
        before it says so. Raises as `known_manifest`."""
        while (manifest := self.known_manifest(number)) is None:
            before = self.ledger.head
            await self.ledger.refresh(tick_seconds(self.chain))
            await self.ledger.at(number)
            if self.ledger.head == before:
                return self.known_manifest(number)
        return manifest

    def known_manifest(self, number: int) -> Manifest | None:
        """As `find_manifest`, of what was read already. Raises `Overtaken` when the head of the ledger is on another
        branch than this state; and `Divergence`, once a window, when a manifest is right in everything but the root: if
        a fresh start gives the same root again, it is the manifest that is wrong."""
        while (manifest := self.ledger.after(number, self.state.previous)) is not None:
            try:
                check_manifest(manifest, self.run, number, self.state.previous, self.root(), manifest.signer)
            except Divergence as error:
                if number not in self._doubted:
                    self._doubted.add(number)
                    raise
                self.complain(f"refused: {error}")
                self.ledger.refuse(manifest)
                continue
            return manifest
        return None

    async def signed_manifest(self, number: int) -> Manifest | None:
        """The manifest of a past window on the way to the head of the ledger."""
        return await self.ledger.at(number)

    async def follow_to_head(self) -> None:
        """Apply every manifest up to the window the chain is in; wait for those that are still to come."""
        while self.state.window < window_of((await self.chain.head()).number, self.run.time):
            number = self.state.window
            self.report(f"waiting for manifest {number}")
            while (manifest := await self.find_manifest(number)) is None:
                await tick(self.chain)
            await self.apply(manifest)

    async def apply(self, manifest: Manifest) -> None:
        """Fetch what the manifest names and take the state one window on. Raises `Overtaken` if the head of the ledger
        changes while that is waited for."""
        self.report(f"applying manifest {manifest.window}")
        self.fetcher.look_ahead(manifest.window, self.ledger.head_window)
        fetching = asyncio.create_task(self.payloads(manifest))
        try:
            while not (await asyncio.wait({fetching}, timeout=tick_seconds(self.chain)))[0]:
                if self.ledger.after(manifest.window, manifest.previous) not in (None, manifest):
                    raise Overtaken(f"manifest {manifest.window} of {manifest.signer} is none any more")
            payloads = fetching.result()
        finally:
            fetching.cancel()
        root = await asyncio.to_thread(self._advance, manifest, payloads)
        self.exchange.forget([*self.kept_shards(), *self.fetcher.awaited()])
        self._enter(manifest, root)

    def _advance(self, manifest: Manifest, payloads: Sequence[Payload]) -> str:
        apply_manifest(self.state, self.run, manifest, payloads)
        return self.state.root()

    async def payloads(self, manifest: Manifest) -> list[Payload]:
        """All that a manifest names, in its order."""
        return await self.fetcher.payloads(manifest)

    async def load(self) -> None:
        """Take over the newest checkpoint that the ledger confirms. The first one of a run lies where it was
        published."""
        await self.fetcher.stop()
        loader = Loader(self.run, self.layout, self.signed_manifest, self.complain, self.report)
        while (start := await self._find_start(loader)) is None:
            self.report("waiting for a checkpoint")
            await tick(self.chain)
        self.state = State(self.layout, start.theta, start.window, FIRST_PREVIOUS)
        bind(self.model, start.theta)
        self.roots, self.lists = {start.root: start.window}, {}
        for manifest in start.before:
            self.lists[manifest.window + 2] = (manifest.gather, manifest.reserve)
            self.state.previous = manifest.digest()
            self.roots.setdefault(manifest.root, manifest.window)
        self.ledger.roots[self.state.previous] = start.root
        self.report(f"loaded checkpoint {start.window}")

    async def _find_start(self, loader: Loader) -> Start | None:
        if not await self.ledger.begin(tick_seconds(self.chain)):
            return None
        last = self.latest_start(window_of((await self.chain.head()).number, self.run.time))
        places = [Place(f"uid {source.uid}", source.bucket) for source in await self.ledger_sources()]
        return await loader.newest(places, self.parts.publisher, last, self.patience_seconds)

    def _enter(self, manifest: Manifest, root: str) -> None:
        """Book-keeping after the state moved to a new window, at whose start θ has this root."""
        self.lists[manifest.window + 2] = (manifest.gather, manifest.reserve)
        self.lists = {w: lists for w, lists in self.lists.items() if w >= self.state.window}
        # A window without contributions leaves θ as it was; its root then stands for the newer window.
        self.roots[root] = self.state.window
        self.ledger.roots[self.state.previous] = root
        self.ledger.forget(self.state.window)
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
        that somebody may start from. Who has to leave a branch starts from one at or before the final manifest."""
        every, keep, first = self.run.checkpoints.every_windows, self.run.checkpoints.keep, self.run.time.first_window
        needed = first + max(0, self.ledger.final_window - first) // every * every
        before = max(0, min(number - every * keep, needed))
        try:
            await sweep(self.parts.bucket, self.keys, before_window=before, keep_checkpoints=keep, needed_window=needed)
        except StorageError as error:  # what stays costs room, not the window
            self.complain(f"old objects stay in the own bucket: {error}")

    def report(self, activity: str, loss: float | None = None) -> None:
        """Say what this neuron does now, to the log and to the live screen."""
        if activity != self._activity:
            log.info("window %d: %s", self.state.window, activity)
        self._activity, self._since = activity, time.time()
        self._loss = self._loss if loss is None else loss
        self._write_status()

    def _show_ledger(self) -> None:
        """Write the status anew if what it says of the ledger has changed."""
        ledger = self.ledger
        shown = (ledger.final_window, ledger.head, ledger.support, ledger.leader, len(ledger.evidence))
        if shown != self._shown:
            self._shown = shown
            self._write_status()

    def _write_status(self) -> None:
        ledger, first = self.ledger, self.run.time.first_window
        status = NodeStatus(
            name=self.parts.name,
            role=self.role,
            uid=self.uid,
            hotkey=self.hotkey,
            pid=os.getpid(),
            window=self.state.window,
            activity=self._activity,
            since=self._since,
            roots={window: root for root, window in self.roots.items()},
            loss=self._loss,
            final=ledger.final_window if ledger.final_window >= first else None,
            head_window=ledger.head_window if ledger.head_window >= first else None,
            attesting=ledger.support,
            leader=ledger.leader,
            evidence=[evidence.sentence() for evidence in ledger.evidence.values()],
        )
        try:
            write_status(self.parts.folder, status)
        except OSError as error:  # a full disk, say: what nobody can be shown is told in the log
            self.complain(f"the status cannot be written: {error.strerror}")
