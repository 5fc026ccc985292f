"""Many updates become one step, the same bits everywhere (protocol §8, §13)."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from protocol.run import SparseLoCo
from protocol.sparseloco.compress import SparseUpdate
from protocol.sparseloco.kernels import reference as kernel

F32 = npt.NDArray[np.float32]


def clip_factors(updates: Sequence[SparseUpdate]) -> list[F32]:
    """c_p for each update, fp32 [parameters]: min(1, median of the norms / own norm), 1 for a zero norm.
    Norms of zero stay out of the median: whoever sends nothing for a parameter must not silence those who do.
    Median, quotient and minimum are taken in binary64, the result is rounded once."""
    if not updates:
        return []
    columns = [[norm for norm in norms if norm > 0] for norms in zip(*(u.norms for u in updates), strict=True)]
    medians = [statistics.median(norms) if norms else 0.0 for norms in columns]
    return [
        np.array([min(1.0, m / n) if n > 0 else 1.0 for m, n in zip(medians, u.norms, strict=True)], np.float32)
        for u in updates
    ]


def scaled_values(update: SparseUpdate, factors: F32) -> F32:
    """c_p · ŝ_p, fp32 [m], each product rounded."""
    return np.repeat(factors, update.counts) * update.values


def outer_step(theta: F32, updates: Sequence[SparseUpdate], scheme: SparseLoCo, window: int) -> None:
    """θ ← θ − α · mean_p c_p·ŝ_p in place. `updates` must be in ascending uid: the order is part of the result.

    With `average = "all"` the divisor is the number of updates and α/n is rounded to fp32 once. With
    "contributors" each coordinate is divided by how many updates hold it (one fp32 division), then
    multiplied by α. Without updates θ stays as it is.
    """
    if not updates:
        return
    total = np.zeros_like(theta)
    for update, factors in zip(updates, clip_factors(updates), strict=True):
        kernel.add_scaled(total, update.indices, update.values, np.repeat(factors, update.counts))
    alpha = scheme.alpha(window)
    if scheme.average == "all":
        kernel.subtract_scaled(theta, total, np.float32(alpha / len(updates)))
        return
    senders = np.zeros(len(theta), np.float32)
    for update in updates:
        senders[update.indices] += np.float32(1)
    mean = (total / np.maximum(senders, np.float32(1))).astype(np.float32, copy=False)
    kernel.subtract_scaled(theta, mean, np.float32(alpha))


def overlap(first: SparseUpdate, second: SparseUpdate) -> float:
    """Share of the positions at which `first` sends something that `second` sends something at too, in [0, 1].
    Zeros do not count: they tie everywhere, and ties go to the lowest index, so equal positions prove nothing."""
    ours, theirs = (update.indices[update.values != 0] for update in (first, second))
    return len(np.intersect1d(ours, theirs, assume_unique=True)) / len(ours) if len(ours) else 0.0
