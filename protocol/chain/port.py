"""The chain as the rest of Windrow sees it: blocks, neurons, commitments and weights (protocol §5).

No code outside the adapters knows which chain runs behind this port.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from bittensor_core import Keypair

COMMITMENT_LIMIT_BYTES = 128
"""Longest commitment the chain takes (the Raw field limit of Bittensor's commitments pallet)."""


@dataclass(frozen=True, slots=True)
class Block:
    """One block. `hash` is 32 bytes; `timestamp` is in seconds since the Unix epoch."""

    number: int
    hash: bytes
    timestamp: float


@dataclass(frozen=True, slots=True)
class Neuron:
    """One slot of the subnet.

    `stake` and `emission` are in TAO, on Bittensor in the subnet's own token; `incentive` and `dividends` are shares in
    [0, 1] of the last epoch; `last_update` and `registered_at` are block numbers.
    """

    uid: int
    hotkey: str
    coldkey: str
    stake: float
    validator_permit: bool
    incentive: float
    dividends: float
    emission: float
    last_update: int
    registered_at: int


class Chain(Protocol):
    """Reads and writes of one subnet. Every method may raise `ChainUnreachable`; writes raise a `ChainError`."""

    @property
    def block_seconds(self) -> float:
        """Nominal seconds between two blocks; used to choose how long to sleep, never to decide anything."""

    async def head(self) -> Block:
        """The newest block."""

    async def block(self, number: int) -> Block:
        """The block with this number; `ChainError` when it is not there yet."""

    async def neurons(self) -> tuple[Neuron, ...]:
        """All registered neurons in ascending uid."""

    async def neurons_at(self, number: int) -> tuple[Neuron, ...]:
        """All that were registered in block `number`, in ascending uid; `ChainError` when that block is not there yet,
        `Pruned` when it is older than what the chain's node keeps."""

    async def commitments(self) -> dict[str, bytes]:
        """The newest commitment of every registered hotkey that has one, by ss58 address."""

    async def weights(self) -> dict[int, dict[int, float]]:
        """Row-normalised weights in force: validator uid → {uid: share}."""

    async def balance(self, coldkey: str) -> float:
        """TAO that `coldkey` (ss58) owns and has not staked; 0 for an unknown one."""

    async def register(self, coldkey: Keypair, hotkey: str) -> int:
        """Register `hotkey` (ss58) under `coldkey`; returns its uid."""

    async def commit(self, hotkey: Keypair, data: bytes) -> None:
        """Replace the hotkey's commitment; at most `COMMITMENT_LIMIT_BYTES` bytes."""

    async def set_weights(self, hotkey: Keypair, weights: Mapping[int, float]) -> None:
        """Set this validator's weights, uid → any non-negative scale; the chain normalises."""

    async def close(self) -> None:
        """Release what the adapter holds. Idempotent."""
