"""`windrow audit`: from window to window, what the ledger says, what the payloads give, and what was paid for them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from neurons.audit.replica import Replica
from neurons.audit.report import Report, WindowReport
from neurons.audit.scores import (
    compare_choice,
    compare_judgements,
    compare_lists,
    compare_scores,
    compare_with_manifest,
    held_out_difference,
    judgement_differences,
)
from neurons.audit.way import open_ledger, read_evidence
from neurons.documents import Documents, Source, UnknownSigner
from neurons.errors import NotJudged
from neurons.judge import Judge
from neurons.leaderboard.words import short
from neurons.ledger import Ledger
from neurons.onlooker import Onlooker
from neurons.pace import Budget
from neurons.rounds import Place
from protocol.assignment import Assignment
from protocol.errors import ChainError, ChainUnreachable, DocumentError, LedgerError
from protocol.gauntlet.evaluation import bounded_losses
from protocol.gauntlet.history import book_before, events_of
from protocol.gauntlet.receipts import Receipts
from protocol.gauntlet.scorebook import Scorebook, update
from protocol.gauntlet.selection import UNLISTED_WINDOWS
from protocol.gauntlet.slots import remaining
from protocol.gauntlet.verdict import Findings
from protocol.ledger.evidence import Evidence
from protocol.ledger.manifest import FIRST_PREVIOUS, Manifest, Seat, check_contributions, check_manifest
from protocol.sparseloco.compress import SparseUpdate
from protocol.sparseloco.payload import Payload
from protocol.window import deadlines, window_of
from storage.dataset import Dataset
from storage.errors import StorageError

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
_SAME_LOSS = 1e-5
"""Losses closer than this, in nats, were computed in the same precision."""

Say = Callable[[str], object]
Lists = tuple[Sequence[Seat], Sequence[Seat]]
"""Gather and reserve list."""


@dataclass(slots=True)
class _Validator:
    """What is followed of one validator: its scorebook, whether it was made from every window's receipts, and the
    precision that it computes in, once that is known."""

    source: Source
    book: Scorebook | None = None
    is_whole: bool = True
    precision: str | None = None
    last: Receipts | None = None


@dataclass(slots=True)
class _Ledger:
    """What the next manifest has to follow."""

    previous: str | None
    lists: dict[int, Lists] = field(default_factory=dict)


async def audit(
    look: Onlooker, first: int | None, last: int | None, with_scores: bool, folder: Path, say: Say
) -> Report:
    """Walk the windows from `first` to `last`, from the first of the run to the newest one where None. What is fetched
    goes through `folder`. Raises `NotJudged` when there is no such window, `ChainUnreachable`, and `ConfigError` when
    losses are to be recomputed and the dataset is not there."""
    documents = Documents(look.run, look.chain, look.open_bucket)
    sources, _ = await documents.sources(await look.chain.neurons())
    head = window_of((await look.chain.head()).number, look.run.time)
    begin = look.run.time.first_window if first is None else max(first, look.run.time.first_window)
    end = head - 1 if last is None else min(last, head - 1)
    if end < begin:
        raise NotJudged(f"there is no window to look at: the run is in window {head}, the first was {begin}")
    say("the votes")
    replica = Replica(look, documents, folder)
    way = await open_ledger(look, sources, replica.reader.sealed_sizes, folder / "ledger")
    walk = _Walk(look, documents, sources, replica, say, way, await read_evidence(documents, sources))
    return await walk.through(begin, end, with_scores, is_open_ended=last is None)


class _Walk:
    """One walk. `through` is the way; each step is one call."""

    def __init__(
        self,
        look: Onlooker,
        documents: Documents,
        sources: Sequence[Source],
        replica: Replica,
        say: Say,
        way: Ledger,
        evidence: Mapping[int, Sequence[Evidence]],
    ) -> None:
        self.look, self.run, self.documents, self.sources, self.say = look, look.run, documents, sources, say
        self.replica, self.way, self.evidence = replica, way, evidence
        self.validators = [_Validator(source) for source in sources]
        self.ledger = _Ledger(None)
        self.dataset: Dataset | None = None

    async def through(self, begin: int, end: int, with_scores: bool, is_open_ended: bool) -> Report:
        checkpoints = await self.replica.checkpoints(self.sources)
        start = max((window for window, _ in checkpoints if window <= begin), default=begin)
        if with_scores:
            self.dataset = await self.look.open_dataset()
            await self._catch_up(start)
        await self._begin_ledger(start)
        reports: list[WindowReport] = []
        for number in range(start, end + 1):
            report = WindowReport(number)
            self.say(f"window {number}: the ledger")
            manifest = await self._manifest(number, report)
            if manifest is None and is_open_ended and number == end:
                break  # its validators are still at it
            reports.append(report)
            if manifest is None:
                report.gap("no validator has a manifest of it")
                self.ledger.previous = None
                self.replica.lose()
                continue
            await self._state(number, manifest, checkpoints, report)
            self._follow(manifest, report)
            payloads = None
            if self.replica.state is not None:
                payloads = await self.replica.applied(manifest, self.sources, report)
            if with_scores:
                self.say(f"window {number}: the receipts")
                await self._scores(number, manifest, payloads, report, is_open_ended and number == end)
            if self.replica.state is not None and payloads is not None:
                await self.replica.apply(manifest, payloads)
            else:
                self.replica.lose()
        if not reports:
            raise NotJudged(f"there is no manifest of window {begin} yet: wait until it is judged")
        precisions = {v.source.hotkey: v.precision for v in self.validators if v.precision is not None}
        return Report(self.run.name, tuple(reports), with_scores, precisions)

    # --- the ledger ---------------------------------------------------------------------------------------

    async def _begin_ledger(self, start: int) -> None:
        """What manifest `start` has to follow: the two before it."""
        first = self.run.time.first_window
        if start == first:
            self.ledger.previous = FIRST_PREVIOUS
        for number in (start - 2, start - 1):
            before = await self._manifest(number, WindowReport(number)) if number >= first else None
            if before is not None:
                self.ledger.lists[number + 2] = (before.gather, before.reserve)
                self.ledger.previous = before.digest()

    async def _manifest(self, number: int, report: WindowReport) -> Manifest | None:
        """The manifest of a window: the one that the votes have come to, or else that of the first validator in leader
        order; with a fault if others hold another one that does not lie on a branch that was left, or what is none."""
        held: list[tuple[Source, Manifest]] = []
        for source in self.sources:
            try:
                manifest = await self.documents.manifest(number, source)
            except UnknownSigner as error:
                report.gap(f"the manifest at uid {source.uid} cannot be believed: {error}")
                continue
            except DocumentError as error:
                report.fault(f"the manifest at uid {source.uid} is none: {error}")
                continue
            except StorageError as error:
                report.gap(f"the bucket of validator uid {source.uid} does not give its manifest: {error}")
                continue
            if manifest is not None:
                held.append((source, manifest))
        voted = await self.way.at(number)
        digest = voted.digest() if voted is not None else None
        found = next((manifest for _, manifest in held if manifest.digest() == digest), held[0][1] if held else None)
        for source, manifest in held:
            if found is not None and manifest.digest() != found.digest():
                both = f"{found.digest()[:16]}… and, at uid {source.uid}, {manifest.digest()[:16]}…"
                if manifest.signer == found.signer and manifest.previous == found.previous:
                    report.fault(f"the same validator signed two manifests: {both}")
                elif found.digest() == digest and number <= self.way.final_window:
                    report.gap(f"uid {source.uid} holds a manifest of a branch that was left: {both}")
                else:
                    report.fault(f"there are two manifests: {both}")
        for evidence in self.evidence.get(number, ()):
            report.fault(evidence.sentence())
        return found

    async def _state(
        self, number: int, manifest: Manifest, checkpoints: Sequence[tuple[int, Place]], report: WindowReport
    ) -> None:
        """θ at the start of the window: replayed until here, or else from a checkpoint that this manifest names."""
        if self.replica.state is not None:
            return
        first = number == self.run.time.first_window
        root = self.run.genesis_root if first else manifest.root
        why = "no checkpoint of this window is left anywhere"
        for window, place in checkpoints:
            if window != number:
                continue
            refused = await self.replica.take(window, place, root, manifest.previous)
            if refused is None:
                return
            why = refused
        report.gap(f"its root cannot be computed: {why}")

    def _follow(self, manifest: Manifest, report: WindowReport) -> None:
        """Check a manifest against the rules, and go on with it."""
        state, number = self.replica.state, manifest.window
        if state is not None:
            report.root_checked = True
            root = state.root()
            if root != manifest.root:
                report.fault(f"the manifest names root {manifest.root}, the manifests before it give {root}")
                self.replica.lose()
        previous = self.ledger.previous if self.ledger.previous is not None else manifest.previous
        lists = self._lists(number)
        try:
            check_contributions(manifest, self.run, *(lists or ((), ())), self.replica.reader.sealed_sizes)
            # The root was compared above: a broken chain must not hide it.
            check_manifest(manifest, self.run, number, previous, manifest.root, manifest.signer)
        except LedgerError as error:
            report.fault(str(error))
        self.ledger.previous = manifest.digest()
        self.ledger.lists[number + 2] = (manifest.gather, manifest.reserve)
        self.ledger.lists.pop(number - 1, None)

    def _lists(self, number: int) -> Lists | None:
        """Gather and reserve list in effect, empty while there is none; None where the manifest is missing that
        names them."""
        return ((), ()) if number < self.run.time.first_window + UNLISTED_WINDOWS else self.ledger.lists.get(number)

    # --- receipts -----------------------------------------------------------------------------------------

    async def _catch_up(self, start: int) -> None:
        """The scorebooks before window `start`, from the receipts of all windows before it."""
        for validator in self.validators:
            for number in range(self.run.time.first_window, start):
                self.say(f"window {number}: receipts of uid {validator.source.uid}")
                receipts = await self._receipts(validator, number, WindowReport(number))
                if receipts is not None:
                    book = self._book(validator, receipts)
                    validator.book = update(book, number, events_of(receipts), self.run)

    async def _receipts(self, validator: _Validator, number: int, report: WindowReport) -> Receipts | None:
        source = validator.source
        try:
            return await self.documents.receipts(number, source)
        except DocumentError as error:
            report.fault(f"the receipts of validator uid {source.uid} are none: {error}")
        except StorageError as error:
            report.gap(f"the bucket of validator uid {source.uid} does not give its receipts: {error}")
        return None

    def _book(self, validator: _Validator, receipts: Receipts) -> Scorebook:
        """The scorebook before `receipts`: followed until here, or begun with what they say of it; without those who
        have left their slots."""
        if validator.book is None:
            validator.book = book_before(receipts, self.run)
            validator.is_whole = receipts.window == self.run.time.first_window
        return remaining(validator.book, receipts.departed)

    async def _scores(
        self, number: int, manifest: Manifest, payloads: list[Payload] | None, report: WindowReport, is_open: bool
    ) -> None:
        for validator in self.validators:
            receipts = await self._receipts(validator, number, report)
            if receipts is None:
                if validator.source.hotkey == manifest.signer and not is_open:
                    report.gap(f"validator uid {validator.source.uid} led it and has no receipts")
                continue
            book = self._book(validator, receipts)
            if receipts.manifest == manifest.digest():
                await self._compare(validator, book, receipts, manifest, payloads, report)
            else:
                report.gap(
                    f"losses of validator uid {validator.source.uid} cannot be recomputed: its receipts are of "
                    f"manifest {receipts.manifest[:16]}…, on a branch that was left"
                )
            validator.book = compare_scores(book, receipts, self.run, report, is_whole=validator.is_whole)

    async def _compare(
        self,
        validator: _Validator,
        book: Scorebook,
        receipts: Receipts,
        manifest: Manifest,
        payloads: list[Payload] | None,
        report: WindowReport,
    ) -> None:
        """Hold receipts against the manifest and the payloads that they are of."""
        compare_with_manifest(receipts, manifest, report)
        if receipts.signer == manifest.signer:
            lists = self._lists(manifest.window)
            if lists is not None:
                compare_choice(receipts, manifest, *lists, self.run, report)
            if validator.is_whole:
                compare_lists(book, manifest, self.run, report)
        if payloads is not None:
            await self._judge(validator, book, receipts, manifest, payloads, report)
        else:
            report.gap(f"losses of validator uid {validator.source.uid} cannot be recomputed without the state")

    async def _judge(
        self,
        validator: _Validator,
        book: Scorebook,
        receipts: Receipts,
        manifest: Manifest,
        applied: list[Payload],
        report: WindowReport,
    ) -> None:
        """Judge again what this validator judged: the same payloads, on the same pages, measured where it measured."""
        judged = [receipt for receipt in receipts.receipts if receipt.judgement is not None]
        payloads, gone = await self.replica.judged(manifest, applied, judged)
        try:
            pages = await self._pages(receipts, report)
        except (ChainError, StorageError) as error:
            if isinstance(error, ChainUnreachable):
                raise
            gone.append(f"what was scored cannot be drawn again: {error}")
            pages = None
        for words in gone:
            report.gap(f"losses of validator uid {validator.source.uid} cannot be recomputed: {words}")
        if gone or pages is None or not judged:
            return
        updates = {uid: payload.update for uid, payload in payloads.items()}
        contributed = {c.uid for c in manifest.contributions}
        best: tuple[float, str, dict[int, Findings]] | None = None
        for precision in (validator.precision,) if validator.precision else _DTYPES:
            self.say(f"window {receipts.window}: {len(updates)} payloads as uid {validator.source.uid} judged them")
            findings = await asyncio.to_thread(self._evaluate, precision, receipts, updates, *pages)
            apart = self._apart(book, receipts, findings, contributed)
            if best is None or apart < best[0]:
                best = apart, precision, findings
            if apart < _SAME_LOSS:
                break
        assert best is not None
        validator.precision = best[1]
        compare_judgements(book, receipts, best[2], contributed, self.run, report)
        await self._held_out(validator, receipts, report)

    def _evaluate(
        self,
        precision: str,
        receipts: Receipts,
        updates: dict[int, SparseUpdate],
        random: list[np.ndarray],
        own: dict[int, list[np.ndarray]],
    ) -> dict[int, Findings]:
        judge, budget = self._judge_in(precision), Budget.unlimited()
        return judge.evaluate(receipts.window, updates, tuple(own), random, own, budget, at_once=len(random))

    def _judge_in(self, precision: str) -> Judge:
        assert self.replica.state is not None
        return Judge(self.replica.model, self.replica.state.theta, self.run, _DTYPES[precision])

    def _apart(
        self, book: Scorebook, receipts: Receipts, findings: dict[int, Findings], contributed: set[int]
    ) -> float:
        """How far the losses lie apart at the median: a single lie must not choose the precision."""
        found = judgement_differences(book, receipts, findings, contributed, self.run)
        return float(np.median([each.size for each in found if "loss" in each.kind]))

    async def _pages(
        self, receipts: Receipts, report: WindowReport
    ) -> tuple[list[np.ndarray], dict[int, list[np.ndarray]]]:
        """The random pages, and the own pages of everyone who was measured."""
        assert self.dataset is not None
        window, chain = deadlines(receipts.window, self.run.time), self.look.chain
        start, judge = await chain.block(window.start_block), await chain.block(window.key_block)
        assignment = Assignment(self.run, start.hash, self.dataset.index.pages)
        drawn = assignment.scored_random(judge.hash)[: len(receipts.random_pages)]
        if receipts.random_pages != drawn:
            report.fault(
                f"validator {short(receipts.signer)} judged on random pages {list(receipts.random_pages)}, the block's "
                f"hash draws {list(drawn)}"
            )
        measured = [r.uid for r in receipts.receipts if r.judgement and r.judgement.own_loss_after is not None]
        own = {uid: await self._read(assignment.scored_own(uid, judge.hash)) for uid in measured}
        return await self._read(drawn), own

    async def _read(self, numbers: tuple[int, ...]) -> list[np.ndarray]:
        assert self.dataset is not None
        return list(await asyncio.gather(*(self.dataset.read_page(number) for number in numbers)))

    async def _held_out(self, validator: _Validator, receipts: Receipts, report: WindowReport) -> None:
        """The loss on the held-out pages of this state: before this window, and after the last."""
        assert self.dataset is not None
        assert validator.precision is not None
        pages = [await self.dataset.read_held_out(n) for n in range(self.dataset.index.held_out_pages)]
        losses = await asyncio.to_thread(self._judge_in(validator.precision).losses, np.concatenate(pages))
        found = float(bounded_losses(losses).mean())
        report.compare(held_out_difference(receipts, "before", receipts.held_out_loss_before, found))
        last = validator.last
        if last is not None and last.window == receipts.window - 1:
            report.compare(held_out_difference(last, "after", last.held_out_loss_after, found))
        validator.last = receipts
