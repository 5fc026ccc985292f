"""Cheats that train nothing."""

from __future__ import annotations

import numpy as np

from neurons.miner import Miner
from neurons.training.inner import InnerResult
from protocol.ledger.manifest import Manifest
from protocol.sparseloco.compress import compress, decompress
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
    """Trains nothing and sends noise whose norms are those of an honest update, hoping that nobody looks inside."""

    norms: tuple[float, ...] = ()
    """2-norm of each parameter in what was applied last."""

    async def apply(self, manifest: Manifest) -> None:
        """As for every node; looks at what the first contribution weighs."""
        if manifest.contributions:
            self.norms = (await self.fetcher.payload(manifest.window, manifest.contributions[0])).update.norms
        await super().apply(manifest)

    def pretence(self, window: Window) -> np.ndarray:
        """Normal noise, of which what is sent has the norms of an honest update; in the first window, which nobody has
        seen an update of, it is about as large as what H steps of AdamW do to an element."""
        self.error[:] = 0
        draw = np.random.default_rng((window.number, self.uid))
        noise = draw.standard_normal(self.layout.size).astype(np.float32)
        if not self.norms:
            return noise * np.float32(self.run.inner.learning_rate * self.run.inner.steps / 3)
        scheme = self.run.sparseloco
        sent = decompress(self.layout, scheme, compress(self.layout, scheme, np.zeros_like(noise), noise)).norms
        for parameter, honest, own in zip(self.layout.parameters, self.norms, sent, strict=True):
            noise[parameter.offset : parameter.offset + parameter.size] *= np.float32(honest / own)
        return noise


class FreeRider(Noise):
    """Trains nothing and sends noise in even windows and zeros in odd ones, hoping to be told from neither."""

    def pretence(self, window: Window) -> np.ndarray:
        """Something that costs nothing."""
        self.report("making noise")
        noise = super().pretence(window)
        return noise if window.number % 2 == 0 else np.zeros_like(noise)
