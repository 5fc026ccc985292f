"""Founding a network in a folder: text, tokenizer, dataset, genesis, chain, wallets (the work before window 0).

Two steps, each for a process of its own: `write_text` needs no torch and runs while the fork server still imports
it; `write_rest` needs what the first one found out.
"""

from __future__ import annotations

import asyncio
import math
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bittensor.wallet import Wallet

from neurons.draft import draft_of, read_constants
from neurons.errors import ConfigError, FolderError
from neurons.folder import CHEATS, USUAL_CHEATS, Charter, Member, Places, Storage, bucket_name, write_charter
from neurons.genesis import Genesis, Say, cut_text, make_genesis, vocabulary_of, write_genesis
from neurons.store import member_bucket
from protocol.chain.local import LocalChain, LocalChainConfig
from protocol.run import Run
from storage.bucket import Bucket
from storage.directory import DirectoryBucket
from storage.transfer import Reach, Transport

_DEFAULT_MINERS, _DEFAULT_VALIDATORS, _DEFAULT_PRESET, _DEFAULT_BLOCK_SECONDS = 4, 1, "demo", 1.0
_MOST_VALIDATORS = 8
_STAKE_TAO = 1000.0
_ADVICE = "leave that flag out to resume it, or choose another --dir for a new network"


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the flags of `windrow up` say of the network; None where they say nothing. `preset` is the name of a
    preset or a TOML file of constants, `text` a folder of text files, `storage` what buckets are."""

    miners: int | None = None
    validators: int | None = None
    cheats: tuple[str, ...] | None = None
    preset: str | None = None
    block_seconds: float | None = None
    text: Path | None = None
    storage: Storage | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """A network to be founded: name and role of each neuron in the order of their slots, the constants without what
    text and model will tell, seconds per block, the folder of text (the standard library when None), and what buckets
    are."""

    members: tuple[tuple[str, str], ...]
    table: dict[str, Any]
    block_seconds: float
    text: Path | None
    storage: Storage

    @property
    def draft(self) -> Run:
        """The run, but for digests that are not known yet."""
        return draft_of(self.table)


def plan(wishes: Wishes) -> Plan:
    """Fill in what the wishes leave open and check everything that can be checked before minutes are spent on
    text. Raises `ConfigError` and `RunError`."""
    cheats = USUAL_CHEATS if wishes.cheats is None else wishes.cheats
    for kind in cheats:
        if kind not in CHEATS:
            raise ConfigError(f"there is no cheat {kind!r}; choose from {', '.join(CHEATS)}")
    miners = _DEFAULT_MINERS if wishes.miners is None else wishes.miners
    validators = _DEFAULT_VALIDATORS if wishes.validators is None else wishes.validators
    # Validators first, so that they get the first slots.
    members = (
        *_numbered("validator", validators),
        *_numbered("miner", miners),
        *(member for kind in CHEATS for member in _numbered(kind, cheats.count(kind))),
    )
    table, draft = read_constants(wishes.preset or _DEFAULT_PRESET)
    slots = draft.dataset.slots
    if validators < 1 or len(members) == validators:
        raise ConfigError("a network needs at least one validator and one miner")
    if validators > _MOST_VALIDATORS:
        raise ConfigError(f"the built-in chain permits {_MOST_VALIDATORS} validators, not {validators}")
    if len(members) > slots:
        raise ConfigError(f"{len(members)} neurons do not fit the {slots} slots of this run; ask for fewer")
    vocabulary_of(draft)
    text = wishes.text.absolute() if wishes.text else None
    block_seconds = wishes.block_seconds or _DEFAULT_BLOCK_SECONDS
    return Plan(members, table, block_seconds, text, wishes.storage or "directory")


def require_same(folder: Path, charter: Charter, run: Run, block_seconds: float, wishes: Wishes) -> None:
    """Raise `FolderError` when a flag asks for another network than the one in `folder`, which was founded with
    other flags. Flags that agree with it, or say nothing, are fine."""
    wished = {
        "--miners": (wishes.miners, charter.count("miner")),
        "--validators": (wishes.validators, charter.count("validator")),
        "--cheats": (_listed(wishes.cheats), _listed(charter.cheats())),
        "--block-seconds": (wishes.block_seconds, block_seconds),
        "--storage": (wishes.storage, charter.storage),
        "--text": (
            None if wishes.text is None else str(wishes.text.absolute()),
            charter.text or "the standard library",
        ),
    }
    for flag, (value, present) in wished.items():
        if value is not None and value != present:
            raise FolderError(f"the network in {folder} has {flag} {present}, not {value}; {_ADVICE}")
    if wishes.preset is not None and read_constants(wishes.preset)[1] != draft_of(run.model_dump(mode="json")):
        raise FolderError(f"the network in {folder} has other constants than --preset {wishes.preset}; {_ADVICE}")


def write_text(say: Say, folder: Path, plan: Plan) -> str:
    """Make the dataset in `folder` and return its digest. Raises `TextError`."""
    return asyncio.run(cut_text(say, DirectoryBucket(Places(folder).dataset), plan.draft, plan.text))


def write_rest(say: Say, folder: Path, plan: Plan, dataset_digest: str) -> None:
    """Make everything else in `folder`: run.toml, genesis, wallets, the chain, and last the charter."""
    try:
        asyncio.run(_write_rest(say, folder, plan, dataset_digest))
    except OSError as error:
        raise FolderError(f"{error.filename or folder} cannot be written: {error.strerror}") from error


async def _write_rest(say: Say, folder: Path, plan: Plan, dataset_digest: str) -> None:
    say("initialising the model")
    genesis = make_genesis(plan.table, dataset_digest)
    run = genesis.run
    Places(folder).run.write_text(genesis.text)
    say("making wallets and the chain")
    wallets = {name: _new_wallet(folder, name) for name, _ in plan.members}
    balances = {wallet.coldkey.ss58_address: 2 * _STAKE_TAO for wallet in wallets.values()}
    chain = LocalChain.create(Places(folder).chain, _chain_config(run, plan), balances, seed=os.urandom(32))
    try:
        chain.produce_block(time.time())
        for rank, (name, role) in enumerate(plan.members):
            await _register(chain, wallets[name], role, rank)
    finally:
        await chain.close()
    say("publishing the first state")
    await _publish(folder, plan, wallets, genesis)
    members = tuple(Member(name=n, role=r, hotkey=wallets[n].hotkey.ss58_address) for n, r in plan.members)
    text = None if plan.text is None else str(plan.text)
    write_charter(folder, Charter(run_digest=run.digest(), members=members, text=text, storage=plan.storage))


async def _publish(folder: Path, plan: Plan, wallets: dict[str, Wallet], genesis: Genesis) -> None:
    """The first checkpoint, in the bucket of every validator."""
    transport = Transport(Reach.ANY)
    try:
        for name in (name for name, role in plan.members if role == "validator"):
            bucket: Bucket = DirectoryBucket(Places(folder).buckets / bucket_name(wallets[name].hotkey.ss58_address))
            if plan.storage == "s3":
                bucket = member_bucket(folder, name, transport)
            await write_genesis(bucket, genesis)
    finally:
        await transport.close()


async def _register(chain: LocalChain, wallet: Wallet, role: str, rank: int) -> None:
    hotkey = wallet.hotkey.ss58_address
    await chain.register(wallet.coldkey, hotkey)
    if role == "validator":
        # Less stake for each further one: the first leads, the next ones stand in, in this order.
        await chain.add_stake(wallet.coldkey, hotkey, math.floor(_STAKE_TAO / (1 + rank / 10)))


def _chain_config(run: Run, plan: Plan) -> LocalChainConfig:
    return LocalChainConfig(
        block_seconds=plan.block_seconds,
        tempo_blocks=run.time.window_blocks,
        max_uids=run.dataset.slots,
        max_validators=_MOST_VALIDATORS,
        validator_min_stake=1.0,
        weights_rate_limit_blocks=1,
        commitment_rate_limit_blocks=1,
        immunity_blocks=10 * run.time.window_blocks,
        registration_cost=0.0,
        emission_per_block=1.0,
        max_registrations_per_block=run.dataset.slots,
    )


def _new_wallet(folder: Path, name: str) -> Wallet:
    wallet = Wallet(name, "default", str(Places(folder).wallets))
    wallet.create_new_coldkey(use_password=False, suppress=True)
    wallet.create_new_hotkey(use_password=False, suppress=True)
    return wallet


def _listed(cheats: tuple[str, ...] | None) -> str | None:
    return None if cheats is None else ",".join(sorted(cheats)) or "''"


def _numbered(role: str, count: int) -> tuple[tuple[str, str], ...]:
    """Names of the neurons of one role; a cheat that is alone needs no number."""
    if count == 1 and role in CHEATS:
        return ((role, role),)
    return tuple((f"{role}-{number}", role) for number in range(1, count + 1))
