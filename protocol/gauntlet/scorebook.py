"""The scorebook: everything a validator remembers of the peers, as one value (protocol §14).

`update` is a pure function: the same events give the same scores, on another machine and after a restart.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Annotated

from blake3 import blake3
from openskill.models import PlackettLuce
from pydantic import Field

from protocol.errors import LedgerError, Reason
from protocol.gauntlet.checks import MISSING_REASONS
from protocol.gauntlet.evaluation import is_bad_window, sign_of, sync_score
from protocol.identity import Address, Digest, Document, digest_of
from protocol.ledger.manifest import Uid
from protocol.run import Run

MU = 25.0
SIGMA = 25.0 / 3.0
HEAT = 4
"""Players of a match. In a match of all the rating of each moves the less the more there are, and σ hardly falls: with
twelve equals, half of them would be rated below 0 for tens of windows."""

_DOUBTED = 0.5
"""Unique work that one who trains on all of its pages does not fall below: honest means were 0.6 to 0.9."""


class PeerRecord(Document):
    """What is known of one hotkey in one slot. `unique_work` is the weighted mean in [−1, 1] over the `judged` windows
    behind it, later ones counting more, `unique_work_error` the standard error that this mean has for one who does no
    work of its own, `signs` the signs of the latest gains (1, −1, or 0 within the noise), `absent` the windows in a row
    in which no seal was seen, `last_measured` the window in which it was last measured, its own pages too (−1: never),
    `overstates` whether its first-order gain promised too much then."""

    uid: Uid
    hotkey: Address
    mu: float = MU
    sigma: float = SIGMA
    unique_work: float = 0.0
    unique_work_error: float = 0.0
    judged: int = 0
    standing: float = 1.0
    steps_behind: int = 0
    signs: tuple[int, ...] = ()
    absent: int = 0
    last_measured: int = -1
    overstates: bool = False

    @property
    def rating(self) -> float:
        """μ − 3σ: the skill this peer has almost surely."""
        return self.mu - 3 * self.sigma

    def sync(self, run: Run) -> float:
        """Sync score in [0, 1]."""
        return sync_score(self.steps_behind, run.gauntlet.sync_steps)

    def is_active(self, run: Run) -> bool:
        """Whether it took part lately."""
        return self.absent < run.penalties.inactive_windows

    def works_alone(self, run: Run) -> bool:
        """Whether its unique work is evident: more than chance gives one who does none."""
        return self.unique_work >= run.gauntlet.unique_work_errors * self.unique_work_error

    def is_doubted(self, run: Run) -> bool:
        """Whether its unique work is not evident and hardly half of what there can be: not merely too early to tell."""
        most = self.unique_work + run.gauntlet.unique_work_errors * self.unique_work_error
        return not self.works_alone(run) and most < _DOUBTED

    def final(self, run: Run) -> float:
        """The score that is paid: max(0, rating) · max(0, unique work) · sync · standing, 0 when inactive or while its
        unique work is not evident."""
        if not self.is_active(run) or not self.works_alone(run):
            return 0.0
        return max(0.0, self.rating) * max(0.0, self.unique_work) * self.sync(run) * self.standing


class Event(Document):
    """What happened to one peer in one window. `reason` is None when every check passed; `gain` is the gain on the
    shared random pages, `gain_error` its standard error, and `places` its place on each of them (equal places are
    draws), none when it was not judged. `unique_work` and `unique_work_error` are this window's evidence. Gain and
    unique work are None when they were not found. `measured` says whether it was measured on random and own pages,
    `overstates` what came of comparing both gains then."""

    uid: Uid
    hotkey: Address
    reason: Annotated[Reason, Field(strict=False)] | None
    steps_behind: int = 0
    gain: float | None = None
    gain_error: float = 0.0
    places: tuple[int, ...] = ()
    measured: bool = False
    overstates: bool = False
    unique_work: float | None = None
    unique_work_error: float = 0.0


class Scorebook(Document):
    """All records in ascending uid, after the events of every window before `window`."""

    run_digest: Digest
    window: int
    peers: tuple[PeerRecord, ...] = ()

    def digest(self) -> str:
        """BLAKE3 of the canonical form, which receipts name."""
        return digest_of(self.canonical())

    def of(self, uid: int, hotkey: str) -> PeerRecord:
        """The record of this hotkey in this slot; a fresh one if the slot changed hands or is new."""
        for record in self.peers:
            if record.uid == uid and record.hotkey == hotkey:
                return record
        return PeerRecord(uid=uid, hotkey=hotkey)

    def knows(self, uid: int, hotkey: str) -> bool:
        """Whether this hotkey ever took part from this slot."""
        return any(record.uid == uid and record.hotkey == hotkey for record in self.peers)


def update(book: Scorebook, window: int, events: Sequence[Event], run: Run) -> Scorebook:
    """The scorebook after `window`. Events are one per peer, in any order; `LedgerError` if a window is repeated or
    places are on different numbers of pages.

    A peer without an event keeps its record as it is: a window of which a validator saw nothing costs nobody anything.
    Nobody can hide behind that: whoever holds a slot and cannot be read has the event that it was unreachable.
    """
    if window < book.window:
        raise LedgerError(f"the scorebook already holds window {window}")
    events = sorted(events, key=lambda event: event.uid)
    ratings = _play(book, window, events, run)
    amnesty = is_bad_window([e.gain for e in events if e.gain is not None], run.penalties.amnesty_rank)
    records = [_advance(book.of(e.uid, e.hotkey), e, ratings.get(e.uid), amnesty, window, run) for e in events]
    seen = {event.uid for event in events}
    records += [record for record in book.peers if record.uid not in seen]
    records.sort(key=lambda record: record.uid)
    return Scorebook(run_digest=book.run_digest, window=window + 1, peers=tuple(records))


def _play(book: Scorebook, window: int, events: Sequence[Event], run: Run) -> dict[int, tuple[float, float]]:
    """(μ, σ) by uid after the Plackett–Luce matches of a window: on each random page all players meet in heats of
    about `HEAT`. Judged peers are placed by gain; absent and rejected ones, and those who are doubted to work alone,
    share the last place, or one could rise over those who work by training on what all are compared on. Peers that
    passed the checks but were not judged sit the window out."""
    ratings: dict[int, tuple[float, float]] = {}
    ranked: dict[int, tuple[int, ...]] = {}
    for event in events:
        record = book.of(event.uid, event.hotkey)
        if event.places or (event.reason and record.is_active(run)):
            ratings[event.uid] = record.mu, record.sigma
            if not record.is_doubted(run):
                ranked[event.uid] = event.places
    model = PlackettLuce(mu=MU, sigma=SIGMA, beta=run.gauntlet.rating_beta, tau=run.gauntlet.rating_tau)
    pages = {len(event.places) for event in events if event.places}
    if len(pages) > 1:
        raise LedgerError(f"the events of window {window} have places on different numbers of random pages")
    for page in range(max(pages, default=0)):
        places = {uid: places[page] for uid, places in ranked.items() if places}
        last = 1 + max(places.values(), default=0)
        for heat in _heats(ratings, window, page):
            teams = [[model.rating(mu=mu, sigma=sigma)] for mu, sigma in (ratings[uid] for uid in heat)]
            rated = model.rate(teams, ranks=[float(places.get(uid, last)) for uid in heat])
            ratings |= {uid: (team[0].mu, team[0].sigma) for uid, team in zip(heat, rated, strict=True)}
    return ratings


def _heats(uids: Collection[int], window: int, page: int) -> list[list[int]]:
    """All uids in groups of `HEAT` to 2·`HEAT` − 1, drawn anew for each page; none for a lone one."""
    if len(uids) < 2:
        return []
    drawn = sorted(uids, key=lambda uid: blake3(f"{window} {page} {uid}".encode()).digest())
    heats = max(1, len(drawn) // HEAT)
    return [sorted(drawn[number::heats]) for number in range(heats)]


def _advance(
    old: PeerRecord, event: Event, rating: tuple[float, float] | None, amnesty: bool, window: int, run: Run
) -> PeerRecord:
    mu, sigma = rating or (old.mu, old.sigma)
    signs = old.signs if event.gain is None else (*old.signs, sign_of(event.gain, event.gain_error))
    signs = signs[-run.penalties.negative_span :]
    work, work_error = _evidence(old, event, run)
    return PeerRecord(
        uid=event.uid,
        hotkey=event.hotkey,
        mu=mu,
        sigma=sigma,
        unique_work=work,
        unique_work_error=work_error,
        judged=old.judged + (event.unique_work is not None),
        standing=_standing(old.standing, event, signs, amnesty, run),
        steps_behind=event.steps_behind,
        signs=signs,
        absent=old.absent + 1 if event.reason in (Reason.NO_SEAL, Reason.UNREACHABLE) else 0,
        last_measured=window if event.measured else old.last_measured,
        overstates=event.overstates if event.measured else old.overstates,
    )


def _evidence(old: PeerRecord, event: Event, run: Run) -> tuple[float, float]:
    """Unique work and its error, this window's value included: a mean with weights (1 − rate)^age."""
    if event.unique_work is None:
        return old.unique_work, old.unique_work_error
    rate = run.gauntlet.unique_work_rate
    past = (1 - rate) * (1 - (1 - rate) ** old.judged) / rate
    mean = (past * old.unique_work + event.unique_work) / (past + 1)
    return mean, math.hypot(past * old.unique_work_error, event.unique_work_error) / (past + 1)


def _standing(old: float, event: Event, signs: tuple[int, ...], amnesty: bool, run: Run) -> float:
    penalties = run.penalties
    if event.reason in MISSING_REASONS:
        return old * penalties.missing
    if event.reason is not None:
        return old * penalties.rejected
    if not amnesty and event.gain is not None and event.gain < 0 and sum(signs) < 0:
        return old * penalties.negative
    return min(1.0, old + penalties.recovery)
