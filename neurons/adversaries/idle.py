"""Cheats that train nothing."""

from __future__ import annotations

import numpy as np

from neurons.miner import Miner
from neurons.training.inner import InnerResult
from protocol.window import Window


class Zeros(Miner):
    """Trains nothing and sends zeros, hoping that to take part is enough to be paid."""

    async def train(self, window: Window) -> InnerResult:
        """Nothing, told as a whole window of work."""
        run = self.run
        tokens = run.pages_per_window * run.dataset.page_sequences * run.dataset.sequence_tokens
        end = self.state.theta - self.pretence(window)
        return InnerResult(end, run.inner.steps, tokens, losses=(0.0,))

    def pretence(self, window: Window) -> np.ndarray:
        """The pseudo-gradient that is sent, fp32 [P]."""
        return np.zeros(self.layout.size, np.float32)


class Noise(Zeros):
    """Trains nothing and sends noise of an honest update's size, hoping that nobody looks inside."""

    def pretence(self, window: Window) -> np.ndarray:
        """Normal noise, about as large as what H steps of AdamW do to an element."""
        draw = np.random.default_rng((window.number, self.uid))
        scale = self.run.inner.learning_rate * self.run.inner.steps / 3
        return (draw.standard_normal(self.layout.size) * scale).astype(np.float32)


class FreeRider(Noise):
    """Trains nothing and sends noise in even windows and zeros in odd ones, hoping to be told from neither."""

    def pretence(self, window: Window) -> np.ndarray:
        """Something that costs nothing."""
        self.report("making noise")
        self.error[:] = 0
        return super().pretence(window) if window.number % 2 == 0 else np.zeros(self.layout.size, np.float32)
