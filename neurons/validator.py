"""A validator: collects what was sealed, agrees on what counts, judges it, and pays."""

from __future__ import annotations

import asyncio
import logging
import math
import os
from typing import ClassVar

import numpy as np

from neurons.clock import stop_at, tick, tick_seconds, until
from neurons.judge import Judge
from neurons.node import Node, Parts
from neurons.rounds import Round
from protocol.errors import ChainError, Reason, Rejected
from protocol.gauntlet.checks import find_copies, find_outsized
from protocol.gauntlet.evaluation import bounded_losses
from protocol.gauntlet.receipts import Receipts
from protocol.gauntlet.scorebook import Scorebook
from protocol.gauntlet.selection import contributors, sample, select
from protocol.gauntlet.verdict import Findings, Outcome, Verdict, close_window
from protocol.identity import Document
from protocol.ledger.manifest import Contribution, Manifest, Refusal
from protocol.sparseloco.compress import SparseUpdate
from protocol.window import Window, deadlines, failover_block, window_of
from storage.checkpoint import write_checkpoint
from storage.errors import AlreadyExists

log = logging.getLogger(__name__)

_STATE_FILE = "validator.json"
_REMEMBERED_WINDOWS = 16


class Memory(Document):
    """What a validator keeps over a restart: its scorebook, and the windows in which it saw each payload's records."""

    book: Scorebook
    bodies: dict[str, int]


