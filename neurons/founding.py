"""Founding a network in a folder: text, tokenizer, dataset, genesis, chain, wallets (the work before window 0).

Two steps, each for a process of its own: `write_text` needs no torch and runs while the fork server still imports
it; `write_rest` needs what the first one found out.
"""

from __future__ import annotations

import asyncio
import math
import os
import shutil
import time
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w
from bittensor.wallet import Wallet

from neurons.corpus import (
    SMALLEST_VOCABULARY,
    folder_texts,
    require_bytes,
    standard_library_texts,
    tokenize,
    train_tokenizer,
)
from neurons.errors import ConfigError, FolderError
from neurons.folder import CHEATS, Charter, Member, Places, bucket_name, write_charter
from protocol.chain.local import LocalChain, LocalChainConfig
from protocol.errors import RunError
from protocol.ledger.state import state_root
from protocol.run import PRESETS, Run, preset_table, run_from_table
from protocol.sparseloco.layout import Layout
from storage.checkpoint import write_checkpoint
from storage.dataset import write_dataset
from storage.directory import DirectoryBucket
from storage.keys import Keys

_DEFAULT_MINERS, _DEFAULT_VALIDATORS, _DEFAULT_PRESET, _DEFAULT_BLOCK_SECONDS = 4, 1, "demo", 1.0
_MOST_VALIDATORS = 8
_STAKE_TAO = 1000.0
_PAGES_PER_SHARD = 1024
_MOST_BYTES_PER_TOKEN = 4
"""A byte-level BPE of a few thousand tokens reaches 3 to 3.5 bytes a token on text and code; asking for 4 is safe."""

_ADVICE = "leave that flag out to resume it, or choose another --dir for a new network"

