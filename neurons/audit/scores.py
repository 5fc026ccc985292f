"""Comparing receipts with what comes out here: scores from the events they name, judgements from the payloads. Pure."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Collection, Iterator, Mapping, Sequence

from neurons.audit.report import BEFORE, Difference, WindowReport
from neurons.leaderboard.words import short
from protocol.errors import LedgerError
from protocol.gauntlet.evaluation import compared_pages
from protocol.gauntlet.history import events_of
from protocol.gauntlet.receipts import Judgement, Receipts, Standing
from protocol.gauntlet.scorebook import Scorebook, update
from protocol.gauntlet.selection import contributors, select
from protocol.gauntlet.slots import seats
from protocol.gauntlet.verdict import Findings, Outcome, close_window, standing_of
from protocol.gauntlet.weights import weights_of
from protocol.identity import Document
from protocol.ledger.manifest import Manifest, Seat
from protocol.run import Run

SCORE_TOLERANCE = 1e-6
"""Scores and weights follow from a receipt's own numbers by a few operations in binary64: all that another machine may
make of them is the last digits of an exponential function."""

TOLERANCES = {"loss": 1e-3, "gain": 1e-4, "rank": 1.0, "places": 0.3, "resembles": 0.02}
"""What a recomputed number may differ by on another machine: losses in nats, gains as a share of the loss, one place
where two peers are about as good, the mean of the places on all pages, a correlation. About what fp32 and bf16 differ
by on the demo's model (8 windows, 40 judgements: 1e-3 nats, 5e-5 of the loss); in one precision it is far less."""


def compare_scores(book: Scorebook, receipts: Receipts, run: Run, report: WindowReport, *, is_whole: bool) -> Scorebook:
    """Make the scores of one window again from the events that the receipts name, on `book`, and take note of every
    difference. Returns the scorebook after the window. `is_whole` says whether `book` was made from the receipts of
    every window before."""
    for receipt in receipts.receipts:
        record = standing_of(book.of(receipt.uid, receipt.hotkey), run)
        _compare(report, receipts, receipt.uid, BEFORE, receipt.before, record)
    try:
        after = update(book, receipts.window, events_of(receipts), run)
    except LedgerError as error:
        report.fault(f"the receipts of {short(receipts.signer)} cannot follow those before: {error}")
        return book
    gather, reserve = select(after, run)
    weights = weights_of(after, gather, reserve, run)
    exact = True
    for receipt in receipts.receipts:
        record = standing_of(after.of(receipt.uid, receipt.hotkey), run)
        _compare(report, receipts, receipt.uid, "", receipt.after, record)
        exact = exact and receipt.after == record
        weight = weights.get(receipt.uid, 0.0)
        report.compare(_difference(receipts, receipt.uid, "weight", receipt.weight, weight, SCORE_TOLERANCE))
        on_list = "gather" if receipt.uid in gather else "reserve" if receipt.uid in reserve else "none"
        if receipt.list_next != on_list and is_whole:
            report.fault(
                f"uid {receipt.uid}: validator {short(receipts.signer)} says list {receipt.list_next}, its scores give "
                f"{on_list}"
            )
        report.scores += 1
    if is_whole and exact and receipts.scorebook_digest != after.digest():
        report.fault(
            f"validator {short(receipts.signer)} names scorebook {receipts.scorebook_digest[:16]}…, its receipts give "
            f"{after.digest()[:16]}…, though every score is the same"
        )
    return after


def compare_with_manifest(receipts: Receipts, manifest: Manifest, report: WindowReport) -> None:
    """Whether receipts say of each peer what the manifest of their window says."""
    judge = short(receipts.signer)
    applied = {(c.uid, c.hotkey) for c in manifest.contributions}
    named = {(r.uid, r.hotkey): r for r in receipts.receipts}
    for peer, receipt in named.items():
        if receipt.contributed != (peer in applied):
            says, does = ("applied", "does not apply") if receipt.contributed else ("not applied", "applies")
            report.fault(f"uid {peer[0]}: validator {judge} says {says}, the manifest {does} it")
    if receipts.signer != manifest.signer:
        return  # another validator may have seen a peer that this one did not
    for uid, hotkey in sorted(applied - named.keys()):
        report.fault(f"uid {uid} ({short(hotkey)}): applied by validator {judge}, who has no receipt for it")
    for refusal in manifest.rejected:
        if (refusal.uid, refusal.hotkey) not in named:
            report.fault(
                f"uid {refusal.uid} ({short(refusal.hotkey)}): rejected for {refusal.reason} by validator {judge}, who "
                "has no receipt for it"
            )


