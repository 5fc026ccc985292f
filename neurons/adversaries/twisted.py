"""Cheats that train as they should and then send something else."""

from __future__ import annotations

from dataclasses import replace

from neurons.miner import Miner
from neurons.training.inner import InnerResult
from protocol.sparseloco.payload import HEADER_BYTES
from protocol.window import Window


class Scaled(Miner):
    """Sends a hundred times what it has learned, hoping that a larger update counts for more."""

    factor = 100.0

    async def train(self, window: Window) -> InnerResult:
        """Honest work, and then its end moved along the way it came."""
        result = await super().train(window)
        theta = self.state.theta
        return replace(result, end=theta + theta.dtype.type(self.factor) * (result.end - theta))


class SignFlip(Scaled):
    """Sends the opposite of what it has learned, hoping to do harm while it looks like work."""

    factor = -1.0


class Overflow(Scaled):
    """Sends the largest values that a record can hold, as near to infinity as the format allows, hoping that whoever
    applies or judges them gets NaN."""

    factor = 1e30


class NotCanonical(Miner):
    """Sends records with far more positions than there may be, hoping that a decoder trusts them."""

    async def contribute(self, window: Window) -> bytes | None:
        """An honest payload with every bit of its first upper map set."""
        payload = await super().contribute(window)
        at = HEADER_BYTES + 16
        return payload and payload[:HEADER_BYTES] + b"\xff" * 16 + payload[at:]
