"""The three writes of the `Chain` port on a subtensor chain.

Each is sent as the SDK's intent, which knows how today's runtime wants it (a registration encrypted until its block,
weights sealed where the subnet seals them). A chain of an older runtime lacks storage that the intents read: then the
raw call is sent. What became of a call is looked up on chain, always: before a call whose answer was lost is sent
again, and after the chain has reported success.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any

import bittensor_core
from bittensor import Client, ExtrinsicResult, calls
from bittensor.intents.registration import BurnedRegister
from bittensor.intents.weights import DEFAULT_COMMIT_REVEAL_VERSION, SetWeights, clip_to_max_weight, normalize
from bittensor_core import Keypair

from protocol.chain.extrinsic import RAO_PER_TAO, WEIGHT_LIMIT, check_address, quantise_weights
from protocol.chain.extrinsic import SetWeights as Row
from protocol.chain.link import Link
from protocol.chain.port import COMMITMENT_LIMIT_BYTES, Neuron
from protocol.chain.subtensor_shapes import raw_commitment
from protocol.errors import (
    AlreadyRegistered,
    BadExtrinsic,
    ChainError,
    ChainUnreachable,
    CommitmentTooLong,
    InsufficientBalance,
    NoPermit,
    NotRegistered,
    OutdatedVersion,
    RateLimited,
    RuntimeDiffers,
)

log = logging.getLogger(__name__)

VALIDATOR_VERSION = 1
"""Sent with weights: a subnet's owner who raises the subnet's version key locks older validators out. To be raised
when the way of judging changes."""

_LIFE_BLOCKS = 32
"""A call that is not in a block after this many will never be."""

Send = Callable[[Client], Coroutine[Any, Any, ExtrinsicResult]]


@dataclass(frozen=True, slots=True)
class _Rules:
    """What the subnet asks of weights. `min_stake` in rao, `max_weight` as u16 of the row's sum."""

    sealed: bool
    rate_limit_blocks: int
    version_key: int
    min_weights: int
    max_weight: int
    min_stake: int


