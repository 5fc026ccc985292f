"""Bittensor's chain: the `Chain` port over a subtensor node, through the Bittensor SDK (protocol §5).

What is read at one time is read at one block. The order of neurons by stake decides who leads, so all nodes must
get the same numbers: where the chain's runtime has two ways to tell them, which one is used depends on the runtime
alone, never on what failed just now.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bittensor import Substrate
from bittensor_core import Keypair

from protocol.chain.extrinsic import RAO_PER_TAO, WEIGHT_LIMIT
from protocol.chain.heads import Heads
from protocol.chain.link import Link, Patience
from protocol.chain.port import Block, Neuron
from protocol.chain.subtensor_calls import Calls
from protocol.chain.subtensor_shapes import from_metagraph, from_neurons_lite, raw_commitment, row_shares
from protocol.errors import NoSubnet, RuntimeDiffers

__all__ = ["Patience", "SubtensorChain"]

_BLOCK_SECONDS = 12.0
"""Of a runtime that does not say."""

_METAGRAPH = ("SubnetInfoRuntimeApi", "get_metagraph")
_NEURONS_LITE = ("NeuronInfoRuntimeApi", "get_neurons_lite")


@dataclass(frozen=True, slots=True)
class _View:
    """The neurons at one block, whose hash (0x and hexadecimal) pins whatever else is read with them."""

    block_number: int
    block_hash: str
    neurons: tuple[Neuron, ...]


class SubtensorChain:
    """One subnet of a Bittensor chain. Make it with `connect`; use it on one event loop.

    `stake` is what consensus weighs a neuron with: its share of the subnet's own token plus root TAO at the chain's
    rate. That and `emission` (of the last epoch) are in units of the subnet's token, 10⁹ rao each. All methods raise
    `ChainUnreachable` when the node does not answer and after `close`.
    """

    def __init__(self, link: Link, netuid: int, block_seconds: float) -> None:
        self._link = link
        self._netuid = netuid
        self._heads = Heads(link, block_seconds)
        self._calls = Calls(link, netuid, block_seconds)
        self._view: _View | None = None
        self._commitments: tuple[str, dict[str, bytes]] | None = None
        self._reading = asyncio.Lock()

    @classmethod
    async def connect(cls, network: str, netuid: int, patience: Patience | None = None) -> SubtensorChain:
        """Connect to subnet `netuid` of `network`: `finney`, `test`, `local` (a node on this machine, at
        ws://127.0.0.1:9944) or the ws:// or wss:// address of a node.

        Raises `ChainUnreachable` when nobody answers, `NoSubnet`, and `ChainError` for a network it does not know.
        """
        return await cls._opened(Link.to(network, patience or Patience()), netuid)

    @classmethod
    async def over(
        cls, substrate: Substrate, netuid: int, name: str, patience: Patience | None = None
    ) -> SubtensorChain:
        """As `connect`, over any `Substrate` of the SDK; `name` is how errors call it."""
        return await cls._opened(Link(substrate, name, patience or Patience()), netuid)

    @classmethod
    async def _opened(cls, link: Link, netuid: int) -> SubtensorChain:
        await link.open()
        try:
            if not 0 < netuid <= WEIGHT_LIMIT or not await link.read(
                lambda node: node.query("SubtensorModule", "NetworksAdded", [netuid])
            ):
                raise NoSubnet(f"{link.name} has no subnet {netuid}; correct the netuid or the network")
            slot: Any = await link.read(lambda node: node.constant("Aura", "SlotDuration"))
        except BaseException:
            await link.close()
            raise
        return cls(link, netuid, int(slot) / 1000 if slot else _BLOCK_SECONDS)

    @property
    def block_seconds(self) -> float:
        """Nominal seconds between two blocks."""
        return self._heads.block_seconds

    async def head(self) -> Block:
        """The newest block of the node's best chain: it may still be replaced by another of the same number."""
        return await self._heads.newest()

    async def block(self, number: int) -> Block:
        """The block with this number; `ChainError` when it is not there yet, `Pruned` when it is older than what the
        node keeps (some 256 blocks, unless it is an archive node)."""
        return await self._heads.block(number)

    async def neurons(self) -> tuple[Neuron, ...]:
        """All registered neurons in ascending uid, at the head."""
        return (await self._at_head()).neurons

    async def neurons_at(self, number: int) -> tuple[Neuron, ...]:
        """All that were registered in block `number`, in ascending uid; raises as `block` does."""
        block = await self._heads.block(number)
        return await self._read_neurons(f"0x{block.hash.hex()}")

    async def commitments(self) -> dict[str, bytes]:
        """The newest commitment of every registered hotkey that has one, by ss58 address.

        One that is not a single raw field of at most 128 bytes is not there: others may commit what they like."""
        view = await self._at_head()
        if self._commitments is None or self._commitments[0] != view.block_hash:
            self._commitments = view.block_hash, await self._read_commitments(view)
        return dict(self._commitments[1])

    async def weights(self) -> dict[int, dict[int, float]]:
        """Row-normalised weights of those who hold a permit now. Where the subnet seals weights (commit-reveal),
        these are the ones revealed last."""
        view = await self._at_head()
        permitted = {neuron.uid for neuron in view.neurons if neuron.validator_permit}
        rows: Any = await self._link.read(
            lambda node: node.query_map("SubtensorModule", "Weights", [self._netuid], block_hash=view.block_hash)
        )
        shares = {int(uid): row_shares(row) for uid, row in rows}
        return {uid: shares[uid] for uid in sorted(permitted & shares.keys()) if shares[uid]}

    async def balance(self, coldkey: str) -> float:
        """TAO that `coldkey` (ss58) owns and has not staked, at the head; 0 for an unknown one."""
        account: Any = await self._link.read(lambda node: node.query("System", "Account", [coldkey]))
        return int(account["data"]["free"]) / RAO_PER_TAO if account else 0.0

    async def register(self, coldkey: Keypair, hotkey: str) -> int:
        """Register `hotkey` (ss58) under `coldkey`, which pays the subnet's price of the moment; returns its uid.

        Raises `AlreadyRegistered`, `InsufficientBalance`, `RateLimited`, `RegistrationClosed`, `SubnetFull`,
        `WrongColdkey` and, for no address, `BadExtrinsic`."""
        try:
            return await self._calls.register(coldkey, hotkey)
        finally:
            self._heads.doubt()

    async def commit(self, hotkey: Keypair, data: bytes) -> None:
        """Replace the hotkey's commitment, unless it is this one already; raises `NotRegistered`,
        `CommitmentTooLong` and `RateLimited`."""
        try:
            await self._calls.commit(hotkey, data)
        finally:
            self._heads.doubt()

    async def set_weights(self, hotkey: Keypair, weights: Mapping[int, float]) -> None:
        """Set this validator's weights, uid → any non-negative scale, in the way the subnet asks for: in the open,
        or sealed until a drand round (commit-reveal).

        Raises `NotRegistered`, `BadExtrinsic` (an unknown uid, a weight that is negative or not finite, none that is
        positive, fewer than the subnet wants), `NoPermit`, `OutdatedVersion` and `RateLimited`."""
        try:
            view = await self._at_head()
            await self._calls.set_weights(hotkey, weights, view.neurons, view.block_number)
        finally:
            self._heads.doubt()

    async def close(self) -> None:
        """Stop following the chain and disconnect. Idempotent."""
        await self._heads.close()
        await self._link.close()

    async def _at_head(self) -> _View:
        head = await self._heads.newest()
        block_hash = f"0x{head.hash.hex()}"
        # Neurons ask several times a block, some of them at once; the answer is large and the same.
        async with self._reading:
            if self._view is None or self._view.block_hash != block_hash:
                self._view = _View(head.number, block_hash, await self._read_neurons(block_hash))
            return self._view

    async def _read_neurons(self, block_hash: str) -> tuple[Neuron, ...]:
        try:
            graph = await self._link.read(lambda node: node.runtime_call(*_METAGRAPH, [self._netuid], block_hash))
            if graph is None:
                raise NoSubnet(f"{self._link.name} no longer has subnet {self._netuid}")
            return from_metagraph(graph)
        except RuntimeDiffers:
            # Runtimes before dynamic TAO tell neurons one by one, without the block of their registration.
            records: Any = await self._link.read(
                lambda node: node.runtime_call(*_NEURONS_LITE, [self._netuid], block_hash)
            )
            blocks: Any = await self._link.read(
                lambda node: node.query_map("SubtensorModule", "BlockAtRegistration", [self._netuid], block_hash)
            )
            return from_neurons_lite(records or [], dict(blocks))

    async def _read_commitments(self, view: _View) -> dict[str, bytes]:
        hotkeys = [neuron.hotkey for neuron in view.neurons]
        keys = [[self._netuid, hotkey] for hotkey in hotkeys]
        # By key and not the whole map: that keeps what every hotkey ever committed, registered or not.
        try:
            records: list[Any] = await self._link.read(
                lambda node: node.query_batch("Commitments", "CommitmentOf", keys, view.block_hash)
            )
        except RuntimeDiffers:
            records = [await self._read_commitment(key, view.block_hash) for key in keys]
        found = zip(hotkeys, map(raw_commitment, records), strict=True)
        return {hotkey: data for hotkey, data in found if data is not None}

    async def _read_commitment(self, key: list[Any], block_hash: str) -> Any:
        """One record; None when the SDK cannot decode it, so that it costs only its owner."""
        try:
            return await self._link.read(lambda node: node.query("Commitments", "CommitmentOf", key, block_hash))
        except RuntimeDiffers:
            return None