class Validator(Node):
    """One validator. `window` is the protocol; each step is one call."""

    role: ClassVar[str] = "validator"

    def __init__(self, parts: Parts) -> None:
        super().__init__(parts)
        self.memory = self.resume()
        self.last_updates: list[SparseUpdate] = []
        self.held_out_loss: float | None = None
        self.closing_seconds = self.chain.block_seconds
        """What came after judging in the last window took this long."""

    async def window(self, number: int) -> None:
        """Take part in window `number`, from the snapshot of its seals to the weights on chain."""
        window = deadlines(number, self.run.time)
        contributions = await self.collect(window)
        manifest = await self.agree(window, contributions)
        await self.checkpoint(number)
        findings = await self.judge(window, contributions, manifest)
        judged = asyncio.get_running_loop().time()
        verdict = self.close(window, contributions, findings, manifest)
        held_out_before = await self.measure_held_out()
        await self.apply(manifest)
        self.held_out_loss = None
        held_out_after = await self.measure_held_out()
        await self.publish(window, verdict, held_out_before, held_out_after)
        await self.pay(number, verdict)
        await self.tidy(number)
        self.closing_seconds = asyncio.get_running_loop().time() - judged

    async def load(self) -> None:
        """As for every node; what was measured on another state is forgotten."""
        self.held_out_loss = None
        await super().load()

    async def next_window(self) -> int:
        """The first window without a manifest. Unlike a miner, a validator must not wait for it: it may have to
        write it."""
        while self.state.window < window_of((await self.chain.head()).number, self.run.time):
            manifest = await self.find_manifest(self.state.window)
            if manifest is None:
                break
            await self._keep(manifest)
            await self.apply(manifest)
        return self.state.window

    # --- the steps of a window ------------------------------------------------------------------------------

    async def collect(self, window: Window) -> Round:
        """Snapshot all seals at block C + g, then open payloads as their keys come out, until those that may
        contribute are known or the reveal deadline is there."""
        self.report(f"waiting for the seals of window {window.number}")
        head = await until(self.chain, window.seal_block)
        self.report("collecting seals")
        start = await self.chain.block(window.start_block)
        # Once keys are out a seal proves nothing: who comes too late for the snapshot judges nobody.
        came_too_late = head.number >= window.key_block
        peers = [] if came_too_late else [p for p in await self.peers() if p.hotkey != self.hotkey]
        found = Round(self.exchange, window.number, start.hash, peers, self.state, self.roots)
        await found.snapshot(until(self.chain, window.key_block))
        await until(self.chain, window.key_block)
        self.report("collecting keys")
        gather, reserve = self.listed(window.number)
        await self._poll(found, window, {*gather, *reserve} or set(found.entries))
        found.reject(self._compare(found))
        return found

    async def agree(self, window: Window, found: Round) -> Manifest:
        """The manifest of this window: another validator's if there is one, else the own one as soon as the own
        rank allows it."""
        while True:
            manifest = await self.find_manifest(window.number)
            if manifest is None:
                rank = next((r for r, v in enumerate(await self.validators()) if v.hotkey == self.hotkey), None)
                head = await self.chain.head()
                if rank is not None and head.number >= failover_block(window.number, rank, self.run.time):
                    manifest = await self.lead(window, found)
                else:
                    self.report(f"waiting for manifest {window.number}")
                    await tick(self.chain)
                    continue
            await self._keep(manifest)
            return manifest

    async def lead(self, window: Window, found: Round) -> Manifest:
        """Write and sign the manifest, after every payload it names lies in the own bucket too."""
        gather, reserve = self.listed(window.number)
        chosen = contributors(gather, reserve, set(found.payloads()), self.run)
        entries = [found.entries[uid] for uid in chosen]
        next_gather, next_reserve = select(self.memory.book, self.run)
        manifest = Manifest(
            signer=self.hotkey,
            run_digest=self.run.digest(),
            window=window.number,
            previous=self.state.previous,
            root=self.root(),
            alpha=self.run.sparseloco.alpha(window.number),
            contributions=tuple(
                Contribution(
                    uid=entry.peer.uid,
                    hotkey=entry.peer.hotkey,
                    payload_digest=entry.known_seal.payload_digest,
                    key=entry.known_key.hex(),
                    shards=entry.known_seal.shards,
                    location=entry.peer.location.hex(),
                )
                for entry in entries
            ),
            rejected=tuple(
                Refusal(uid=o.uid, hotkey=o.hotkey, reason=o.reason, detail=o.detail[:200])
                for o in self._outcomes(found)
                if o.reason is not None
            ),
            gather=next_gather,
            reserve=next_reserve,
        ).signed(self.parts.hotkey)
        for entry in entries:
            await self.exchange.mirror(window.number, entry.peer.hotkey, entry.known_seal.shards)
        return manifest

    async def judge(self, window: Window, found: Round, manifest: Manifest) -> dict[int, Findings]:
        """Evaluate the payloads of this window on θ_W while the next window trains, until that closes."""
        await self._poll(found, window, set(found.entries))
        await found.stop_reading()
        found.reject(self._compare(found), {c.uid for c in manifest.contributions})
        payloads = found.payloads()
        self.report(f"judging {len(payloads)} payloads")
        judge_hash = (await self.chain.block(window.key_block)).hash
        assignment = await self.assignment(window)
        gather, _ = self.listed(window.number)
        records = [self.memory.book.of(uid, found.entries[uid].peer.hotkey) for uid in payloads]
        measured = sample(records, gather, judge_hash, self.run)
        random_pages = await self.read_pages(assignment.scored_random(judge_hash))
        own_pages = {uid: await self.read_pages(assignment.scored_own(uid, judge_hash)) for uid in measured}
        updates = {uid: payload.update for uid, payload in payloads.items()}
        async with stop_at(self.chain, self.judging_end(window)) as out_of_time:
            findings = await asyncio.to_thread(
                self._judge().evaluate, window.number, updates, measured, random_pages, own_pages, out_of_time
            )
        await until(self.chain, window.reveal_block)
        await found.finish()
        return findings

    def close(self, window: Window, found: Round, findings: dict[int, Findings], manifest: Manifest) -> Verdict:
        """Turn what was found into scores, and remember it."""
        contributed = {c.uid for c in manifest.contributions}
        verdict = close_window(self.memory.book, window.number, self._outcomes(found), findings, contributed, self.run)
        payloads = found.payloads()
        bodies = {d: w for d, w in self.memory.bodies.items() if w > window.number - _REMEMBERED_WINDOWS}
        bodies |= {payload.body_digest: window.number for payload in payloads.values()}
        self.last_updates = [payload.update for payload in payloads.values()]
        self.memory = Memory(book=verdict.book, bodies=bodies)
        return verdict

    async def publish(self, window: Window, verdict: Verdict, held_out_before: float, held_out_after: float) -> None:
        """Publish the receipts, and keep the own state."""
        self.report("publishing receipts")
        judge_hash = (await self.chain.block(window.key_block)).hash
        receipts = Receipts(
            signer=self.hotkey,
            run_digest=self.run.digest(),
            window=window.number,
            held_out_loss_before=held_out_before,
            held_out_loss_after=held_out_after,
            random_pages=(await self.assignment(window)).scored_random(judge_hash),
            scorebook_digest=verdict.book.digest(),
            receipts=verdict.receipts,
        ).signed(self.parts.hotkey)
        await self.parts.bucket.put(self.keys.receipts(window.number), receipts.canonical())
        await self.parts.bucket.put(self.keys.receipts_head(), self.keys.receipts(window.number).encode())
        self.save()

    async def pay(self, number: int, verdict: Verdict) -> None:
        """Set the weights on chain, as often as the run says."""
        if not verdict.weights or number % self.run.weights.every_windows:
            return
        self.report("setting weights")
        try:
            await self.chain.set_weights(self.parts.hotkey, verdict.weights)
        except ChainError as error:
            log.warning("weights of window %d were not set: %s", number, error)

    async def checkpoint(self, number: int) -> None:
        """Publish θ_W whole, when it is time. Only now, because only manifest W proves the root of θ_W."""
        first = self.run.time.first_window
        if number == first or (number - first) % self.run.checkpoints.every_windows:
            return
        self.report("publishing a checkpoint")
        tensors = self.layout.tensors(self.state.theta)
        await write_checkpoint(self.parts.bucket, self.keys, window=number, root=self.root(), tensors=tensors)

    def judging_end(self, window: Window) -> int:
        """The block at which judging `window` must end: early enough to be there for the next snapshot."""
        close = deadlines(window.number + 1, self.run.time).close_block
        return close - math.ceil(self.closing_seconds / self.chain.block_seconds)

    async def measure_held_out(self) -> float:
        """Mean loss of θ on the held-out pages in nats, measured once per state."""
        if self.held_out_loss is None:
            self.report("measuring the held-out loss")
            numbers = range(self.dataset.index.held_out_pages)
            pages = await asyncio.gather(*(self.dataset.read_held_out(number) for number in numbers))
            losses = await asyncio.to_thread(self._judge().losses, np.concatenate(pages))
            self.held_out_loss = float(bounded_losses(losses).mean())
        return self.held_out_loss

    # --- parts of the steps -----------------------------------------------------------------------------------

    async def _poll(self, found: Round, window: Window, uids: set[int]) -> None:
        while True:
            await found.poll(tick_seconds(self.chain))
            if found.is_settled(uids) or (await self.chain.head()).number >= window.reveal_block:
                return
            await tick(self.chain)

    async def _keep(self, manifest: Manifest) -> None:
        """Every validator holds the whole ledger. A manifest is never replaced."""
        try:
            await self.parts.bucket.put_if_absent(self.keys.manifest(manifest.window), manifest.canonical())
        except AlreadyExists:
            return
        await self.parts.bucket.put(self.keys.ledger_head(), self.keys.manifest(manifest.window).encode())

    def _outcomes(self, found: Round) -> list[Outcome]:
        """One outcome per peer that takes part. A neuron that has never sealed anything is no miner; it is left
        out until it does."""
        outcomes = [entry.outcome() for entry in found.entries.values() if entry.settled]
        knows = self.memory.book.knows
        absent = (Reason.NO_SEAL, Reason.UNREACHABLE)
        return [o for o in outcomes if o.reason not in absent or knows(o.uid, o.hotkey)]

    def _compare(self, found: Round) -> dict[int, Rejected]:
        """Who is rejected for what only the others' payloads show."""
        gauntlet, payloads = self.run.gauntlet, found.payloads()
        outsized = find_outsized({uid: p.update for uid, p in payloads.items()}, gauntlet.norm_limit)
        rest = {uid: payload for uid, payload in payloads.items() if uid not in outsized}
        past = frozenset(self.memory.bodies)
        return outsized | find_copies(rest, past, self.last_updates, gauntlet.overlap_limit)

    def _judge(self) -> Judge:
        return Judge(self.model, self.state.theta, self.run, self.parts.dtype)

    # --- local state ------------------------------------------------------------------------------------------

    def save(self) -> None:
        """Write scorebook and memory, replacing the last ones whole."""
        partial = self.parts.folder / f".{_STATE_FILE}.{os.getpid()}"
        partial.write_bytes(self.memory.canonical())
        partial.replace(self.parts.folder / _STATE_FILE)

    def resume(self) -> Memory:
        """What a previous process of this validator saved for this run, or an empty memory."""
        path = self.parts.folder / _STATE_FILE
        if path.exists():
            memory = Memory.parse(path.read_bytes())
            if memory.book.run_digest == self.run.digest():
                return memory
        return Memory(book=Scorebook(run_digest=self.run.digest(), window=self.run.time.first_window), bodies={})


if __name__ == "__main__":
    import sys

    from neurons.cli import main

    sys.exit(main(["validator", *sys.argv[1:]]))
