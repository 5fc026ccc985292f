"""Founding a network in a folder: text, tokenizer, dataset, genesis, chain, wallets (the work before window 0)."""

from __future__ import annotations

import asyncio
import json
import math
import os
import shutil
import tempfile
import time
import tomllib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import tomli_w
from bittensor.wallet import Wallet

from neurons.adversaries import adversary
from neurons.corpus import folder_texts, require_bytes, standard_library_texts, tokenize, train_tokenizer
from neurons.errors import ConfigError, FolderError
from neurons.process import bucket_name
from neurons.settings import network_defaults
from neurons.training.model import build_model, initial_parameters, parameter_shapes
from protocol.chain.local import LocalChain, LocalChainConfig
from protocol.ledger.state import state_root
from protocol.run import PRESETS, Run, preset_table, run_from_table
from protocol.sparseloco.layout import Layout
from storage.checkpoint import write_checkpoint
from storage.dataset import write_dataset
from storage.directory import DirectoryBucket
from storage.keys import Keys

MEMBERS_FILE = "network.json"

_STAKE_TAO = 1000.0
_PAGES_PER_SHARD = 1024
_MOST_BYTES_PER_TOKEN = 4
"""A byte-level BPE of a few thousand tokens reaches 3 to 3.5 bytes a token on text and code; asking for 4 is safe."""


@dataclass(frozen=True, slots=True)
class Member:
    """One neuron of the network: the name of its wallet, and what it does: `validator`, `miner` or a cheat."""

    name: str
    role: str


@dataclass(frozen=True, slots=True)
class Plan:
    """What to found. `preset` is the name of a preset or a TOML file of constants; `text` a folder of text files,
    the standard library when None."""

    miners: int
    validators: int
    cheats: tuple[str, ...]
    preset: str
    block_seconds: float
    text: Path | None

    def members(self) -> tuple[Member, ...]:
        """Validators first, so that they get the first slots; then miners, then cheats."""
        cheats = [adversary(kind) and kind for kind in self.cheats]
        repeated = {kind: cheats.count(kind) > 1 for kind in cheats}
        named = [Member(f"{k}-{i}" if repeated[k] else k, k) for i, k in enumerate(cheats, 1)]
        return (
            *(Member(f"validator-{i}", "validator") for i in range(1, self.validators + 1)),
            *(Member(f"miner-{i}", "miner") for i in range(1, self.miners + 1)),
            *named,
        )


def read_members(folder: Path) -> tuple[Member, ...] | None:
    """The members of the network in `folder`; None when there is nothing there yet. Raises `FolderError` when the
    folder holds something else."""
    try:
        table = json.loads((folder / MEMBERS_FILE).read_text())
        return tuple(Member(**member) for member in table["members"])
    except FileNotFoundError:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise FolderError(f"{folder} is not empty and holds no Windrow network; choose another --dir") from None
        return None
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise FolderError(f"{folder / MEMBERS_FILE} is damaged: {error}; remove {folder} to start over") from error