_UNKNOWN = "0" * 64
"""Stands for a digest that is not known before the dataset and the model are made."""

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the flags of `windrow up` say of the network; None where they say nothing. `preset` is the name of a
    preset or a TOML file of constants, `text` a folder of text files."""

    miners: int | None = None
    validators: int | None = None
    cheats: tuple[str, ...] | None = None
    preset: str | None = None
    block_seconds: float | None = None
    text: Path | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """A network to be founded: name and role of each neuron in the order of their slots, the constants without what
    text and model will tell, seconds per block, and the folder of text (the standard library when None)."""

    members: tuple[tuple[str, str], ...]
    table: dict[str, Any]
    block_seconds: float
    text: Path | None

    @property
    def draft(self) -> Run:
        """The run, but for digests that are not known yet."""
        return _draft(self.table)


def plan(wishes: Wishes) -> Plan:
    """Fill in what the wishes leave open and check everything that can be checked before minutes are spent on
    text. Raises `ConfigError` and `RunError`."""
    cheats = tuple(CHEATS) if wishes.cheats is None else wishes.cheats
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
    table, draft = _constants(wishes.preset or _DEFAULT_PRESET)
    slots = draft.dataset.slots
    if validators < 1 or len(members) == validators:
        raise ConfigError("a network needs at least one validator and one miner")
    if validators > _MOST_VALIDATORS:
        raise ConfigError(f"the built-in chain permits {_MOST_VALIDATORS} validators, not {validators}")
    if len(members) > slots:
        raise ConfigError(f"{len(members)} neurons do not fit the {slots} slots of this run; ask for fewer")
    vocabulary = draft.model.get("vocab_size")
    if type(vocabulary) is not int or vocabulary < SMALLEST_VOCABULARY:
        raise ConfigError(f"[model]: vocab_size must be a number of tokens, {SMALLEST_VOCABULARY} or more")
    text = wishes.text.absolute() if wishes.text else None
    return Plan(members, table, wishes.block_seconds or _DEFAULT_BLOCK_SECONDS, text)


def require_same(folder: Path, charter: Charter, run: Run, block_seconds: float, wishes: Wishes) -> None:
    """Raise `FolderError` when a flag asks for another network than the one in `folder`, which was founded with
    other flags. Flags that agree with it, or say nothing, are fine."""
    wished = {
        "--miners": (wishes.miners, charter.count("miner")),
        "--validators": (wishes.validators, charter.count("validator")),
        "--cheats": (_listed(wishes.cheats), _listed(charter.cheats())),
        "--block-seconds": (wishes.block_seconds, block_seconds),
        "--text": (
            None if wishes.text is None else str(wishes.text.absolute()),
            charter.text or "the standard library",
        ),
    }
    for flag, (value, present) in wished.items():
        if value is not None and value != present:
            raise FolderError(f"the network in {folder} has {flag} {present}, not {value}; {_ADVICE}")
    if wishes.preset is not None and _constants(wishes.preset)[1] != _draft(run.model_dump(mode="json")):
        raise FolderError(f"the network in {folder} has other constants than --preset {wishes.preset}; {_ADVICE}")


def write_text(say: Say, folder: Path, plan: Plan) -> str:
    """Make the dataset in `folder` and return its digest. Raises `TextError`."""
    run, vocabulary = plan.draft, plan.table["model"]["vocab_size"]
    page_tokens = run.dataset.page_sequences * run.dataset.sequence_tokens
    say("reading text")
    files = standard_library_texts() if plan.text is None else folder_texts(plan.text)
    pages = run.pages_needed + run.gauntlet.held_out_pages
    require_bytes(files, pages * page_tokens * _MOST_BYTES_PER_TOKEN)
    say(f"training a tokenizer of {vocabulary} tokens on {len(files)} files")
    tokenizer = train_tokenizer(files, vocabulary)
    say("cutting the text into pages")
    writing = write_dataset(
        DirectoryBucket(Places(folder).dataset),
        tokenize(files, tokenizer),
        vocab_size=vocabulary,
        sequence_tokens=run.dataset.sequence_tokens,
        page_sequences=run.dataset.page_sequences,
        held_out_pages=run.gauntlet.held_out_pages,
        tokenizer=tokenizer,
        shard_pages=_PAGES_PER_SHARD,
    )
    return asyncio.run(writing)


def write_rest(say: Say, folder: Path, plan: Plan, dataset_digest: str) -> None:
    """Make everything else in `folder`: run.toml, genesis, wallets, the chain, and last the charter."""
    try:
        asyncio.run(_write_rest(say, folder, plan, dataset_digest))
    except OSError as error:
        raise FolderError(f"{error.filename or folder} cannot be written: {error.strerror}") from error


async def _write_rest(say: Say, folder: Path, plan: Plan, dataset_digest: str) -> None:
    say("initialising the model")
    run = await _write_genesis(folder, plan.table, dataset_digest)
    say("making wallets and the chain")
    wallets = {name: _new_wallet(folder, name) for name, _ in plan.members}
    balances = {wallet.coldkey.ss58_address: 2 * _STAKE_TAO for wallet in wallets.values()}
    chain = LocalChain.create(Places(folder).chain, _chain_config(run, plan), balances, seed=os.urandom(32))
    try:
        chain.produce_block(time.time())
        for rank, (name, role) in enumerate(plan.members):
            await _register(folder, chain, wallets[name], role, rank)
    finally:
        await chain.close()
    shutil.rmtree(folder / "genesis")
    members = tuple(Member(name=n, role=r, hotkey=wallets[n].hotkey.ss58_address) for n, r in plan.members)
    text = None if plan.text is None else str(plan.text)
    write_charter(folder, Charter(run_digest=run.digest(), members=members, text=text))


async def _write_genesis(folder: Path, table: dict[str, Any], dataset_digest: str) -> Run:
    # Imported only here, because they bring torch along.
    from neurons.training.model import build_model, initial_parameters, parameter_shapes

    theta = initial_parameters(table["model"], seed=0)
    table = {**_with_digest(table, dataset_digest), "genesis_root": state_root(theta)}
    run = run_from_table(table)
    Places(folder).run.write_text(tomli_w.dumps(table))
    model = build_model(run.model)
    positions = getattr(model.config, "max_position_embeddings", None)
    if positions is not None and positions < run.dataset.sequence_tokens:
        raise ConfigError(
            f"[model]: it has {positions} positions and dataset.sequence_tokens is {run.dataset.sequence_tokens}; "
            "give it as many or more"
        )
    layout = Layout.from_shapes(parameter_shapes(model))
    tensors = layout.tensors(theta)
    genesis = DirectoryBucket(folder / "genesis")
    window, root = run.time.first_window, run.genesis_root
    await write_checkpoint(genesis, Keys(run.digest()[:16]), window=window, root=root, tensors=tensors)
    return run


async def _register(folder: Path, chain: LocalChain, wallet: Wallet, role: str, rank: int) -> None:
    hotkey = wallet.hotkey.ss58_address
    await chain.register(wallet.coldkey, hotkey)
    if role == "validator":
        # Less stake for each further one: the first leads, the next ones stand in, in this order.
        await chain.add_stake(wallet.coldkey, hotkey, math.floor(_STAKE_TAO / (1 + rank / 10)))
        shutil.copytree(folder / "genesis", Places(folder).buckets / bucket_name(hotkey))


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


def _constants(preset: str) -> tuple[dict[str, Any], Run]:
    """The table of a preset or of a TOML file, and the run it will make; `ConfigError` when it is neither."""
    if preset in PRESETS:
        table = preset_table(preset)
        return table, _draft(table)
    try:
        table = tomllib.loads(Path(preset).read_text())
        return table, _draft(table)
    except (OSError, ValueError) as error:
        names = ", ".join(PRESETS)
        raise ConfigError(f"{preset!r} is neither a preset ({names}) nor a TOML file of constants: {error}") from error
    except RunError as error:
        raise ConfigError(f"{preset}: {str(error).removeprefix('run.toml: ')}") from error


def _draft(table: dict[str, Any]) -> Run:
    return run_from_table({**_with_digest(table, _UNKNOWN), "genesis_root": _UNKNOWN})


def _with_digest(table: dict[str, Any], digest: str) -> dict[str, Any]:
    dataset = table.get("dataset")
    return {**table, "dataset": {**(dataset if isinstance(dataset, dict) else {}), "index_digest": digest}}


def _listed(cheats: tuple[str, ...] | None) -> str | None:
    return None if cheats is None else ",".join(sorted(cheats)) or "''"


def _numbered(role: str, count: int) -> tuple[tuple[str, str], ...]:
    """Names of the neurons of one role; a cheat that is alone needs no number."""
    if count == 1 and role in CHEATS:
        return ((role, role),)
    return tuple((f"{role}-{number}", role) for number in range(1, count + 1))
