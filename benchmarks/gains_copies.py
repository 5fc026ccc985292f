"""Ways to tell who copied whom, tried by `benchmarks.gains` on the same payloads.

- `rows`: what a validator does, `protocol.gauntlet.resemblance` on this window's rows of first-order gains;
- `rows of two windows`: the same with the rows of the last window's payloads on this window's pages among them, so that
  copies of those can be seen too;
- `gain less median`: the plain correlation of gains less the median gain of each page, with the same thresholds;
- `peak`: the peer whose own pages a payload helps most; it always names somebody;
- `cosine` and `overlap` of the payloads themselves, the likest one from `ALIKE` on.

All but the first two know which payload is the copy.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from benchmarks.gains_peers import Traits
from protocol.gauntlet.evaluation import unique_work
from protocol.gauntlet.resemblance import LEAST_CORRELATION, LEAST_Z, find_pairs, name_originals
from protocol.sparseloco.aggregate import Trial, descents, shared_positions
from protocol.sparseloco.compress import SparseUpdate

ALIKE = 0.3
"""Cosine, or share of equal positions, from which payloads count as alike."""
ROWS, BOTH, PLAIN, PEAK, COSINE, OVERLAP = WAYS = (
    "rows", "rows of two windows", "gain less median", "peak", "cosine", "overlap"
)  # fmt: skip
HONEST, HONEST_LAST = "honest pairs", "honest, with the last window"
RING, ROBBED = "shared by four at once", "… their original accused"


@dataclass(frozen=True, slots=True)
class Tally:
    """How often something was there, and how often it was named, by kind and way."""

    counts: dict[str, dict[str, list[int]]] = field(default_factory=dict)

    def add(self, kind: str, way: str, times: int, named: int) -> None:
        """Add to the counts of `kind` and `way`."""
        entry = self.counts.setdefault(kind, {}).setdefault(way, [0, 0])
        entry[0] += int(times)
        entry[1] += int(named)

    def shares(self) -> dict[str, dict[str, float]]:
        """The share that was named."""
        return {kind: {way: named / times for way, (times, named) in of.items()} for kind, of in self.counts.items()}


@dataclass(frozen=True, slots=True, eq=False)
class Likeness:
    """Of payloads among themselves: cosines and shares of equal positions, float64 [n, n]."""

    cosine: np.ndarray
    overlap: np.ndarray

    @classmethod
    def of(cls, updates: Sequence[SparseUpdate]) -> Likeness:
        """Compare all pairs."""
        norms = np.array([np.linalg.norm(update.norms) for update in updates])
        products = np.array([_products(update, updates) for update in updates])
        shared = shared_positions(updates)
        sent = np.minimum.outer(shared.diagonal(), shared.diagonal())
        return cls(products / np.outer(norms, norms), shared / sent)

    def of_payloads(self, order: Sequence[int]) -> Likeness:
        """The part of it that is about some of them."""
        part = np.ix_(order, order)
        return Likeness(self.cosine[part], self.overlap[part])


@dataclass(frozen=True, slots=True, eq=False)
class Stage:
    """One copy, or several of one original, among the honest payloads of this window and the last: uids 0 … n − 1 are
    the honest, n … the copies, and those of the last window stand behind them in the order of their peers.

    `gains` are float64 [payloads, pages] in the order of uids, `owners` the slot of each page, int64 [pages], −1 for
    random ones. The copies share a slot n, whose pages nobody has trained on.
    """

    gains: np.ndarray
    owners: np.ndarray
    peers: int

    @property
    def copies(self) -> range:
        """The uids of the copies."""
        return range(self.peers, len(self.gains) - self.peers)

    def named(self, last_too: bool) -> tuple[dict[int, int], set[tuple[int, int]]]:
        """Whom each payload of this window repeats, and all pairs that resemble each other, by uid."""
        count = len(self.gains) - self.peers
        seen = len(self.gains) if last_too else count
        pairs = find_pairs({uid: self.gains[uid] for uid in range(seen)})
        among = tuple(pair for pair in pairs if pair.second < count)
        originals = {
            uid: pair.second if uid == pair.first else pair.first
            for uid, pair in name_originals(among, self._unique_work()).items()
        }
        # What was sent before is the original, and nearest if it correlates more than anything of this window.
        strongest = {
            uid: max((p.correlation for p in among if uid in (p.first, p.second)), default=0.0) for uid in originals
        }
        for pair in sorted(pairs, key=lambda pair: pair.correlation):
            theirs = pair.first < count <= pair.second and pair.second - count != pair.first
            if theirs and pair.correlation > strongest.get(pair.first, 0.0):
                originals[pair.first] = pair.second
        return originals, {(pair.first, pair.second) for pair in pairs}

    def less_median(self) -> np.ndarray:
        """Correlations of gains less the median gain of this window, float64 [payloads, payloads]."""
        rows = self.gains - np.median(self.gains[: -self.peers], axis=0)
        return np.corrcoef(rows)

    def favourite(self, uid: int) -> int:
        """The peer on whose pages `uid` does best against the other honest ones."""
        others = np.delete(self.gains[: self.peers], uid, axis=0) if uid < self.peers else self.gains[: self.peers]
        advantage = self.gains[uid] - np.median(others, axis=0)
        return int(np.argmax([advantage[self.owners == slot].mean() for slot in range(self.peers)]))

    def _unique_work(self) -> dict[int, float]:
        random = self.owners == -1
        found = {}
        for uid in range(len(self.gains) - self.peers):
            own = self.owners == min(uid, self.peers)
            gains = {
                other: np.concatenate([row[own], row[random]]) for other, row in enumerate(self.gains[: -self.peers])
            }
            work = unique_work(gains, slice(0, int(own.sum())), slice(int(own.sum()), None), uid)
            found[uid] = work.value if work else 0.0
        return found


def look_for(
    tally: Tally, gains: np.ndarray, owners: np.ndarray, copies: Sequence[Traits], likeness: Likeness, peers: int
) -> None:
    """Tally for each kind of copy and each way how often it was there and its original, and no other, was named. Under
    `HONEST` it is how many pairs of honest payloads there were and how many were accused, under `HONEST_LAST` the same
    of those with the last window's payload of another; under `RING` how often copies that share one computation with
    each other and their original, all at once, were said to repeat one of these, under `ROBBED` how often the original
    was.

    `gains` are float64 [payloads, pages] of the honest peers in this window and the last, of `copies`, and of the other
    halves in the order of the copies that are split; so is `likeness`. `owners` as in `Stage`.
    """
    halves = iter(range(2 * peers + len(copies), len(gains)))
    rings: dict[int, list[int]] = {}
    for place, copy in enumerate(copies, 2 * peers):
        order = [*range(peers), place, *range(peers, 2 * peers)]
        if copy.split:
            order[copy.original] = next(halves)
        elif copy.shared:
            rings.setdefault(copy.original, []).append(place)
        _alone(tally, Stage(gains[order], owners, peers), copy, likeness.of_payloads(order))
    for original, places in rings.items():
        stage = Stage(gains[[*range(peers), *places, *range(peers, 2 * peers)]], owners, peers)
        for way in (ROWS, BOTH):
            named, _ = stage.named(last_too=way == BOTH)
            group = {original, *stage.copies}
            tally.add(RING, way, len(stage.copies), sum(named.get(uid) in group for uid in stage.copies))
            tally.add(ROBBED, way, 1, original in named)


def _alone(tally: Tally, stage: Stage, copy: Traits, likeness: Likeness) -> None:
    peers, uid = stage.peers, stage.peers
    right = copy.original + (peers + 1) * copy.last
    for way in (ROWS, BOTH):
        named, pairs = stage.named(last_too=way == BOTH)
        tally.add(copy.kind, way, 1, named.get(uid) == right)
        _honest(tally, way, pairs, peers)
    least = max(LEAST_CORRELATION, math.tanh(LEAST_Z / math.sqrt(stage.gains.shape[1] - 3)))
    for way, near, limit in (
        (PLAIN, stage.less_median(), least),
        (COSINE, likeness.cosine, ALIKE),
        (OVERLAP, likeness.overlap, ALIKE),
    ):
        best = int(np.argmax(np.delete(near[uid], uid)))
        best += best >= uid
        tally.add(copy.kind, way, 1, best == right and near[uid, right] >= limit)
        _honest(tally, way, {(int(a), int(b)) for a, b in zip(*np.nonzero(near >= limit), strict=True)}, peers)
    if not copy.last:  # nobody has trained on this window's pages before it
        tally.add(copy.kind, PEAK, 1, stage.favourite(uid) == right)
    for peer in range(peers):
        tally.add(HONEST, PEAK, 1, stage.favourite(peer) != peer)


def _honest(tally: Tally, way: str, pairs: set[tuple[int, int]], peers: int) -> None:
    tally.add(HONEST, way, peers * (peers - 1) // 2, sum(a < b < peers for a, b in pairs))
    if way != ROWS:
        # With its own last payload an honest one has much in common: what it could not send then.
        others = sum(a < peers < b and b - peers - 1 != a for a, b in pairs)
        tally.add(HONEST_LAST, way, peers * (peers - 1), others)


def _products(update: SparseUpdate, updates: Sequence[SparseUpdate]) -> np.ndarray:
    dense = np.zeros(update.plan.elements, np.float32)
    indices, values = update.entries()
    dense[indices] = values
    whole = np.ones(len(update.norms), np.float32)
    return descents(dense, [Trial(other, whole, np.float32(1)) for other in updates])