def found(folder: Path, plan: Plan, say: Callable[[str], None]) -> None:
    """Make the network in `folder`, whole or not at all: it is built beside it and renamed at the end."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        asyncio.run(_found(building, plan, say))
        try:
            building.rename(folder)
        except OSError as error:
            raise FolderError(f"{folder} appeared while the network was being made: {error}") from error
    finally:
        shutil.rmtree(building, ignore_errors=True)


async def _found(folder: Path, plan: Plan, say: Callable[[str], None]) -> None:
    members = plan.members()
    table = _constants(plan.preset)
    _check_size(table, members)
    run = await _write_run(folder, table, plan, say)
    say("making wallets and the chain")
    chain = _new_chain(folder, run, plan)
    try:
        chain.produce_block(time.time())
        await _register(folder, run, chain, members)
    finally:
        await chain.close()
    (folder / MEMBERS_FILE).write_text(json.dumps({"members": [asdict(m) for m in members]}, indent=1))


def _constants(preset: str) -> dict[str, Any]:
    if preset in PRESETS:
        return preset_table(preset)
    try:
        return tomllib.loads(Path(preset).read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        names = ", ".join(PRESETS)
        raise ConfigError(f"{preset!r} is neither a preset ({names}) nor a TOML file of constants: {error}") from error


def _check_size(table: dict[str, Any], members: tuple[Member, ...]) -> None:
    # Placeholders stand in for what only the dataset and the model will tell, so that a wrong constant is
    # reported before minutes are spent on text.
    blank = {**table, "genesis_root": "0" * 64, "dataset": {**table.get("dataset", {}), "index_digest": "0" * 64}}
    run = run_from_table(blank)
    if len(members) > run.dataset.slots:
        raise ConfigError(f"{len(members)} neurons do not fit the {run.dataset.slots} slots of this run")
    if not any(member.role == "validator" for member in members) or len(members) < 2:
        raise ConfigError("a network needs at least one validator and one miner")


async def _write_run(folder: Path, table: dict[str, Any], plan: Plan, say: Callable[[str], None]) -> Run:
    shape, vocabulary = table["dataset"], table["model"]["vocab_size"]
    held_out = table["gauntlet"]["held_out_pages"]
    page_tokens = shape["page_sequences"] * shape["sequence_tokens"]
    assignable = shape["slots"] * table["inner"]["steps"] * table["inner"]["pages_per_step"]
    pages = assignable + table["gauntlet"]["random_pages"] + held_out
    say("reading text")
    files = standard_library_texts() if plan.text is None else folder_texts(plan.text)
    require_bytes(files, pages * page_tokens * _MOST_BYTES_PER_TOKEN)
    say(f"training a tokenizer of {vocabulary} tokens on {len(files)} files")
    tokenizer = train_tokenizer(files, vocabulary)
    say("cutting the text into pages")
    table["dataset"]["index_digest"] = await write_dataset(
        DirectoryBucket(folder / "dataset"),
        tokenize(files, tokenizer),
        vocab_size=vocabulary,
        sequence_tokens=shape["sequence_tokens"],
        page_sequences=shape["page_sequences"],
        held_out_pages=held_out,
        tokenizer=tokenizer,
        shard_pages=_PAGES_PER_SHARD,
    )
    say("initialising the model")
    theta = initial_parameters(table["model"], seed=0)
    table["genesis_root"] = state_root(theta)
    run = run_from_table(table)
    (folder / "run.toml").write_text(tomli_w.dumps(table))
    layout = Layout.from_shapes(parameter_shapes(build_model(run.model)))
    tensors = layout.tensors(theta)
    genesis = DirectoryBucket(folder / "genesis")
    window, root = run.time.first_window, run.genesis_root
    await write_checkpoint(genesis, Keys(run.digest()[:16]), window=window, root=root, tensors=tensors)
    return run


def _new_chain(folder: Path, run: Run, plan: Plan) -> LocalChain:
    config = LocalChainConfig(
        block_seconds=plan.block_seconds,
        tempo_blocks=run.time.window_blocks,
        max_uids=run.dataset.slots,
        max_validators=8,
        validator_min_stake=1.0,
        weights_rate_limit_blocks=1,
        commitment_rate_limit_blocks=1,
        immunity_blocks=10 * run.time.window_blocks,
        registration_cost=0.0,
        emission_per_block=1.0,
        max_registrations_per_block=run.dataset.slots,
    )
    names = [member.name for member in plan.members()]
    balances = {_wallet(folder, name, make=True).coldkey.ss58_address: 2 * _STAKE_TAO for name in names}
    return LocalChain.create(folder / "chain.sqlite", config, balances, seed=os.urandom(32))


def _wallet(folder: Path, name: str, *, make: bool = False) -> Wallet:
    wallet = Wallet(name, "default", str(network_defaults(folder)["wallet_path"]))
    if make:
        wallet.create_new_coldkey(use_password=False, suppress=True)
        wallet.create_new_hotkey(use_password=False, suppress=True)
    return wallet


async def _register(folder: Path, run: Run, chain: LocalChain, members: tuple[Member, ...]) -> None:
    genesis = folder / "genesis"
    for rank, member in enumerate(members):
        wallet = _wallet(folder, member.name)
        hotkey = wallet.hotkey.ss58_address
        await chain.register(wallet.coldkey, hotkey)
        if member.role == "validator":
            # Less stake for each further one: the first leads, the next ones stand in, in this order.
            await chain.add_stake(wallet.coldkey, hotkey, math.floor(_STAKE_TAO / (1 + rank / 10)))
            shutil.copytree(genesis, folder / "buckets" / bucket_name(hotkey))
    shutil.rmtree(genesis)
