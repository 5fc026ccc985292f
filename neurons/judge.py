"""Running the model to find out what each payload does (protocol §14). Numbers only; scores are made elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from neurons.training.model import page_gradient, sequence_losses
from protocol.gauntlet.verdict import Findings, unique_work_of_all
from protocol.run import Run
from protocol.sparseloco.aggregate import clip_factors, scaled_values
from protocol.sparseloco.compress import SparseUpdate
from protocol.sparseloco.kernels.reference import restore, subtract_sparse

_BATCH_SEQUENCES = 16


@dataclass(frozen=True, slots=True, eq=False)
class Probe:
    """The trial step of one payload: what θ loses at `indices` (int64 [m]) when cα·clip·ŝ (fp32 [m]) is applied."""

    indices: np.ndarray
    step: np.ndarray

    def first_order(self, loss: float, gradient: np.ndarray) -> float:
        """⟨∇L, step⟩ / L: the share of the loss that the step removes if the loss were linear."""
        return float(np.dot(gradient[self.indices].astype(np.float64), self.step) / loss)


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
        probes = self.probes(window, updates)
        shared, before = self._on_pages(random_pages, probes, out_of_time)
        if not before.size or not probes:
            return {}
        own: dict[int, dict[int, np.ndarray]] = {}
        losses: dict[int, _Losses] = {}
        for uid in measured:
            gains, own_before = self._on_pages(own_pages[uid], probes, out_of_time)
            if out_of_time():
                break
            own[uid] = gains
            own_after = self._after(probes[uid], own_pages[uid])
            losses[uid] = _Losses(self._after(probes[uid], random_pages), own_before, own_after)
        unique = unique_work_of_all(own, shared)
        return {
            uid: Findings(
                shared=shared[uid],
                before=before,
                after=losses[uid].after if uid in losses else None,
                own_before=losses[uid].own_before if uid in losses else None,
                own_after=losses[uid].own_after if uid in losses else None,
                unique_work=unique.get(uid),
            )
            for uid in probes
        }

    def probes(self, window: int, updates: Mapping[int, SparseUpdate]) -> dict[int, Probe]:
        """Trial steps of all updates, each clipped against the median norm of all of them."""
        uids = sorted(updates)
        factors = clip_factors([updates[uid] for uid in uids])
        share = np.float32(self.run.gauntlet.step_share * self.run.sparseloco.alpha(window))
        return {
            uid: Probe(updates[uid].indices, share * scaled_values(updates[uid], factor))
            for uid, factor in zip(uids, factors, strict=True)
        }

    def _on_pages(
        self, pages: Sequence[np.ndarray], probes: Mapping[int, Probe], out_of_time: Callable[[], bool]
    ) -> tuple[dict[int, np.ndarray], np.ndarray]:
        """First-order gains of every probe per page, float64 [pages], and the losses per sequence. One backward
        pass a page serves all probes."""
        gains: dict[int, list[float]] = {uid: [] for uid in probes}
        losses: list[float] = []
        for page in pages:
            if out_of_time():
                return {uid: np.zeros(0) for uid in probes}, np.zeros(0)
            each, gradient = page_gradient(self.model, page, dtype=self.dtype, batch_sequences=_BATCH_SEQUENCES)
            losses.extend(each)
            for uid, probe in probes.items():
                gains[uid].append(probe.first_order(float(each.mean()), gradient))
        return {uid: np.array(values) for uid, values in gains.items()}, np.array(losses)

    def _after(self, probe: Probe, pages: Sequence[np.ndarray]) -> np.ndarray:
        """Losses per sequence with the trial step applied."""
        saved = subtract_sparse(self.theta, probe.indices, probe.step)
        try:
            # Page by page, as before the step: the same batches, so that what rounding adds cancels.
            return np.concatenate([self.losses(page) for page in pages])
        finally:
            restore(self.theta, probe.indices, saved)
