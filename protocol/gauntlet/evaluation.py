"""From losses to gains, ranks and unique work (protocol §14). Arrays in, numbers out; no model here."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import numpy.typing as npt

F64 = npt.NDArray[np.float64]

NOISE_ERRORS = 2.0
"""Standard errors below which a difference says nothing."""

_OVERSTATED_SHARE = 0.5
_SETTLED_SHARE = 0.05
_OWN_KEPT, _RANDOM_KEPT = Fraction(2, 3), Fraction(5, 6)

LOSS_CEILING = 1000.0
"""Nats. A sequence on which the model does worse than this, or answers NaN, counts as this much."""


@dataclass(frozen=True, slots=True, eq=False)
class Gain:
    """A relative gain with its standard error. `samples` are the gains per sequence (measured) or per page
    (first-order) behind it, float64 [n], in the same order for every peer of the window."""

    samples: F64
    measured: bool

    @property
    def value(self) -> float:
        """Mean gain as a share of the loss."""
        return float(self.samples.mean())

    @property
    def error(self) -> float:
        """Standard error of `value`."""
        return standard_error(self.samples)

    @property
    def sign(self) -> int:
        """1 or −1 for a gain that is apart from zero by more than the noise, else 0."""
        return sign_of(self.value, self.error)

    def on_page(self, page: int, pages: int) -> Gain:
        """The part of the samples that belongs to one of `pages` equal pages."""
        each = len(self.samples) // pages
        return Gain(self.samples[page * each : (page + 1) * each], self.measured)


def sign_of(gain: float, error: float) -> int:
    """1 or −1 for a gain that is more than `NOISE_ERRORS` standard errors from zero, else 0: it says neither that a
    peer helps nor that it harms."""
    noise = NOISE_ERRORS * error
    return 1 if gain > noise else -1 if gain < -noise else 0


def standard_error(samples: F64) -> float:
    """Standard error of the mean of float64 [n]; 0 for a single sample, which shows no spread."""
    return float(samples.std(ddof=1) / math.sqrt(len(samples))) if len(samples) > 1 else 0.0


def bounded_losses(losses: F64) -> F64:
    """Losses, float64 [n] in nats, at most `LOSS_CEILING`: a payload that breaks the model must come last, not break
    whoever judges it."""
    return np.minimum(np.nan_to_num(losses, nan=LOSS_CEILING), LOSS_CEILING)


def measured_gain(before: F64, after: F64) -> Gain:
    """(L(θ; D) − L(θ − step; D)) / L(θ; D) from bounded losses per sequence, float64 [n] in nats, before and after."""
    before = bounded_losses(before)
    return Gain((before - bounded_losses(after)) / before.mean(), measured=True)


def first_order_gain(shares: F64, scale: float = 1.0) -> Gain:
    """Gain from shares of the loss per page, float64 [n], times `scale`. One that is not finite says nothing and
    counts 0."""
    return Gain(np.where(np.isfinite(shares), shares, 0.0) * scale, measured=False)


def first_order_scale(pairs: Sequence[tuple[Gain, Gain]]) -> float:
    """What a first-order gain is to be multiplied by to be comparable with a measured one: the median quotient over
    the peers that have both, given as (measured, first-order); 1 when nothing can be said. The loss is curved, so
    that a straight line promises too much, and to all about as much."""
    quotients = [m.value / f.value for m, f in pairs if f.value > NOISE_ERRORS * f.error]
    return max(0.0, statistics.median(quotients)) if quotients else 1.0


def overstates(measured: Gain, first_order: Gain, pages: int) -> bool:
    """Whether the first-order gain promises more than twice what is measured, beyond the noise over the pages: so it
    is with steps that overshoot. `first_order` is in the measured one's scale."""
    per_page = measured.samples.reshape(pages, -1).mean(axis=1)
    excess = first_order.samples * _OVERSTATED_SHARE - per_page
    return first_order.value > 0 and float(excess.mean()) > NOISE_ERRORS * standard_error(excess)


def places_by_page(gains: Mapping[int, Gain], pages: int, draw_errors: float) -> dict[int, tuple[int, ...]]:
    """The place of each uid on each of `pages` random pages, 0 the best: one match a page. A first-order gain is one
    number a page, without a spread: it draws within the spread of a measured one."""
    matches = [
        rank_by_gain({uid: g.on_page(page, pages) for uid, g in gains.items()}, draw_errors) for page in range(pages)
    ]
    return {uid: tuple(match[uid] for match in matches) for uid in gains}


