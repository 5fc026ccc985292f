"""Closing a window: what was found becomes scores, lists, weights and receipts (protocol §14).

One pure function. A validator gathers `Outcome`s and `Findings`; everything that decides money happens here.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from protocol.errors import Reason
from protocol.gauntlet.evaluation import (
    Gain,
    bounded_losses,
    first_order_gain,
    measured_gain,
    rank_by_gain,
    unique_work,
)
from protocol.gauntlet.receipts import Judgement, Receipt, Standing, Submission
from protocol.gauntlet.scorebook import Event, PeerRecord, Scorebook, update
from protocol.gauntlet.selection import select
from protocol.gauntlet.weights import weights_of
from protocol.run import Run

F64 = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Outcome:
    """How the checks of one peer ended. `reason` is None when all passed."""

    uid: int
    hotkey: str
    reason: Reason | None
    detail: str = ""
    steps_behind: int = 0
    submission: Submission | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Findings:
    """What evaluation found about one payload. `shared` are first-order gains per random page, float64 [r];
    losses are float64 per sequence, on the random pages (`after`) and on its own pages, None where not measured.
    `unique_work` is this window's value, None when its own pages were not evaluated."""

    shared: F64
    before: F64
    after: F64 | None
    own_before: F64 | None
    own_after: F64 | None
    unique_work: float | None

    @property
    def gain(self) -> Gain:
        """The gain that ranks: measured where it was, else first-order."""
        if self.after is None:
            return first_order_gain(self.shared)
        return measured_gain(self.before, self.after)


@dataclass(frozen=True, slots=True)
class Verdict:
    """A closed window: the scorebook after it, its lists and weights, and a receipt for each peer."""

    book: Scorebook
    gather: tuple[int, ...]
    reserve: tuple[int, ...]
    weights: dict[int, float]
    receipts: tuple[Receipt, ...]


def unique_work_of_all(own: Mapping[int, Mapping[int, F64]], shared: Mapping[int, F64]) -> dict[int, float | None]:
    """This window's unique work of every peer whose own pages were evaluated. `own[p][q]` are the first-order gains
    of payload q per own page of p, `shared[q]` those per random page."""
    found: dict[int, float | None] = {}
    for uid, matrix in own.items():
        pages = len(next(iter(matrix.values())))
        gains = {q: np.concatenate([values, shared[q]]) for q, values in matrix.items()}
        found[uid] = unique_work(gains, slice(0, pages), slice(pages, None), uid)
    return found


def close_window(
    book: Scorebook,
    window: int,
    outcomes: Sequence[Outcome],
    findings: Mapping[int, Findings],
    contributed: Collection[int],
    run: Run,
) -> Verdict:
    """Judge `window`. `outcomes` has one entry per peer that takes part, `findings` one per evaluated uid, and
    `contributed` the uids whose payloads the manifest applies."""
    gains = {uid: found.gain for uid, found in findings.items()}
    ranks = rank_by_gain(gains, run.gauntlet.draw_errors)
    after = update(book, window, [_event(o, gains, ranks, findings) for o in outcomes], run)
    gather, reserve = select(after, run)
    weights = weights_of(after, gather, reserve, run)
    receipts = []
    for outcome in sorted(outcomes, key=lambda o: o.uid):
        found = findings.get(outcome.uid)
        receipts.append(
            Receipt(
                uid=outcome.uid,
                hotkey=outcome.hotkey,
                reason=outcome.reason,
                detail=outcome.detail[:200],
                steps_behind=outcome.steps_behind,
                contributed=outcome.uid in contributed,
                submission=outcome.submission,
                judgement=_judgement(found, ranks[outcome.uid]) if found else None,
                before=standing_of(book.of(outcome.uid, outcome.hotkey), run),
                after=standing_of(after.of(outcome.uid, outcome.hotkey), run),
                list_next="gather" if outcome.uid in gather else "reserve" if outcome.uid in reserve else "none",
                weight=weights.get(outcome.uid, 0.0),
            )
        )
    return Verdict(after, gather, reserve, weights, tuple(receipts))


def _event(
    outcome: Outcome, gains: Mapping[int, Gain], ranks: Mapping[int, int], findings: Mapping[int, Findings]
) -> Event:
    found = findings.get(outcome.uid)
    return Event(
        uid=outcome.uid,
        hotkey=outcome.hotkey,
        reason=outcome.reason,
        steps_behind=outcome.steps_behind,
        gain=gains[outcome.uid].value if found else None,
        gain_error=gains[outcome.uid].error if found else 0.0,
        rank=ranks[outcome.uid] if found else None,
        measured=found is not None and found.own_after is not None,
        unique_work=found.unique_work if found else None,
    )


def _judgement(found: Findings, rank: int) -> Judgement:
    return Judgement(
        gain=found.gain.value,
        gain_error=found.gain.error,
        first_order_gain=first_order_gain(found.shared).value,
        rank=rank,
        loss_before=float(bounded_losses(found.before).mean()),
        loss_after=_mean(found.after),
        own_loss_before=_mean(found.own_before),
        own_loss_after=_mean(found.own_after),
        unique_work=found.unique_work,
    )


def _mean(losses: F64 | None) -> float | None:
    return None if losses is None else float(bounded_losses(losses).mean())


def standing_of(record: PeerRecord, run: Run) -> Standing:
    """What a receipt says of this record."""
    return Standing(
        rating=record.rating,
        mu=record.mu,
        sigma=record.sigma,
        unique_work=record.unique_work,
        sync=record.sync(run),
        standing=record.standing,
        final=record.final(run),
    )
