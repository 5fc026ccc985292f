"""The scorebook: everything a validator remembers of the peers, as one value (protocol §14).

`update` is a pure function: the same events give the same scores, on another machine and after a restart.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from openskill.models import PlackettLuce
from pydantic import Field

from protocol.errors import LedgerError, Reason
from protocol.gauntlet.checks import MISSING_REASONS
from protocol.gauntlet.evaluation import is_bad_window, sync_score
from protocol.identity import Address, Digest, Document, digest_of
from protocol.ledger.manifest import Uid
from protocol.run import Run

MU = 25.0
SIGMA = 25.0 / 3.0
NOISE_ERRORS = 2.0
"""A gain closer to zero than this many standard errors says neither that a peer helps nor that it harms."""


class PeerRecord(Document):
    """What is known of one hotkey in one slot. `unique_work` is the moving average in [−1, 1], `judged` the windows
    behind it, `signs` the signs of the latest gains (1, −1, or 0 within the noise), `absent` the windows in a row in
    which no seal was seen, `last_measured` the window in which it was last measured, its own pages too (−1: never)."""

    uid: Uid
    hotkey: Address
    mu: float = MU
    sigma: float = SIGMA
    unique_work: float = 0.0
    judged: int = 0
    standing: float = 1.0
    steps_behind: int = 0
    signs: tuple[int, ...] = ()
    absent: int = 0
    last_measured: int = -1

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
        """Whether its unique work is beyond doubt so far: above the threshold, or too young to tell."""
        gauntlet = run.gauntlet
        return self.judged < gauntlet.unique_work_windows or self.unique_work >= gauntlet.unique_work_threshold

    def final(self, run: Run) -> float:
        """The score that is paid: max(0, rating) · max(0, unique work) · sync · standing, 0 when inactive."""
        if not self.is_active(run) or not self.works_alone(run):
            return 0.0
        return max(0.0, self.rating) * max(0.0, self.unique_work) * self.sync(run) * self.standing


class Event(Document):
    """What happened to one peer in one window. `reason` is None when every check passed; `gain` is the gain on the
    shared random pages, `gain_error` its standard error, and `rank` its rank (equal ranks are draws); `unique_work` is
    this window's value. Gain, rank and unique work are None when the peer was not judged. `measured` says whether
    it was measured on random and own pages."""

    uid: Uid
    hotkey: Address
    reason: Annotated[Reason, Field(strict=False)] | None
    steps_behind: int = 0
    gain: float | None = None
    gain_error: float = 0.0
    rank: int | None = None
    measured: bool = False
    unique_work: float | None = None


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
    """The scorebook after `window`. Events are one per peer, in any order; `LedgerError` if a window is repeated.

    A peer without an event keeps its record as it is: a window of which a validator saw nothing costs nobody anything.
    Nobody can hide behind that: whoever holds a slot and cannot be read has the event that it was unreachable.
    """
    if window < book.window:
        raise LedgerError(f"the scorebook already holds window {window}")
    events = sorted(events, key=lambda event: event.uid)
    ratings = _play(book, events, run)
    amnesty = is_bad_window([e.gain for e in events if e.gain is not None], run.penalties.amnesty_rank)
    records = [_advance(book.of(e.uid, e.hotkey), e, ratings.get(e.uid), amnesty, window, run) for e in events]
    seen = {event.uid for event in events}
    records += [record for record in book.peers if record.uid not in seen]
    records.sort(key=lambda record: record.uid)
    return Scorebook(run_digest=book.run_digest, window=window + 1, peers=tuple(records))


def _play(book: Scorebook, events: Sequence[Event], run: Run) -> dict[int, tuple[float, float]]:
    """One Plackett–Luce match: judged peers by rank, absent and rejected ones together in last place. Peers that
    passed the checks but were not judged sit this one out."""
    last = 1 + max((e.rank for e in events if e.rank is not None), default=0)
    players = [e for e in events if e.rank is not None or (e.reason and book.of(e.uid, e.hotkey).is_active(run))]
    if len(players) < 2:
        return {}
    model = PlackettLuce(mu=MU, sigma=SIGMA, beta=run.gauntlet.rating_beta, tau=run.gauntlet.rating_tau)
    teams = [[model.rating(mu=r.mu, sigma=r.sigma)] for r in (book.of(e.uid, e.hotkey) for e in players)]
    rated = model.rate(teams, ranks=[float(last if e.rank is None else e.rank) for e in players])
    return {e.uid: (team[0].mu, team[0].sigma) for e, team in zip(players, rated, strict=True)}


def _advance(
    old: PeerRecord, event: Event, rating: tuple[float, float] | None, amnesty: bool, window: int, run: Run
) -> PeerRecord:
    mu, sigma = rating or (old.mu, old.sigma)
    signs = old.signs if event.gain is None else (*old.signs, _sign(event.gain, event.gain_error))
    signs = signs[-run.penalties.negative_span :]
    rate = run.gauntlet.unique_work_rate
    fresh = event.unique_work
    return PeerRecord(
        uid=event.uid,
        hotkey=event.hotkey,
        mu=mu,
        sigma=sigma,
        unique_work=old.unique_work if fresh is None else (1 - rate) * old.unique_work + rate * fresh,
        judged=old.judged + (fresh is not None),
        standing=_standing(old.standing, event, signs, amnesty, run),
        steps_behind=event.steps_behind,
        signs=signs,
        absent=old.absent + 1 if event.reason in (Reason.NO_SEAL, Reason.UNREACHABLE) else 0,
        last_measured=window if event.measured else old.last_measured,
    )


def _sign(gain: float, error: float) -> int:
    noise = NOISE_ERRORS * error
    return 1 if gain > noise else -1 if gain < -noise else 0


def _standing(old: float, event: Event, signs: tuple[int, ...], amnesty: bool, run: Run) -> float:
    penalties = run.penalties
    if event.reason in MISSING_REASONS:
        return old * penalties.missing
    if event.reason is not None:
        return old * penalties.rejected
    if not amnesty and event.gain is not None and event.gain < 0 and sum(signs) < 0:
        return old * penalties.negative
    return min(1.0, old + penalties.recovery)
