"""From losses to gains, ranks and unique work (protocol §14). Arrays in, numbers out; no model here."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

F64 = npt.NDArray[np.float64]

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


def first_order_gain(shares: F64) -> Gain:
    """Gain from shares of the loss per page, float64 [n]. One that is not finite says nothing and counts 0."""
    return Gain(np.where(np.isfinite(shares), shares, 0.0), measured=False)


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


def _is_draw(best: Gain, other: Gain, draw_errors: float) -> bool:
    if best.measured == other.measured:  # same sequences: what they share cancels
        error = standard_error(best.samples - other.samples)
    else:
        error = math.hypot(best.error, other.error)
    return best.value - other.value <= draw_errors * error


def unique_work(gains: Mapping[int, F64], own: slice, shared: slice, uid: int) -> float | None:
    """How much better `uid` does on its own pages than on shared random ones, against what the others manage on
    the same pages, squashed to [−1, 1].

    `gains` holds each peer's gain per page, float64 [pages]; `own` and `shared` select the pages of `uid` and the
    random ones. A peer's advantage on a page is its gain less the median gain of the others; the result is
    tanh(z / 2) of Welch's z between its advantage on own and on shared pages. None when `uid` was not judged or a
    gain is not finite.
    """
    if uid not in gains:
        return None
    others = [values for other, values in gains.items() if other != uid]
    rivals = np.median(np.stack(others), axis=0) if others else np.zeros_like(gains[uid])
    advantage = gains[uid] - rivals
    difference = float(advantage[own].mean() - advantage[shared].mean())
    error = math.hypot(standard_error(advantage[own]), standard_error(advantage[shared]))
    if not math.isfinite(difference):
        return None
    if error == 0.0:
        return 0.0 if difference == 0.0 else math.copysign(1.0, difference)
    return math.tanh(difference / error / 2)


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