def compare_choice(
    receipts: Receipts,
    manifest: Manifest,
    gather: Sequence[Seat],
    reserve: Sequence[Seat],
    run: Run,
    report: WindowReport,
) -> None:
    """Whether a manifest applies what its signer's receipts and the lists in effect say. Without a list whoever was
    found to do harm is left out."""
    applied = {Seat(uid=c.uid, hotkey=c.hotkey) for c in manifest.contributions}
    valid = {Seat(uid=r.uid, hotkey=r.hotkey) for r in receipts.receipts if r.reason is None} | applied
    for uid in sorted({*contributors(gather, reserve, valid, run)} - {seat.uid for seat in applied}):
        receipt = receipts.of(uid)
        judgement = receipt.judgement if receipt else None
        if not gather and judgement is not None and judgement.first_order_gain < 0:
            continue
        report.fault(
            f"uid {uid}: not applied by validator {short(manifest.signer)}, though its receipts find nothing wrong "
            f"with it and {'it is on the list in effect' if gather else 'there was no list'}"
        )


def compare_lists(book: Scorebook, manifest: Manifest, run: Run, report: WindowReport) -> None:
    """Whether the lists of a manifest are those that its signer's scorebook gave when it was written."""
    for name, said, found in zip(
        ("gather", "reserve"), (manifest.gather, manifest.reserve), select(book, run), strict=True
    ):
        if said != seats(book, found):
            report.fault(
                f"the manifest's {name} list is {[seat.uid for seat in said]}, the receipts of its signer "
                f"{short(manifest.signer)} give {list(found)}, of {[short(seat.hotkey) for seat in seats(book, found)]}"
            )


def compare_judgements(
    book: Scorebook,
    receipts: Receipts,
    findings: Mapping[int, Findings],
    contributed: Collection[int],
    run: Run,
    report: WindowReport,
) -> None:
    """Compare every judgement with the one that `findings`, made here, give on the scorebook before the window."""
    for difference in judgement_differences(book, receipts, findings, contributed, run):
        report.compare(difference)
    report.judgements += len(findings)


def judgement_differences(
    book: Scorebook,
    receipts: Receipts,
    findings: Mapping[int, Findings],
    contributed: Collection[int],
    run: Run,
) -> Iterator[Difference]:
    """Each number of each judgement, as said and as found."""
    outcomes = [Outcome(r.uid, r.hotkey, r.reason, r.detail, r.steps_behind, r.submission) for r in receipts.receipts]
    verdict = close_window(book, receipts.window, outcomes, findings, contributed, run)
    found = {receipt.uid: receipt.judgement for receipt in verdict.receipts}
    for receipt in receipts.receipts:
        made = found[receipt.uid]
        if receipt.judgement is None or made is None:
            continue
        for name in Judgement.model_fields:
            if pair := _pair(receipt.judgement, made, name):
                tolerance = _tolerance(name, run.gauntlet.own_pages, len(receipts.random_pages))
                yield _difference(receipts, receipt.uid, name, *pair, tolerance)


def _tolerance(name: str, own_pages: int, random_pages: int) -> float:
    if name == "unique_work":
        # A share of pairs of pages: two of them may turn.
        return 4.0 / math.prod(compared_pages(own_pages, random_pages))
    return next((value for part, value in TOLERANCES.items() if part in name), 0.0)


def _pair(said: Document, found: Document, name: str) -> tuple[float, float] | None:
    """The numbers of a field that lie furthest apart; one is not a number where it has no counterpart. None where
    there is none in either."""
    left, right = _numbers(getattr(said, name)), _numbers(getattr(found, name))
    if name == "places" and len(left) == len(right) and left:
        # Two that are about as good may change places on a page; what counts is where one stands on the whole.
        return statistics.fmean(left), statistics.fmean(right)
    pairs = itertools.zip_longest(left, right, fillvalue=math.nan)
    # What is not a number is further apart than anything.
    return max(pairs, key=lambda pair: (math.isnan(sum(pair)), abs(pair[0] - pair[1])), default=None)


def _numbers(value: object) -> tuple[float, ...]:
    """A value as numbers: none for null, several for a list or a document of them."""
    if value is None:
        return ()
    if isinstance(value, Document):
        return tuple(number for name in type(value).model_fields for number in _numbers(getattr(value, name)))
    if isinstance(value, tuple):
        return tuple(number for each in value for number in _numbers(each))
    assert isinstance(value, int | float)
    return (float(value),)


def _compare(report: WindowReport, receipts: Receipts, uid: int, prefix: str, said: Standing, found: Standing) -> None:
    for name in Standing.model_fields:
        if pair := _pair(said, found, name):
            tolerance = SCORE_TOLERANCE * max(1.0, abs(pair[1]))
            report.compare(_difference(receipts, uid, prefix + name, *pair, tolerance))


def _difference(
    receipts: Receipts, uid: int | None, kind: str, said: float, found: float, tolerance: float
) -> Difference:
    return Difference(kind, receipts.window, uid, receipts.signer, said, found, tolerance)


def held_out_difference(receipts: Receipts, when: str, said: float, found: float) -> Difference:
    """The loss on the held-out pages; `when` is `before` or `after`."""
    return _difference(receipts, None, f"held_out_loss_{when}", said, found, TOLERANCES["loss"])
