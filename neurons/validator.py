"""A validator: collects what was sealed, agrees on what counts, judges it, and pays."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import ClassVar

import numpy as np

from neurons.archive import Archive
from neurons.clock import stop_at, tick, tick_seconds, until
from neurons.collecting import Round
from neurons.documents import Documents, Source
from neurons.durable import read_document, write_document
from neurons.journal import Journal, read_journal, write_journal
from neurons.judge import Judge
from neurons.node import Node, Parts
from neurons.pace import Budget, Pace, tempered
from neurons.rounds import Peer
from neurons.voting import Voter
from protocol.errors import ChainError, DocumentError, LedgerError, Reason, Rejected
from protocol.gauntlet.checks import find_copies, find_outsized
from protocol.gauntlet.evaluation import bounded_losses
from protocol.gauntlet.history import events_of
from protocol.gauntlet.receipts import Receipts
from protocol.gauntlet.scorebook import Scorebook, update
from protocol.gauntlet.selection import contributors, sample, select
from protocol.gauntlet.slots import departed, remaining, seats
from protocol.gauntlet.verdict import Findings, Outcome, Verdict, close_window
from protocol.gauntlet.weights import weights_of
from protocol.identity import Document
from protocol.ledger.manifest import Contribution, Manifest, Refusal, Seat
from protocol.sealing import SealedShard
from protocol.sparseloco.compress import SparseUpdate
from protocol.window import Window, deadlines, failover_block, window_of
from storage.checkpoint import write_checkpoint
from storage.errors import StorageError

log = logging.getLogger(__name__)

_STATE_FILE = "validator.json"
_REMEMBERED_WINDOWS = 16
_STAND_INS = 2
"""How many validators one that saw nothing of a window lets go first: some of those behind may not run."""


class Memory(Document):
    """What a validator keeps over a restart: its scorebook, the windows in which it saw each payload's records, where
    the valid payloads of the last window are, with which those of the next are compared, and the receipts of the last
    window: they are kept before they are published, so that there is never one without the other."""

    book: Scorebook
    bodies: dict[str, int]
    last: tuple[Contribution, ...] = ()
    receipts: Receipts | None = None


class Validator(Node):
    """One validator. `window` is the protocol; each step is one call."""

    role: ClassVar[str] = "validator"

    def __init__(self, parts: Parts) -> None:
        super().__init__(parts)
        self.memory = self.resume()
        self.owed = self.memory.receipts
        """Receipts that are written down and perhaps not published."""
        self.journal = read_journal(parts.folder, self.run.digest())
        self.last_updates: list[SparseUpdate] = []
        self.held_out_loss: float | None = None
        self.voter = Voter(self.ledger, parts.hotkey, parts.bucket, parts.folder, self.complain)
        self.archive = Archive(self.ledger, self.exchange, parts.bucket, self.payloads, self.complain)
        self.pace = Pace()
        """How fast this machine judged in earlier windows."""
        self.closing_seconds: float | None = None
        """How long what comes after judging is expected to take; None before the first window is over."""

    async def window(self, number: int) -> None:
        """Take part in window `number`, from the snapshot of its seals to the weights on chain."""
        window = deadlines(number, self.run.time)
        found = await self.snapshot(window)
        try:
            await self.collect(window, found)
            manifest = await self.agree(window, found)
            if number < self.memory.book.window:  # judged already, on a branch of the ledger that was left
                await self.apply(manifest)
                return
            await self.checkpoint(number)
            findings = await self.judge(window, found, manifest)
            if (settled := self.settled(manifest)) != manifest:
                await self._keep(settled)
                manifest = settled
        finally:
            await found.stop_reading()
        judged = asyncio.get_running_loop().time()
        verdict = self.close(window, found, findings, manifest)
        held_out_before = await self.measure_held_out()
        await self.apply(manifest)
        held_out_after = await self.measure_held_out()
        await self.publish(window, found, verdict, findings, manifest, (held_out_before, held_out_after))
        await self.pay(number, verdict.book)
        await self.tidy(number)
        self.closing_seconds = tempered(self.closing_seconds, asyncio.get_running_loop().time() - judged)

    async def join(self) -> None:
        """As for every node; then makes up for what a process before this one had left to do."""
        await super().join()
        await self.recall()
        self.last_updates = await self._reopen_last()
        await self.pay_late()

    async def apply(self, manifest: Manifest) -> None:
        """As for every node; what was measured on the state before is forgotten."""
        self.held_out_loss = None
        await super().apply(manifest)

    async def load(self) -> None:
        """As for every node; what was measured on another state is forgotten."""
        self.held_out_loss = None
        await super().load()

    async def next_window(self) -> int:
        """The first window without a manifest: unlike a miner, a validator must not wait for it, for it may have to
        write it. Or the one that a process before this one had begun, while there is time to judge it."""
        await self.publish_owed()
        while self.state.window < window_of((head := await self.chain.head()).number, self.run.time):
            begun = self._journal_of(self.state.window) is not None
            if begun and head.number < self.judging_end(deadlines(self.state.window, self.run.time)):
                break
            manifest = await self.find_manifest(self.state.window)
            if manifest is None:
                break
            await self._keep(manifest)
            await self.apply(manifest)
        return self.state.window

    # --- the steps of a window ------------------------------------------------------------------------------

    async def snapshot(self, window: Window) -> Round:
        """Read all seals at block C + g, or go on from where a process before this one was. Once keys are out a seal
        proves nothing: who comes too late for the snapshot judges nobody."""
        self.report(f"waiting for the seals of window {window.number}")
        head = await until(self.chain, window.seal_block)
        self.report("collecting seals")
        journal = self._journal_of(window.number)
        if journal is not None:
            found = await self._round(window, self._peers_of(journal), journal.departed)
            await found.go_on(journal)
        else:
            blind = head.number >= window.key_block
            gone = departed(self.memory.book, await self.chain.neurons(), self.run)
            peers = [] if blind else [peer for peer in await self.peers() if peer.hotkey != self.hotkey]
            found = await self._round(window, peers, gone, blind)
            await found.snapshot(until(self.chain, window.key_block))
        # A hotkey takes with it what it has earned: to judge its slot's next holder by, and to list and to pay.
        book = remaining(self.memory.book, found.departed)
        self.memory = self.memory.model_copy(update={"book": book})
        if not found.blind:
            self._keep_journal(found)
        return found

    async def collect(self, window: Window, found: Round) -> None:
        """Open payloads as their keys come out, until those that may contribute are known or the reveal deadline is
        there."""
        await until(self.chain, window.key_block)
        self.report("collecting keys")
        await self._poll(found, window, found.first)
        await found.settle(found.first)
        found.reject(await asyncio.to_thread(self._compare, found, found.first))
        if not found.blind:
            self._keep_journal(found)

    async def agree(self, window: Window, found: Round) -> Manifest:
        """The manifest of this window: another validator's if there is one whose payloads can be had, else the own one
        as soon as the own rank allows it."""
        while True:
            manifest = self.known_manifest(window.number)
            if manifest is not None and await self.archive.prove(manifest, tick_seconds(self.chain)):
                await self._keep(manifest)
                return manifest
            turn = await self.turn(window, found)
            if turn is not None and (await self.chain.head()).number >= turn and not self.ledger.is_behind():
                return await self._lead(window, found)
            self.report(f"waiting for manifest {window.number}")
            await tick(self.chain)

    async def _lead(self, window: Window, found: Round) -> Manifest:
        """The own manifest, the one that was signed before if there is one, known to everybody."""
        manifest = self.voter.signed(window.number, self.state.previous)
        if manifest is None:
            manifest = await self.lead(window, found)
            self.voter.pledge(manifest)
        await self._keep(manifest)
        with suppress(LedgerError, DocumentError):  # whoever signs what is none will see it refused by the others
            await self.ledger.admit(manifest)
        return manifest

    def settled(self, manifest: Manifest) -> Manifest:
        """The manifest that the ledger has come to for this window, while the payloads were judged. Raises
        `Overtaken`."""
        found = self.known_manifest(manifest.window)
        return manifest if found is None or not self.archive.is_proven(found) else found

    async def turn(self, window: Window, found: Round) -> int | None:
        """First block at which this validator publishes a manifest, None if it never may. One that saw nothing of the
        window would name nobody, and lets the next ones by stake go first, if there are any."""
        electorate = await self.ledger.electorates.of(window.number)
        rank = electorate.rank_of(self.hotkey)
        if rank is None:
            return None
        behind = len(electorate.members) - 1 - rank
        if found.blind and behind and self.voter.signed(window.number, self.state.previous) is None:
            rank += min(behind, _STAND_INS) + 1
        return failover_block(window.number, rank, self.run.time)

    async def lead(self, window: Window, found: Round) -> Manifest:
        """Write and sign the manifest, after every payload it names lies in the own bucket too."""
        gather, reserve = self.listed(window.number)
        valid = {found.entries[uid].seat for uid in found.payloads()}
        if not gather:
            valid -= await self.harmful(window, found)
        chosen = contributors(gather, reserve, valid, self.run)
        entries = [found.entries[uid] for uid in chosen]
        next_gather, next_reserve = select(self.memory.book, self.run)
        manifest = Manifest(
            signer=self.hotkey,
            run_digest=self.run.digest(),
            window=window.number,
            previous=self.state.previous,
            root=self.root(),
            alpha=self.run.sparseloco.alpha(window.number),
            contributions=tuple(entry.contribution() for entry in entries),
            rejected=tuple(
                Refusal(uid=o.uid, hotkey=o.hotkey, reason=o.reason, detail=o.detail[:200])
                for o in self._outcomes(found)
                if o.reason is not None
            ),
            gather=seats(self.memory.book, next_gather),
            reserve=seats(self.memory.book, next_reserve),
        ).signed(self.parts.hotkey)
        for entry in entries:
            await self.exchange.mirror(entry.known_seal)
        return manifest

    async def harmful(self, window: Window, found: Round) -> set[Seat]:
        """Who would raise the loss beyond the noise, by first-order gain, in as much time as the next validator
        would wait. While there is no list this is all that keeps harm out; later the lists do."""
        judge_hash = (await self.chain.block(window.key_block)).hash
        numbers = (await self.assignment(window)).scored_random(judge_hash)[: self.run.gauntlet.random_pages]
        pages = await self.read_pages(numbers)
        updates = {uid: payload.update for uid, payload in found.payloads().items()}
        end = (await self.chain.head()).number + self.run.time.failover_blocks
        async with self._budget(end) as budget:
            gains = await asyncio.to_thread(self._judge().first_look, window.number, updates, pages, budget)
        return {found.entries[uid].seat for uid, gain in gains.items() if gain.sign < 0}

    async def judge(self, window: Window, found: Round, manifest: Manifest) -> dict[int, Findings]:
        """Evaluate the payloads of this window on θ_W while the next window trains, until that closes. How many peers
        are measured, and on how many pages, is as this machine manages."""
        await self._poll(found, window, set(found.entries))
        await found.end_reading()
        await self.adopt(found, manifest)
        if not found.blind:
            self._keep_journal(found)
        contributed = {c.uid for c in manifest.contributions}
        found.reject(await asyncio.to_thread(self._compare, found, found.entries, contributed), contributed)
        payloads = found.payloads()
        self.report(f"judging {len(payloads)} payloads")
        judge_hash = (await self.chain.block(window.key_block)).hash
        assignment = await self.assignment(window)
        gather, _ = self.listed(window.number)
        records = [self.memory.book.of(uid, found.entries[uid].peer.hotkey) for uid in payloads]
        measured = sample(records, [seat.uid for seat in gather], judge_hash, self.run)
        random_pages = await self.read_pages(assignment.scored_random(judge_hash))
        own_pages = {uid: await self.read_pages(assignment.scored_own(uid, judge_hash)) for uid in measured}
        updates = {uid: payload.update for uid, payload in payloads.items()}
        late = asyncio.create_task(self._look_for_late_seals(window, found))
        try:
            async with self._budget(self.judging_end(window)) as budget:
                findings = await asyncio.to_thread(
                    self._judge().evaluate,
                    *(window.number, updates, measured, random_pages, own_pages, budget),
                    at_once=self.run.gauntlet.random_pages,
                )
            await late
        finally:
            late.cancel()
        self.pace = self.pace.after(budget.seen)
        return findings

    async def adopt(self, found: Round, manifest: Manifest) -> None:
        """Take over payloads that the manifest applies and that were not shown to this validator: every node must fetch
        them anyway, and so it does not matter to whom a peer shows what it sent."""
        mirrors = {source.hotkey: source.bucket for source in await self.ledger_sources()}
        mirror = mirrors.get(manifest.signer)
        await asyncio.gather(*(found.adopt(named, mirror) for named in manifest.contributions))

    def close(self, window: Window, found: Round, findings: dict[int, Findings], manifest: Manifest) -> Verdict:
        """Turn what was found into scores."""
        contributed = {c.uid for c in manifest.contributions}
        return close_window(self.memory.book, window.number, self._outcomes(found), findings, contributed, self.run)

    async def publish(
        self,
        window: Window,
        found: Round,
        verdict: Verdict,
        findings: Mapping[int, Findings],
        manifest: Manifest,
        held_out: tuple[float, float],
    ) -> None:
        """Write down what comes of the window, all of it at once, and then publish the receipts. `held_out` are the
        losses before and after the manifest."""
        self.report("publishing receipts")
        judge_hash = (await self.chain.block(window.key_block)).hash
        pages = next((found.pages for found in findings.values()), 0)
        receipts = Receipts(
            signer=self.hotkey,
            run_digest=self.run.digest(),
            window=window.number,
            manifest=manifest.digest(),
            held_out_loss_before=held_out[0],
            held_out_loss_after=held_out[1],
            random_pages=(await self.assignment(window)).scored_random(judge_hash)[:pages],
            scorebook_digest=verdict.book.digest(),
            departed=found.departed,
            receipts=verdict.receipts,
        ).signed(self.parts.hotkey)
        payloads = found.payloads()
        bodies = {d: w for d, w in self.memory.bodies.items() if w > window.number - _REMEMBERED_WINDOWS}
        bodies |= {payload.body_digest: window.number for payload in payloads.values()}
        last = tuple(found.entries[uid].contribution() for uid in payloads)
        memory = Memory(book=verdict.book, bodies=bodies, last=last, receipts=receipts)
        write_document(self.parts.folder / _STATE_FILE, memory)
        self.memory, self.owed = memory, receipts
        self.last_updates = [payload.update for payload in payloads.values()]
        await self.publish_owed()

    async def publish_owed(self) -> None:
        """Publish the receipts that are written down, unless they are published."""
        if self.owed is None:
            return
        name = self.keys.receipts(self.owed.window)
        await self.parts.bucket.put(name, self.owed.canonical())
        await self.parts.bucket.put(self.keys.receipts_head(), name.encode())
        self.owed = None

    async def pay(self, number: int, book: Scorebook) -> None:
        """Set the weights on chain, as often as the run says, for the hotkeys that earned them: whoever has taken over
        a slot since it was judged gets nothing of what its last holder did."""
        if number % self.run.weights.every_windows:
            return
        still = remaining(book, departed(book, await self.chain.neurons(), self.run))
        weights = weights_of(still, *select(still, self.run), self.run)
        if not weights:
            return
        self.report("setting weights")
        try:
            await self.chain.set_weights(self.parts.hotkey, weights)
        except ChainError as error:
            log.warning("weights of window %d were not set: %s", number, error)

    async def pay_late(self) -> None:
        """Set the weights of the last window, if a process before this one closed it and then ended."""
        number = self.memory.book.window - 1
        closed, next_closed = (deadlines(n, self.run.time).close_block for n in (number, number + 1))
        updated = next((n.last_update for n in await self.chain.neurons() if n.hotkey == self.hotkey), 0)
        if self.memory.book.peers and updated < closed and (await self.chain.head()).number < next_closed:
            await self.pay(number, self.memory.book)

    async def checkpoint(self, number: int) -> None:
        """Publish θ_W whole, when it is time. Only now, because only manifest W proves the root of θ_W."""
        first = self.run.time.first_window
        if number == first or (number - first) % self.run.checkpoints.every_windows:
            return
        self.report("publishing a checkpoint")
        tensors = self.layout.tensors(self.state.theta)
        await write_checkpoint(self.parts.bucket, self.keys, window=number, root=self.root(), tensors=tensors)

    def judging_end(self, window: Window) -> int:
        """The block at which judging `window` must end: early enough to be there for the next snapshot. Who has not
        closed a window yet does not know how long that takes, and leaves it half of the time there is."""
        close = deadlines(window.number + 1, self.run.time).close_block
        if self.closing_seconds is None:
            return close - (close - window.reveal_block) // 2
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

    async def _round(self, window: Window, peers: Sequence[Peer], gone: Sequence[int], blind: bool = False) -> Round:
        start = await self.chain.block(window.start_block)
        gather, reserve = self.listed(window.number)
        listed = {(seat.uid, seat.hotkey) for seat in (*gather, *reserve)}
        first = [peer.uid for peer in peers if (peer.uid, peer.hotkey) in listed]
        return Round(
            self.exchange,
            window.number,
            start.hash,
            peers,
            self.state,
            self.roots,
            first=first,
            departed=gone,
            blind=blind,
        )

    async def _poll(self, found: Round, window: Window, uids: Collection[int]) -> None:
        while True:
            await found.poll(tick_seconds(self.chain), uids)
            if found.is_settled(uids) or (await self.chain.head()).number >= window.reveal_block:
                return
            await tick(self.chain)

    async def _look_for_late_seals(self, window: Window, found: Round) -> None:
        await until(self.chain, window.reveal_block)
        await found.look_for_late_seals(self.chain.block_seconds)

    async def _keep(self, manifest: Manifest) -> None:
        """Every validator holds the whole ledger, as it follows it."""
        await self.archive.keep(manifest)

    # --- beside the window ------------------------------------------------------------------------------------

    async def take_part(self) -> None:
        """Prove what is not final yet, and vote; and put right what was kept of the ledger before it was final."""
        self.archive.prove_open()
        await self.voter.step(self.archive.proven())
        await self.archive.put_right()

    async def leave(self) -> None:
        """As for every node, and the proofs."""
        await super().leave()
        await self.archive.stop()

    def latest_start(self, head: int) -> int:
        """Who votes must have gone the whole way from what is final."""
        return min(head, self.ledger.final_window + 1)

    def _outcomes(self, found: Round) -> list[Outcome]:
        """One outcome per peer that takes part. A neuron that has never sealed anything is no miner; it is left
        out until it does. A miner that holds its slot and names no bucket that can be read is unreachable too."""
        outcomes = [entry.outcome() for entry in found.entries.values() if entry.settled]
        book = self.memory.book
        absent = (Reason.NO_SEAL, Reason.UNREACHABLE)
        outcomes = [o for o in outcomes if o.reason not in absent or book.knows(o.uid, o.hotkey)]
        if not found.blind:
            hidden = [record for record in book.peers if record.uid not in found.entries]
            detail = "its commitment names no bucket that can be read"
            outcomes += [Outcome(r.uid, r.hotkey, Reason.UNREACHABLE, detail) for r in hidden]
        return outcomes

    def _compare(self, found: Round, uids: Collection[int], applied: Collection[int] = ()) -> dict[int, Rejected]:
        """Who of `uids` is rejected for what only the others' payloads show."""
        gauntlet = self.run.gauntlet
        payloads = {uid: payload for uid, payload in found.payloads().items() if uid in uids}
        outsized = find_outsized({uid: p.update for uid, p in payloads.items()}, gauntlet.norm_limit)
        rest = {uid: payload for uid, payload in payloads.items() if uid not in outsized}
        past = frozenset(self.memory.bodies)
        return outsized | find_copies(rest, past, self.last_updates, gauntlet.overlap_limit, applied)

    @asynccontextmanager
    async def _budget(self, end: int) -> AsyncIterator[Budget]:
        """The time until block `end`, for work in another thread."""
        clock = asyncio.get_running_loop().time
        seconds_left = (end - (await self.chain.head()).number) * self.chain.block_seconds
        async with stop_at(self.chain, end) as over:
            yield Budget(clock, clock() + seconds_left, over, self.pace)

    def _judge(self) -> Judge:
        return Judge(self.model, self.state.theta, self.run, self.parts.dtype)

    # --- local state ------------------------------------------------------------------------------------------

    def kept_shards(self) -> list[SealedShard]:
        """Those of the payloads that the next window's are compared with, and of a window that is not closed."""
        shards = [shard for named in self.memory.last for shard in named.shards]
        if self.journal is not None and self._journal_of(self.journal.window) is not None:
            shards += [shard for kept in self.journal.entries if kept.seal for shard in kept.seal.shards]
        return shards

    def _keep_journal(self, found: Round) -> None:
        self.journal = found.journal()
        write_journal(self.parts.folder, self.journal)

    def _journal_of(self, window: int) -> Journal | None:
        """What was kept of this window, if it is begun and not closed."""
        journal = self.journal
        return journal if journal and journal.window == window >= self.memory.book.window else None

    def _peers_of(self, journal: Journal) -> list[Peer]:
        locations = ((kept, bytes.fromhex(kept.location)) for kept in journal.entries)
        return [Peer(kept.uid, kept.hotkey, location, self.open_bucket(location)) for kept, location in locations]

    async def _reopen_last(self) -> list[SparseUpdate]:
        """The valid payloads of the last window that was closed, as far as they are still to be had."""
        window = self.memory.book.window - 1

        async def reopen(named: Contribution) -> SparseUpdate | None:
            try:
                bucket = self.open_bucket(bytes.fromhex(named.location))
                return (await self.exchange.contribution(bucket, window, named)).update
            except (StorageError, Rejected) as error:
                self.complain(f"uid {named.uid}: its last payload cannot be compared with the next ones: {error}")
                return None

        updates = await asyncio.gather(*(reopen(named) for named in self.memory.last))
        return [update for update in updates if update is not None]

    def resume(self) -> Memory:
        """What a previous process of this validator wrote down for this run, or an empty memory."""
        try:
            memory = read_document(self.parts.folder / _STATE_FILE, Memory)
        except DocumentError as error:
            log.error("%s; the scorebook is made again from the published receipts", error)
            memory = None
        if memory is not None and memory.book.run_digest == self.run.digest():
            return memory
        return Memory(book=self._no_book(), bodies={})

    async def recall(self) -> None:
        """Make the scorebook again from the receipts in the own bucket, if these know of windows that the own disk does
        not: what was there is damaged or gone."""
        documents = Documents(self.run, self.chain, self.parts.open_bucket)
        own = Source(self.uid, self.hotkey, self.parts.bucket)
        newest = await documents.newest_judged(own)
        if newest is None or newest < self.memory.book.window:
            return
        book, digest = self._no_book(), ""
        for number in range(self.run.time.first_window, newest + 1):
            try:
                receipts = await documents.receipts(number, own)
            except DocumentError as error:
                log.error("the own receipts of window %d are damaged: %s", number, error)
                continue
            if receipts is not None:
                book = update(remaining(book, receipts.departed), number, events_of(receipts), self.run)
                digest = receipts.scorebook_digest
        if book.digest() == digest:
            log.warning("the scorebook was made again from the receipts of all windows up to %d", newest)
        else:
            log.error("the own receipts do not give the scorebook that they name: what is missing in them is forgotten")
        self.memory = self.memory.model_copy(update={"book": book})

    def _no_book(self) -> Scorebook:
        return Scorebook(run_digest=self.run.digest(), window=self.run.time.first_window)


if __name__ == "__main__":
    import sys

    from neurons.cli import main

    sys.exit(main(["validator", *sys.argv[1:]]))
