"""Running the model to find out what each payload does (protocol §14). Numbers only; scores are made elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from neurons.training.model import page_gradient, sequence_losses
from protocol.gauntlet.verdict import Findings, unique_work_of_all
from protocol.run import Run
from protocol.sparseloco.aggregate import Trial, clip_factors, descents
from protocol.sparseloco.compress import SparseUpdate

_BATCH_SEQUENCES = 16


@dataclass(frozen=True, slots=True, eq=False)
class _Losses:
    """What was measured of one peer, float64 per sequence in nats: on the random pages after its trial step, and on
    its own pages before and after."""

    after: np.ndarray
    own_before: np.ndarray
    own_after: np.ndarray


class Judge:
    """Judges payloads on a model whose parameters are views of `theta`. Blocks its thread; leaves every parameter
    as it was, to the bit."""

    def __init__(self, model: torch.nn.Module, theta: np.ndarray, run: Run, dtype: torch.dtype) -> None:
        self.model, self.theta, self.run, self.dtype = model, theta, run, dtype

    def losses(self, sequences: np.ndarray) -> np.ndarray:
        """Loss of each sequence in nats, float64 [n], for int64 [n, L]."""
        return sequence_losses(self.model, sequences, dtype=self.dtype, batch_sequences=_BATCH_SEQUENCES)

    def evaluate(
        self,
        window: int,
        updates: Mapping[int, SparseUpdate],
        measured: Sequence[int],
        random_pages: Sequence[np.ndarray],
        own_pages: Mapping[int, Sequence[np.ndarray]],
        out_of_time: Callable[[], bool],
    ) -> dict[int, Findings]:
        """Findings for every update by uid: gradients on the random pages first, which score everyone; then, peer by
        peer in the order of `measured`, its own pages and its measured gains. Whoever is left when time runs out is
        ranked by its first-order gain; without all random pages nobody is judged."""
        trials = self.trials(window, updates)
        shared, before = self._on_pages(random_pages, trials, out_of_time)
        if not before.size or not trials:
            return {}
        own: dict[int, dict[int, np.ndarray]] = {}
        losses: dict[int, _Losses] = {}
        for uid in measured:
            gains, own_before = self._on_pages(own_pages[uid], trials, out_of_time)
            if out_of_time():
                break
            own[uid] = gains
            own_after = self._after(trials[uid], own_pages[uid])
            losses[uid] = _Losses(self._after(trials[uid], random_pages), own_before, own_after)
        unique = unique_work_of_all(own, shared)
        rows = {uid: np.concatenate([*(gains[uid] for gains in own.values()), shared[uid]]) for uid in trials}
        return {
            uid: Findings(
                shared=shared[uid],
                before=before,
                after=losses[uid].after if uid in losses else None,
                own_before=losses[uid].own_before if uid in losses else None,
                own_after=losses[uid].own_after if uid in losses else None,
                unique_work=unique.get(uid),
                row=rows[uid],
            )
            for uid in trials
        }

    def trials(self, window: int, updates: Mapping[int, SparseUpdate]) -> dict[int, Trial]:
        """Trial steps cα·clip·ŝ of all updates, each clipped against the median norm of all of them."""
        uids = sorted(updates)
        factors = clip_factors([updates[uid] for uid in uids])
        share = np.float32(self.run.gauntlet.step_share * self.run.sparseloco.alpha(window))
        return {uid: Trial(updates[uid], factor, share) for uid, factor in zip(uids, factors, strict=True)}

    def _on_pages(
        self, pages: Sequence[np.ndarray], trials: Mapping[int, Trial], out_of_time: Callable[[], bool]
    ) -> tuple[dict[int, np.ndarray], np.ndarray]:
        """First-order gains ⟨∇L, step⟩ / L of every trial per page, float64 [pages], and the losses per sequence:
        the share of the loss that the step would remove if the loss were linear. One backward pass a page serves
        all trials."""
        gains: dict[int, list[float]] = {uid: [] for uid in trials}
        losses: list[float] = []
        for page in pages:
            if out_of_time():
                return {uid: np.zeros(0) for uid in trials}, np.zeros(0)
            each, gradient = page_gradient(self.model, page, dtype=self.dtype, batch_sequences=_BATCH_SEQUENCES)
            losses.extend(each)
            for uid, descent in zip(trials, descents(gradient, list(trials.values())), strict=True):
                gains[uid].append(float(descent) / float(each.mean()))
        return {uid: np.array(values) for uid, values in gains.items()}, np.array(losses)

    def _after(self, trial: Trial, pages: Sequence[np.ndarray]) -> np.ndarray:
        """Losses per sequence with the trial step applied."""
        saved = trial.apply(self.theta)
        try:
            # Page by page, as before the step: the same batches, so that what rounding adds cancels.
            return np.concatenate([self.losses(page) for page in pages])
        finally:
            trial.revert(self.theta, saved)