class Calls:
    """Writes to subnet `netuid` over `link`; blocks are `block_seconds` apart."""

    def __init__(self, link: Link, netuid: int, block_seconds: float) -> None:
        self._link = link
        self._netuid = netuid
        self._block_seconds = block_seconds

    async def register(self, coldkey: Keypair, hotkey: str) -> int:
        """See `SubtensorChain.register`."""
        check_address(hotkey)
        _check_signer(coldkey)
        if (uid := await self._uid(hotkey)) is not None:
            raise AlreadyRegistered(f"hotkey {hotkey} holds uid {uid} already; go on with it")
        price, account = await asyncio.gather(
            self._setting("Burn"),
            self._link.read(lambda node: node.query("System", "Account", [coldkey.ss58_address])),
        )
        owned = int(account["data"]["free"]) if account else 0
        if owned < price:
            raise InsufficientBalance(
                f"coldkey {coldkey.ss58_address} owns {owned / RAO_PER_TAO:g} TAO and registration costs "
                f"{price / RAO_PER_TAO:g} now; send it more"
            )

        async def registered() -> bool:
            return await self._uid(hotkey) is not None

        intent = BurnedRegister(netuid=self._netuid, hotkey_ss58=hotkey)
        raw = calls.SubtensorModule.burned_register(netuid=self._netuid, hotkey=hotkey)
        await self._send(
            registered,
            lambda client: client.execute(intent, coldkey),
            lambda client: client.submit_call(raw, coldkey, signer="coldkey", period=_LIFE_BLOCKS),
        )
        uid = await self._uid(hotkey)
        if uid is None:
            raise NotRegistered(f"hotkey {hotkey} lost its uid as soon as it had one; register it again")
        log.info("hotkey %s is registered with uid %d", hotkey, uid)
        return uid

    async def commit(self, hotkey: Keypair, data: bytes) -> None:
        """See `SubtensorChain.commit`."""
        _check_signer(hotkey)
        if len(data) > COMMITMENT_LIMIT_BYTES:
            raise CommitmentTooLong(
                f"a commitment may have {COMMITMENT_LIMIT_BYTES} bytes, this one has {len(data)}; shorten it"
            )
        key = [self._netuid, hotkey.ss58_address]

        async def committed() -> bool:
            record = await self._link.read(lambda node: node.query("Commitments", "CommitmentOf", key))
            return raw_commitment(record) == data

        if await committed():
            return
        call = calls.Commitments.set_commitment(
            netuid=self._netuid,
            info={"fields": [[{f"Raw{len(data)}": data}]]},
        )
        try:
            await self._send(
                committed, lambda client: client.submit_call(call, hotkey, signer="hotkey", period=_LIFE_BLOCKS)
            )
        except RateLimited as error:
            raise RateLimited(f"{error}; try again from block {await self._next_epoch()} on") from error
        log.info("commitment of %s is on chain", hotkey.ss58_address)

    async def set_weights(
        self, hotkey: Keypair, weights: Mapping[int, float], neurons: tuple[Neuron, ...], head: int
    ) -> None:
        """See `SubtensorChain.set_weights`; `neurons` are those at block `head`."""
        _check_signer(hotkey)
        row = quantise_weights(weights)
        own = next((neuron for neuron in neurons if neuron.hotkey == hotkey.ss58_address), None)
        if own is None:
            raise NotRegistered(f"hotkey {hotkey.ss58_address} holds no uid; register it first")
        rules = await self._rules()
        await self._check_row(row, own, neurons, rules)
        if own.last_update > 0 and head - own.last_update < rules.rate_limit_blocks:
            raise RateLimited(
                f"weights were set at block {own.last_update}; "
                f"try again from block {own.last_update + rules.rate_limit_blocks} on"
            )

        async def updated() -> bool:
            blocks: Any = await self._link.read(
                lambda node: node.query("SubtensorModule", "LastUpdate", [self._netuid])
            )
            return len(blocks) > own.uid and int(blocks[own.uid]) > own.last_update

        uids, values = _conformed(row, own.uid, rules)
        intent = SetWeights(
            netuid=self._netuid,
            uids=list(row.uids),
            weights=[float(value) for value in row.values],
            version_key=VALIDATOR_VERSION,
        )
        await self._send(
            updated,
            # Not until the block is final: the next set of weights is soon enough to repair a block that is not.
            lambda client: client.execute(intent, hotkey, period=_LIFE_BLOCKS, wait_for_finalization=False),
            lambda client: self._raw_weights(client, hotkey, uids, values, rules),
        )
        if rules.sealed:
            log.info("uid %d committed weights of %d uids, sealed until the chain opens them", own.uid, len(uids))
            return
        found: Any = await self._link.read(
            lambda node: node.query("SubtensorModule", "Weights", [self._netuid, own.uid])
        )
        if {int(uid): int(value) for uid, value in found if int(value)} != dict(zip(uids, values, strict=True)):
            raise ChainError(f"the chain holds other weights of uid {own.uid} than were sent; set them again")
        log.info("weights of uid %d are on chain: %s", own.uid, dict(zip(uids, values, strict=True)))

    async def _send(self, took_effect: Callable[[], Awaitable[bool]], send: Send, raw: Send | None = None) -> None:
        """Send a call until the chain took or refused it; `took_effect` looks whether it did.

        `raw` is sent in its place once the chain's runtime has turned out to lack what `send` needs."""
        attempts, unsure = 0, False
        while True:
            try:
                await self._link.write(send)
            except RuntimeDiffers:
                # Mostly it was never sent; but the SDK says the same when it cannot read the block that took it.
                if await took_effect():
                    return
                if raw is None:
                    raise
                send, raw, unsure = raw, None, True
            except ChainUnreachable:
                attempts, unsure = attempts + 1, True
                if await self._seen(took_effect):
                    return
                if attempts >= self._link.patience.write_attempts:
                    raise
            except ChainError:
                # The chain may refuse because an attempt before this one did take effect.
                if unsure and await took_effect():
                    return
                raise
            else:
                if await self._seen(took_effect):
                    return
                raise ChainUnreachable(
                    f"{self._link.name} reported a call as done but does not show it; see whether it counts"
                )

    async def _seen(self, took_effect: Callable[[], Awaitable[bool]]) -> bool:
        """Whether the chain shows the effect now or within the next blocks."""
        for waited in range(self._link.patience.settle_blocks + 1):
            if waited:
                await asyncio.sleep(self._block_seconds)
            if await took_effect():
                return True
        return False

    async def _raw_weights(
        self, client: Client, hotkey: Keypair, uids: list[int], values: list[int], rules: _Rules
    ) -> ExtrinsicResult:
        if rules.sealed:
            call = await self._sealed(hotkey, uids, values)
        else:
            call = calls.SubtensorModule.set_weights(
                netuid=self._netuid, dests=uids, weights=values, version_key=VALIDATOR_VERSION
            )
        return await client.submit_call(call, hotkey, signer="hotkey", period=_LIFE_BLOCKS, wait_for_finalization=False)

    async def _sealed(self, hotkey: Keypair, uids: list[int], values: list[int]) -> Any:
        """The commit of a row that drand's timelock keeps shut until the subnet reveals it.

        The round depends on the epochs as the chain counts them; a runtime that counts them otherwise lacks the
        storage read here (`RuntimeDiffers`)."""
        number = await self._link.read(lambda node: node.block_number())
        at = await self._link.read(lambda node: node.block_hash(number))
        tempo, period, last, pending, index, since = await asyncio.gather(
            *(
                self._setting(item, at)
                for item in (
                    "Tempo",
                    "RevealPeriodEpochs",
                    "LastEpochBlock",
                    "PendingEpochAt",
                    "SubnetEpochIndex",
                    "BlocksSinceLastStep",
                )
            )
        )
        commit, reveal_round = bittensor_core.get_encrypted_commit_v2(
            uids=uids,
            weights=values,
            version_key=VALIDATOR_VERSION,
            last_epoch_block=last,
            pending_epoch_at=pending,
            subnet_epoch_index=index,
            tempo=tempo,
            blocks_since_last_step=since,
            current_block=number,
            subnet_reveal_period_epochs=period,
            block_time=self._block_seconds,
            hotkey=bytes(hotkey.public_key),
        )
        return calls.SubtensorModule.commit_timelocked_weights(
            netuid=self._netuid,
            commit=commit,
            reveal_round=reveal_round,
            commit_reveal_version=DEFAULT_COMMIT_REVEAL_VERSION,
        )

    async def _check_row(self, row: Row, own: Neuron, neurons: tuple[Neuron, ...], rules: _Rules) -> None:
        """Raise what the chain would say to these weights. Of sealed weights it says so only when it opens them,
        epochs later and to nobody: it drops them."""
        unknown = set(row.uids) - {neuron.uid for neuron in neurons}
        if unknown:
            raise BadExtrinsic(f"uid {min(unknown)} is not registered; set weights for registered uids only")
        alone = row.uids == (own.uid,)
        # The subnet's owner may weigh without a permit.
        if not alone and not own.validator_permit and await self._owner() != own.hotkey:
            raise NoPermit(
                f"uid {own.uid} has no validator permit, so it may weigh only itself; add stake to {own.hotkey} "
                "and wait for the next epoch"
            )
        if own.stake * RAO_PER_TAO < rules.min_stake:
            raise NoPermit(
                f"uid {own.uid} has a stake of {own.stake:g} and validators need {rules.min_stake / RAO_PER_TAO:g}; "
                f"add stake to {own.hotkey}"
            )
        if rules.version_key > VALIDATOR_VERSION:
            raise OutdatedVersion(
                f"the subnet asks for validators of version {rules.version_key}, this is {VALIDATOR_VERSION}; "
                "update Windrow"
            )
        if not alone and len(row.uids) < min(rules.min_weights, len(neurons)):
            raise BadExtrinsic(
                f"the subnet wants weights for {rules.min_weights} uids, these are for {len(row.uids)}; "
                "ask its owner to lower min_allowed_weights"
            )

    async def _rules(self) -> _Rules:
        sealed, rate_limit, version_key, min_weights, max_weight, min_stake = await asyncio.gather(
            self._setting("CommitRevealWeightsEnabled"),
            self._setting("WeightsSetRateLimit"),
            self._setting("WeightsVersionKey"),
            self._setting("MinAllowedWeights"),
            self._setting("MaxWeightsLimit"),
            self._link.read(lambda node: node.query("SubtensorModule", "StakeThreshold")),
        )
        return _Rules(
            sealed=bool(sealed),
            rate_limit_blocks=rate_limit,
            version_key=version_key,
            min_weights=min_weights,
            max_weight=max_weight or WEIGHT_LIMIT,
            min_stake=int(min_stake or 0),
        )

    async def _next_epoch(self) -> int:
        """The first block of the subnet's next epoch, as far as the chain can tell now."""
        head, tempo = await asyncio.gather(self._link.read(lambda node: node.block_number()), self._setting("Tempo"))
        try:
            return max(head + 1, await self._setting("LastEpochBlock") + tempo)
        except RuntimeDiffers:
            # Before epochs were counted in storage they followed from the block number alone.
            return head + tempo + 1 - (head + self._netuid + 1) % (tempo + 1)

    async def _setting(self, item: str, block_hash: str | None = None) -> int:
        """A number that the chain keeps for the subnet; 0 where it keeps none."""
        value: Any = await self._link.read(
            lambda node: node.query("SubtensorModule", item, [self._netuid], block_hash=block_hash)
        )
        return int(value or 0)

    async def _owner(self) -> str:
        return str(
            await self._link.read(lambda node: node.query("SubtensorModule", "SubnetOwnerHotkey", [self._netuid]))
        )

    async def _uid(self, hotkey: str) -> int | None:
        uid: Any = await self._link.read(lambda node: node.query("SubtensorModule", "Uids", [self._netuid, hotkey]))
        return None if uid is None else int(uid)


def _conformed(row: Row, own_uid: int, rules: _Rules) -> tuple[list[int], list[int]]:
    """The row as the intent will send it: no share above the subnet's limit, the largest value 65535."""
    values: list[float] = [float(value) for value in row.values]
    if rules.max_weight < WEIGHT_LIMIT and row.uids != (own_uid,):
        values = clip_to_max_weight(values, rules.max_weight / WEIGHT_LIMIT)
    return normalize(row.uids, values)


def _check_signer(keypair: Keypair) -> None:
    try:
        keypair.sign(b"")
    except ValueError as error:
        raise BadExtrinsic(f"{keypair.ss58_address} cannot sign ({error}); unlock its wallet first") from error
