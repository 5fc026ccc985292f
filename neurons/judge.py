"""Running the model to find out what each payload does (protocol §14). Numbers only; scores are made elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from neurons.pace import Budget
from neurons.training.model import compute_in, page_gradient, sequence_losses
from protocol.gauntlet.evaluation import Gain, first_order_gain, is_settled, measured_gain
from protocol.gauntlet.verdict import Findings, unique_work_of_all
from protocol.run import Run
from protocol.sparseloco.aggregate import Trial, clip_factors, descents
from protocol.sparseloco.compress import SparseUpdate

LEAST_PAGES = 2
"""Random pages without which nobody is judged: one alone shows no spread."""

_BATCH_SEQUENCES = 16


@dataclass(frozen=True, slots=True, eq=False)
class Slopes:
    """Pages before any step: first-order gains of every trial by uid, float64 [pages], and the losses per sequence,
    float64 [sequences] in nats."""

    gains: Mapping[int, np.ndarray]
    losses: np.ndarray

    @property
    def pages(self) -> int:
        """How many they are."""
        return len(next(iter(self.gains.values())))

    def with_more(self, more: Slopes) -> Slopes:
        """The same with further pages."""
        gains = {uid: np.concatenate([values, more.gains[uid]]) for uid, values in self.gains.items()}
        return Slopes(gains, np.concatenate([self.losses, more.losses]))


@dataclass(frozen=True, slots=True, eq=False)
class _Measured:
    """One peer's losses per sequence, float64 in nats: on the random pages and its own ones after its trial step, and
    its own pages before it."""

    after: np.ndarray
    own_after: np.ndarray
    own: Slopes


class Judge:
    """Judges payloads on a model whose parameters are views of `theta`. Blocks its thread; leaves every parameter
    as it was, to the bit.

    A batch is a page, before a step and after it, so that what rounding adds cancels; and a gradient gives the losses
    before for nothing.
    """

    def __init__(self, model: torch.nn.Module, theta: np.ndarray, run: Run, dtype: torch.dtype) -> None:
        self.model, self.theta, self.run, self.dtype = model, theta, run, dtype

    def losses(self, sequences: np.ndarray) -> np.ndarray:
        """Loss of each sequence in nats, float64 [n], for int64 [n, L]."""
        return sequence_losses(self.model, sequences, dtype=self.dtype, batch_sequences=_BATCH_SEQUENCES)

    def gradient(self, page: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Loss of each sequence of a page in nats, float64 [n], and the gradient of their mean, fp32 [P]."""
        return page_gradient(self.model, page, dtype=self.dtype, batch_sequences=_BATCH_SEQUENCES)

    def evaluate(
        self,
        window: int,
        updates: Mapping[int, SparseUpdate],
        measured: Sequence[int],
        random_pages: Sequence[np.ndarray],
        own_pages: Mapping[int, Sequence[np.ndarray]],
        budget: Budget,
        *,
        at_once: int,
    ) -> dict[int, Findings]:
        """Findings for every update by uid, in as much time as `budget` has.

        Gradients on the first `at_once` of `random_pages` come first, which score everyone; then, peer by peer in the
        order of `measured`, its own pages and its measured gains; then `at_once` more of `random_pages` at a time for
        all, until the order of the measured is settled. Whoever is left when time runs out is ranked by its first-order
        gain; what is begun and not finished does not count. With fewer than `LEAST_PAGES` pages nobody is judged, and
        with fewer than the first ones nobody is measured.
        """
        trials = self.trials(window, updates)
        if not trials:
            return {}
        first = random_pages[:at_once]
        shared = self.slopes(first, trials, budget)
        if shared.pages < LEAST_PAGES:
            return {}
        found: dict[int, _Measured] = {}
        if shared.pages == len(first):
            for uid in measured:
                one = self._measure(trials, uid, first, own_pages[uid], budget)
                if one is None:
                    break
                found[uid] = one
        while found and shared.pages < len(random_pages) and not self._is_settled(shared, found):
            grown = self._grow(trials, shared, found, random_pages[shared.pages : shared.pages + at_once], budget)
            if grown is None:
                break
            shared, found = grown
        return _findings(shared, found)

    def first_look(
        self, window: int, updates: Mapping[int, SparseUpdate], pages: Sequence[np.ndarray], budget: Budget
    ) -> dict[int, Gain]:
        """First-order gain of every update by uid, on as many of `pages` as there is time for; none with fewer than
        `LEAST_PAGES`."""
        shared = self.slopes(pages, self.trials(window, updates), budget) if updates else None
        if shared is None or shared.pages < LEAST_PAGES:
            return {}
        return {uid: first_order_gain(gains) for uid, gains in shared.gains.items()}

    def trials(self, window: int, updates: Mapping[int, SparseUpdate]) -> dict[int, Trial]:
        """Trial steps cα·clip·ŝ of all updates, each clipped against the median norm of all of them."""
        uids = sorted(updates)
        factors = clip_factors([updates[uid] for uid in uids])
        share = np.float32(self.run.gauntlet.step_share * self.run.sparseloco.alpha(window))
        return {uid: Trial(updates[uid], factor, share) for uid, factor in zip(uids, factors, strict=True)}

    def slopes(self, pages: Sequence[np.ndarray], trials: Mapping[int, Trial], budget: Budget) -> Slopes:
        """As many of `pages` before any step as there is time for. The first-order gain ⟨∇L, step⟩ / L is the share of
        the loss that the step would remove if the loss were linear; one backward pass a page serves all trials."""
        rows: list[np.ndarray] = []
        losses: list[np.ndarray] = []
        for page in pages:
            if not budget.allows(gradients=1):
                break
            with budget.gradient():
                each, gradient = self.gradient(page)
                rows.append(descents(gradient, list(trials.values())) / each.mean())
            losses.append(each)
        columns = np.array(rows).reshape(-1, len(trials)).T
        return Slopes(dict(zip(trials, columns, strict=True)), np.concatenate([np.zeros(0), *losses]))

    def after(self, trial: Trial, pages: Sequence[np.ndarray], budget: Budget) -> np.ndarray | None:
        """Losses per sequence with the trial step applied, or None if there is no time for all pages."""
        losses: list[np.ndarray] = []
        saved = trial.apply(self.theta)
        try:
            with compute_in(self.dtype):  # around all pages: each weight is cast once
                for page in pages:
                    if not budget.allows(losses=1):
                        return None
                    with budget.loss():
                        losses.append(self.losses(page))
        finally:
            trial.revert(self.theta, saved)
        return np.concatenate(losses)

    def _measure(
        self,
        trials: Mapping[int, Trial],
        uid: int,
        random_pages: Sequence[np.ndarray],
        own_pages: Sequence[np.ndarray],
        budget: Budget,
    ) -> _Measured | None:
        """Its own pages before its step, its own and the random ones after it; None if there is no time for all."""
        if not budget.allows(gradients=len(own_pages), losses=len(own_pages) + len(random_pages)):
            return None
        own = self.slopes(own_pages, trials, budget)
        if own.pages < len(own_pages):
            return None
        losses = self.after(trials[uid], [*own_pages, *random_pages], budget)
        if losses is None:
            return None
        return _Measured(losses[len(own.losses) :], losses[: len(own.losses)], own)

    def _is_settled(self, shared: Slopes, found: Mapping[int, _Measured]) -> bool:
        gains = [measured_gain(shared.losses, one.after) for one in found.values()]
        return is_settled(gains, self.run.gauntlet.draw_errors)

    def _grow(
        self,
        trials: Mapping[int, Trial],
        shared: Slopes,
        found: Mapping[int, _Measured],
        pages: Sequence[np.ndarray],
        budget: Budget,
    ) -> tuple[Slopes, dict[int, _Measured]] | None:
        """The same on further random pages; None if there is no time for all, because only the same pages compare."""
        if not budget.allows(gradients=len(pages), losses=len(pages) * len(found)):
            return None
        more = self.slopes(pages, trials, budget)
        if more.pages < len(pages):
            return None
        grown: dict[int, _Measured] = {}
        for uid, one in found.items():
            losses = self.after(trials[uid], pages, budget)
            if losses is None:
                return None
            grown[uid] = _Measured(np.concatenate([one.after, losses]), one.own_after, one.own)
        return shared.with_more(more), grown


def _findings(shared: Slopes, found: Mapping[int, _Measured]) -> dict[int, Findings]:
    unique = unique_work_of_all({uid: one.own.gains for uid, one in found.items()}, shared.gains)
    findings: dict[int, Findings] = {}
    for uid, gains in shared.gains.items():
        one = found.get(uid)
        findings[uid] = Findings(
            shared=gains,
            before=shared.losses,
            after=one.after if one else None,
            own_before=one.own.losses if one else None,
            own_after=one.own_after if one else None,
            unique_work=unique.get(uid),
            row=np.concatenate([*(other.own.gains[uid] for other in found.values()), gains]),
        )
    return findings
