"""The scorebook made again from receipts, which hold every number that goes into it (protocol §14)."""

from __future__ import annotations

from protocol.gauntlet.receipts import Receipt, Receipts
from protocol.gauntlet.scorebook import Event, PeerRecord, Scorebook
from protocol.gauntlet.verdict import event_of
from protocol.run import Run


def events_of(receipts: Receipts) -> tuple[Event, ...]:
    """What the scorebook was told of this window."""
    return tuple(event_of(receipt, receipt.judgement) for receipt in receipts.receipts)


def book_before(receipts: Receipts, run: Run) -> Scorebook:
    """The scorebook before the window of `receipts`, as far as they tell: exact in the first window of the run; later
    without the peers that have no receipt in this window."""
    if receipts.window == run.time.first_window:
        return Scorebook(run_digest=run.digest(), window=receipts.window)
    return Scorebook(
        run_digest=run.digest(),
        window=receipts.window,
        peers=tuple(_record_before(receipt) for receipt in receipts.receipts),
    )


def _record_before(receipt: Receipt) -> PeerRecord:
    """All that a receipt leaves out is by how many windows the peer was behind, which counts in its own window only."""
    before = receipt.before
    return PeerRecord(
        uid=receipt.uid,
        hotkey=receipt.hotkey,
        mu=before.mu,
        sigma=before.sigma,
        unique_work=before.unique_work,
        unique_work_error=before.unique_work_error,
        judged=before.judged,
        standing=before.standing,
        signs=before.signs,
        absent=before.absent,
        last_measured=before.last_measured,
        overstates=before.overstates,
    )