def rank_by_gain(gains: Mapping[int, Gain], draw_errors: float) -> dict[int, int]:
    """Rank of each uid, 0 the best. Going down from the best of a group, a peer draws with it as long as it is
    within `draw_errors` standard errors of the paired difference."""
    ordered = sorted(gains, key=lambda uid: (-gains[uid].value, uid))
    ranks: dict[int, int] = {}
    head = -1
    for position, uid in enumerate(ordered):
        if position == 0 or not _is_draw(gains[ordered[head]], gains[uid], draw_errors):
            head = position
        ranks[uid] = head
    return ranks


def is_settled(gains: Sequence[Gain], draw_errors: float) -> bool:
    """Whether more sequences would tell nothing new about the order of these measured gains: each neighbour in it is
    either apart from the next beyond the noise, or their difference is known to `_SETTLED_SHARE` of the whole spread,
    by its standard error."""
    ordered = sorted(gains, key=lambda gain: -gain.value)
    enough = _SETTLED_SHARE * (ordered[0].value - ordered[-1].value)
    return all(
        not _is_draw(better, worse, draw_errors) or standard_error(better.samples - worse.samples) <= enough
        for better, worse in itertools.pairwise(ordered)
    )


def _is_draw(best: Gain, other: Gain, draw_errors: float) -> bool:
    if best.measured == other.measured:  # same sequences: what they share cancels
        error = standard_error(best.samples - other.samples)
    else:
        error = math.hypot(best.error, other.error)
    return best.value - other.value <= draw_errors * error


@dataclass(frozen=True, slots=True)
class UniqueWork:
    """Evidence of one window for a peer's own work: `value` in [−1, 1], and `error`, the standard deviation that the
    value of one who has no advantage on its own pages has."""

    value: float
    error: float


def unique_work(gains: Mapping[int, F64], own: slice, shared: slice, uid: int) -> UniqueWork | None:
    """Whether `uid` does better on its own pages than on shared random ones, against what the others manage there.

    `gains` holds each peer's gain per page, float64 [pages]; `own` and `shared` select the pages of `uid` and the
    random ones. A peer's advantage on a page is its gain less the median gain of the others. Left out are the third of
    its own pages with the greatest advantage, so that learning a few of them by heart is worth nothing, and the sixth
    of the random ones, half as many, so that what is left of the own pages must stand out by itself. The value is the
    share of pairs (own, random) in which the own page has the greater advantage, less the share in which it has the
    smaller one: Mann and Whitney's U, which no outlier moves. None when `uid` was not judged or a gain is not finite.
    """
    if uid not in gains:
        return None
    others = [values for other, values in gains.items() if other != uid]
    rivals = np.median(np.stack(others), axis=0) if others else np.zeros_like(gains[uid])
    advantage = gains[uid] - rivals
    if not np.isfinite(advantage).all():
        return None
    mine, random = np.sort(advantage[own]), np.sort(advantage[shared])
    n, m = compared_pages(len(mine), len(random))
    value = float(np.sign(mine[:n, None] - random[None, :m]).mean())
    return UniqueWork(value, math.sqrt((n + m + 1) / (3 * n * m)))


def compared_pages(own: int, random: int) -> tuple[int, int]:
    """How many of so many own and random pages unique work compares."""
    return math.ceil(_OWN_KEPT * own), math.ceil(_RANDOM_KEPT * random)


def sync_score(steps_behind: int, limit: int) -> float:
    """(1 − min(x, limit)/limit)^2.5: 1 for a peer in step, 0 from `limit` windows behind."""
    return float((1.0 - min(steps_behind, limit) / limit) ** 2.5)


def is_bad_window(gains: Sequence[float], amnesty_rank: int) -> bool:
    """Whether the window was bad for all: the `amnesty_rank`-th best gain (or the median, with fewer peers) is
    negative, so a negative gain says nothing about the peer."""
    if not gains:
        return True
    ordered = sorted(gains, reverse=True)
    return (ordered[amnesty_rank - 1] if len(ordered) >= amnesty_rank else statistics.median(ordered)) < 0
