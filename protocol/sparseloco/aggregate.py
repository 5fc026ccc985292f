"""Many updates become one step, the same bits everywhere (protocol §8, §13)."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from protocol.run import SparseLoCo
from protocol.sparseloco import kernels
from protocol.sparseloco.compress import SparseUpdate
from protocol.sparseloco.plan import Elements

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]
F64 = npt.NDArray[np.float64]


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


def outer_step(theta: Elements, updates: Sequence[SparseUpdate], scheme: SparseLoCo, window: int) -> None:
    """θ ← θ − α · mean_p c_p·ŝ_p in place. `updates` must be in ascending uid: the order is part of the result.

    With `average = "all"` the divisor is the number of updates and α/n is rounded to fp32 once. With
    "contributors" each coordinate is divided by how many updates hold it (one fp32 division), then
    multiplied by α. Without updates θ stays as it is.
    """
    if not updates:
        return
    clips = np.stack(clip_factors(updates))
    contributors = scheme.average == "contributors"
    scale = np.float32(scheme.alpha(window) / (1 if contributors else len(updates)))
    bodies = [update.records for update in updates]
    kernels.of(theta).aggregate(updates[0].plan, theta, bodies, clips, scale, contributors)


@dataclass(frozen=True, slots=True, eq=False)
class Trial:
    """A step with one update alone: share · (c_p · ŝ_p). `clips` is fp32 [parameters]."""

    update: SparseUpdate
    clips: F32
    share: np.float32

    def apply(self, theta: Elements) -> Elements:
        """θ ← θ − step in place; returns the originals of what it changed, fp32 [values], for `revert`."""
        return kernels.of(theta).apply(self.update.plan, theta, self.update.records, self.clips, self.share)

    def revert(self, theta: Elements, saved: Elements) -> None:
        """Put the originals back, to the bit. Nothing may have changed θ in between."""
        kernels.of(theta).revert(self.update.plan, theta, self.update.records, saved)


def descents(gradient: Elements, trials: Sequence[Trial]) -> F64:
    """⟨gradient, step⟩ of each trial, binary64 [trials], for a flat fp32 gradient: how far each step would go down if
    the slope stayed the same. All have one `share`. The last bits depend on the device."""
    if not trials:
        return np.zeros(0)
    bodies, clips = [trial.update.records for trial in trials], np.stack([trial.clips for trial in trials])
    return kernels.of(gradient).dot(trials[0].update.plan, gradient, bodies, clips, trials[0].share)


def shared_positions(updates: Sequence[SparseUpdate], others: Sequence[SparseUpdate] = ()) -> I64:
    """int64 [updates, updates and others]: at how many positions both of two send something; on the diagonal, how many
    each sends. Zeros do not count: they tie everywhere, and ties go to the lowest index, so equal positions prove
    nothing."""
    if not updates:
        return np.zeros((0, len(others)), np.int64)
    bodies = [update.records for update in (*updates, *others)]
    return kernels.of(bodies[0]).shared(updates[0].plan, bodies, len(updates))
