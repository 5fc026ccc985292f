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
    UniqueWork,
    bounded_losses,
    first_order_gain,
    first_order_scale,
    measured_gain,
    overstates,
    places_by_page,
    rank_by_gain,
    unique_work,
)
from protocol.gauntlet.receipts import Judgement, Receipt, Resemblance, Standing, Submission
from protocol.gauntlet.resemblance import Pair, find_pairs, name_originals
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
    `unique_work` is this window's value, None when its own pages were not evaluated. `row` are its first-order gains on
    all pages that were evaluated, float64 [pages], its row of the cross-gain matrix."""

    shared: F64
    before: F64
    after: F64 | None
    own_before: F64 | None
    own_after: F64 | None
    unique_work: UniqueWork | None
    row: F64

    @property
    def pages(self) -> int:
        """How many random pages it was evaluated on."""
        return len(self.shared)

    @property
    def measured(self) -> Gain | None:
        """The measured gain, if it was."""
        return None if self.after is None else measured_gain(self.before, self.after)


@dataclass(frozen=True, slots=True)
class Verdict:
    """A closed window: the scorebook after it, its lists and weights, and a receipt for each peer."""

    book: Scorebook
    gather: tuple[int, ...]
    reserve: tuple[int, ...]
    weights: dict[int, float]
    receipts: tuple[Receipt, ...]


def unique_work_of_all(own: Mapping[int, Mapping[int, F64]], shared: Mapping[int, F64]) -> dict[int, UniqueWork | None]:
    """This window's unique work of every peer whose own pages were evaluated. `own[p][q]` are the first-order gains
    of payload q per own page of p, `shared[q]` those per random page."""
    found: dict[int, UniqueWork | None] = {}
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
    judgements = _judgements(book, outcomes, findings, run)
    after = update(book, window, [event_of(o, judgements.get(o.uid)) for o in outcomes], run)
    gather, reserve = select(after, run)
    weights = weights_of(after, gather, reserve, run)
    receipts = []
    for outcome in sorted(outcomes, key=lambda o: o.uid):
        receipts.append(
            Receipt(
                uid=outcome.uid,
                hotkey=outcome.hotkey,
                reason=outcome.reason,
                detail=outcome.detail[:200],
                steps_behind=outcome.steps_behind,
                contributed=outcome.uid in contributed,
                submission=outcome.submission,
                judgement=judgements.get(outcome.uid),
                before=standing_of(book.of(outcome.uid, outcome.hotkey), run),
                after=standing_of(after.of(outcome.uid, outcome.hotkey), run),
                list_next="gather" if outcome.uid in gather else "reserve" if outcome.uid in reserve else "none",
                weight=weights.get(outcome.uid, 0.0),
            )
        )
    return Verdict(after, gather, reserve, weights, tuple(receipts))


def event_of(peer: Outcome | Receipt, judgement: Judgement | None) -> Event:
    """What the scorebook is told of one peer, whose judgement is None if it has none."""
    if judgement is None:
        return Event(uid=peer.uid, hotkey=peer.hotkey, reason=peer.reason, steps_behind=peer.steps_behind)
    return Event(
        uid=peer.uid,
        hotkey=peer.hotkey,
        reason=peer.reason,
        steps_behind=peer.steps_behind,
        gain=judgement.gain,
        gain_error=judgement.gain_error,
        places=judgement.places,
        measured=judgement.own_loss_after is not None,
        overstates=bool(judgement.overstates),
        unique_work=-1.0 if judgement.resembles else judgement.unique_work,
        unique_work_error=judgement.unique_work_error or 0.0,
    )


def _judgements(
    book: Scorebook, outcomes: Sequence[Outcome], findings: Mapping[int, Findings], run: Run
) -> dict[int, Judgement]:
    """The judgement of every evaluated payload. Whoever's first-order gains overstated when it was last measured
    plays no match by them."""
    first = {uid: first_order_gain(found.shared) for uid, found in findings.items()}
    measured = {uid: found.measured for uid, found in findings.items()}
    scale = first_order_scale([(gain, first[uid]) for uid, gain in measured.items() if gain])
    scaled = {uid: first_order_gain(found.shared, scale) for uid, found in findings.items()}
    gains = {uid: gain or scaled[uid] for uid, gain in measured.items()}
    suspects = {o.uid for o in outcomes if book.of(o.uid, o.hotkey).overstates}
    players = {uid: gain for uid, gain in gains.items() if gain.measured or uid not in suspects}
    pages = next((found.pages for found in findings.values()), 0)
    places = places_by_page(players, pages, run.gauntlet.draw_errors)
    ranks = rank_by_gain(gains, run.gauntlet.draw_errors)
    pairs = find_pairs({uid: found.row for uid, found in findings.items()})
    work = {uid: found.unique_work.value for uid, found in findings.items() if found.unique_work}
    repeated = name_originals(pairs, work)
    return {
        uid: Judgement(
            gain=gains[uid].value,
            gain_error=gains[uid].error,
            first_order_gain=first[uid].value,
            rank=ranks[uid],
            places=places.get(uid, ()),
            overstates=None if (gain := measured[uid]) is None else overstates(gain, scaled[uid], pages),
            loss_before=float(bounded_losses(found.before).mean()),
            loss_after=_mean(found.after),
            own_loss_before=_mean(found.own_before),
            own_loss_after=_mean(found.own_after),
            unique_work=found.unique_work.value if found.unique_work else None,
            unique_work_error=found.unique_work.error if found.unique_work else None,
            resembles=_resemblance(repeated[uid], uid) if uid in repeated else None,
        )
        for uid, found in findings.items()
    }


def _resemblance(pair: Pair, uid: int) -> Resemblance:
    return Resemblance(uid=pair.first if pair.second == uid else pair.second, correlation=pair.correlation)


def _mean(losses: F64 | None) -> float | None:
    return None if losses is None else float(bounded_losses(losses).mean())


def standing_of(record: PeerRecord, run: Run) -> Standing:
    """What a receipt says of this record."""
    return Standing(
        rating=record.rating,
        mu=record.mu,
        sigma=record.sigma,
        unique_work=record.unique_work,
        unique_work_error=record.unique_work_error,
        judged=record.judged,
        signs=record.signs,
        absent=record.absent,
        last_measured=record.last_measured,
        overstates=record.overstates,
        sync=record.sync(run),
        standing=record.standing,
        final=record.final(run),
    )
