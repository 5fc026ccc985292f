"""The scorebook made again from receipts, which hold every number that goes into it (protocol §14)."""

from __future__ import annotations

from protocol.gauntlet.receipts import Receipt, Receipts
from protocol.gauntlet.scorebook import Event, PeerRecord, Scorebook
from protocol.run import Run


def event_of(receipt: Receipt) -> Event:
    """What happened to this peer, as the scorebook was told."""
    judgement = receipt.judgement
    said = Event(uid=receipt.uid, hotkey=receipt.hotkey, reason=receipt.reason, steps_behind=receipt.steps_behind)
    if judgement is None:
        return said
    return said.model_copy(
        update={
            "gain": judgement.gain,
            "gain_error": judgement.gain_error,
            "rank": judgement.rank,
            "measured": judgement.own_loss_after is not None,
            "unique_work": judgement.unique_work,
        }
    )


def book_before(receipts: Receipts, run: Run) -> Scorebook:
    """The scorebook before the window of `receipts`, as far as they tell: exact in the first window of the run; later
    without what no receipt says, and so without what `windows_remembered` windows would bring back."""
    if receipts.window == run.time.first_window:
        return Scorebook(run_digest=run.digest(), window=receipts.window)
    peers = tuple(
        PeerRecord(
            uid=receipt.uid,
            hotkey=receipt.hotkey,
            mu=receipt.before.mu,
            sigma=receipt.before.sigma,
            unique_work=receipt.before.unique_work,
            standing=receipt.before.standing,
        )
        for receipt in receipts.receipts
    )
    return Scorebook(run_digest=run.digest(), window=receipts.window, peers=peers)


def windows_remembered(run: Run) -> int:
    """Windows after which nothing matters any more of what the scorebook knows and receipts do not say: the signs of
    the latest gains, how often a peer was judged, for how long it was away."""
    return max(run.gauntlet.unique_work_windows, run.penalties.negative_span, run.penalties.inactive_windows)
