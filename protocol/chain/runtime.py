"""The rules of the local chain: what each call and each epoch does to its database.

Every function runs inside the caller's transaction and either raises or has done all of its work. The rules
are Bittensor's, simplified where a subnet on one machine gains nothing:

- Stake belongs to a hotkey and moves only by `add_stake`; emission goes to the coldkey's balance. So a
  validator stays a validator and a miner a miner for as long as a local network runs.
- A permit is not stored but follows from stake: the `max_validators` neurons with most stake, among those
  with at least `validator_min_stake`, ties to the lower uid. On Bittensor it changes at epochs only; here a
  fresh network has its validator at once instead of one tempo later.
- An epoch in which nobody with a permit judged anybody else pays nothing (subtensor then pays validators by
  stake).
- There is no activity cut-off: weights count until they are replaced or their validator loses its permit.
"""

from __future__ import annotations

import json
import sqlite3
from dataclasses import astuple, dataclass

import numpy as np

from protocol.chain.extrinsic import (
    RAO_PER_TAO,
    SUPPLY_LIMIT_TAO,
    WEIGHT_LIMIT,
    AddStake,
    Call,
    Commit,
    Register,
    SetWeights,
    check_address,
    tao_to_rao,
)
from protocol.chain.port import COMMITMENT_LIMIT_BYTES, Neuron
from protocol.chain.yuma import epoch
from protocol.errors import (
    AlreadyRegistered,
    BadExtrinsic,
    ChainError,
    CommitmentTooLong,
    InsufficientBalance,
    NoPermit,
    NotRegistered,
    Pruned,
    RateLimited,
    SubnetFull,
)

# What belongs to a uid hangs on its neuron by ON DELETE CASCADE, so nothing of a replaced neuron can stay.
SCHEMA = """
CREATE TABLE chain (seed BLOB NOT NULL, config TEXT NOT NULL);
CREATE TABLE blocks (number INTEGER PRIMARY KEY, timestamp REAL NOT NULL);
CREATE TABLE nonces (signer TEXT PRIMARY KEY, next INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE balances (coldkey TEXT PRIMARY KEY, rao INTEGER NOT NULL CHECK (rao >= 0)) WITHOUT ROWID;
CREATE TABLE stakes (hotkey TEXT PRIMARY KEY, rao INTEGER NOT NULL CHECK (rao >= 0)) WITHOUT ROWID;
CREATE TABLE neurons (
    uid INTEGER PRIMARY KEY, hotkey TEXT NOT NULL UNIQUE, coldkey TEXT NOT NULL,
    registered_at INTEGER NOT NULL, weights_set_at INTEGER, incentive REAL NOT NULL DEFAULT 0,
    dividends REAL NOT NULL DEFAULT 0, emission_rao INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE commitments (
    uid INTEGER PRIMARY KEY REFERENCES neurons ON DELETE CASCADE, data BLOB NOT NULL, block INTEGER NOT NULL
);
CREATE TABLE weights (
    validator INTEGER NOT NULL REFERENCES neurons ON DELETE CASCADE,
    target INTEGER NOT NULL REFERENCES neurons ON DELETE CASCADE,
    value INTEGER NOT NULL, PRIMARY KEY (validator, target)
) WITHOUT ROWID;
CREATE INDEX weights_by_target ON weights (target);
CREATE TABLE bonds (
    validator INTEGER NOT NULL REFERENCES neurons ON DELETE CASCADE,
    target INTEGER NOT NULL REFERENCES neurons ON DELETE CASCADE,
    value REAL NOT NULL, PRIMARY KEY (validator, target)
) WITHOUT ROWID;
CREATE INDEX bonds_by_target ON bonds (target);
CREATE TABLE past_neurons (block INTEGER PRIMARY KEY, neurons TEXT NOT NULL);
"""

_KEPT_BLOCKS = 512
"""For how many blocks it can be asked who was registered. A node of Bittensor keeps about 256."""


@dataclass(frozen=True, slots=True)
class LocalChainConfig:
    """Constants of a local chain, written into its file once.

    `validator_min_stake`, `registration_cost` and `emission_per_block` are in TAO; `*_blocks` are counts of
    blocks; `kappa` and `bond_alpha` are those of `protocol.chain.yuma`. Raises `ChainError` for an impossible
    value.
    """

    block_seconds: float
    tempo_blocks: int
    max_uids: int
    max_validators: int
    validator_min_stake: float
    weights_rate_limit_blocks: int
    commitment_rate_limit_blocks: int
    immunity_blocks: int
    registration_cost: float
    emission_per_block: float
    max_registrations_per_block: int
    kappa: float = 0.5
    bond_alpha: float = 0.1

    def __post_init__(self) -> None:
        supply = float(SUPPLY_LIMIT_TAO)
        bounds: tuple[tuple[str, float, float], ...] = (
            ("block_seconds", 1e-3, 86_400.0),
            ("tempo_blocks", 1, 1_000_000),
            ("max_uids", 1, WEIGHT_LIMIT + 1),
            ("max_validators", 1, WEIGHT_LIMIT + 1),
            ("validator_min_stake", 0.0, supply),
            ("weights_rate_limit_blocks", 0, 1_000_000),
            ("commitment_rate_limit_blocks", 0, 1_000_000),
            # At least one, or a neuron could be replaced in its own block, any number of times.
            ("immunity_blocks", 1, 1_000_000_000),
            ("registration_cost", 0.0, supply),
            ("emission_per_block", 0.0, supply / max(1, self.tempo_blocks)),
            ("max_registrations_per_block", 1, WEIGHT_LIMIT + 1),
            ("kappa", 1e-6, 1.0),
            ("bond_alpha", 1e-6, 1.0),
        )
        for name, low, high in bounds:
            if not low <= getattr(self, name) <= high:
                raise ChainError(f"{name} = {getattr(self, name)} is impossible; give {low:g} to {high:g}")


def neurons(connection: sqlite3.Connection, config: LocalChainConfig) -> tuple[Neuron, ...]:
    """All neurons in ascending uid, permits included."""
    rows = connection.execute(
        "SELECT uid, n.hotkey, coldkey, COALESCE(s.rao, 0), incentive, dividends, emission_rao,"
        " COALESCE(weights_set_at, registered_at), registered_at"
        " FROM neurons n LEFT JOIN stakes s ON s.hotkey = n.hotkey ORDER BY uid"
    ).fetchall()
    enough = [row for row in rows if row[3] > 0 and row[3] >= config.validator_min_stake * RAO_PER_TAO]
    permitted = {row[0] for row in sorted(enough, key=lambda row: (-row[3], row[0]))[: config.max_validators]}
    return tuple(
        Neuron(
            uid=uid,
            hotkey=hotkey,
            coldkey=coldkey,
            stake=stake_rao / RAO_PER_TAO,
            validator_permit=uid in permitted,
            incentive=incentive,
            dividends=dividends,
            emission=emission_rao / RAO_PER_TAO,
            last_update=updated,
            registered_at=registered_at,
        )
        for uid, hotkey, coldkey, stake_rao, incentive, dividends, emission_rao, updated, registered_at in rows
    )


def keep_neurons(connection: sqlite3.Connection, config: LocalChainConfig, number: int) -> None:
    """Keep who is registered at the end of block `number`, the newest one, unless nothing has changed since the last
    block that was kept; and drop what nobody may ask for any more."""
    now = json.dumps([astuple(neuron) for neuron in neurons(connection, config)])
    last = connection.execute("SELECT neurons FROM past_neurons ORDER BY block DESC LIMIT 1").fetchone()
    if last is None or last[0] != now:
        connection.execute("INSERT INTO past_neurons (block, neurons) VALUES (?, ?)", (number, now))
    oldest = connection.execute("SELECT MAX(block) FROM past_neurons WHERE block <= ?", (number - _KEPT_BLOCKS,))
    connection.execute("DELETE FROM past_neurons WHERE block < ?", (oldest.fetchone()[0] or 0,))


def neurons_at(connection: sqlite3.Connection, number: int) -> tuple[Neuron, ...]:
    """All neurons at the end of block `number`, which is not the newest one. Raises `Pruned`."""
    row = connection.execute(
        "SELECT neurons FROM past_neurons WHERE block <= ? ORDER BY block DESC LIMIT 1", (number,)
    ).fetchone()
    if row is None:
        raise Pruned(f"this chain no longer tells who was registered in block {number}: it keeps {_KEPT_BLOCKS} blocks")
    return tuple(Neuron(*fields) for fields in json.loads(row[0]))


def apply(connection: sqlite3.Connection, config: LocalChainConfig, head: int, signer: str, call: Call) -> int:
    """Do what `call` says on behalf of `signer`, at block `head`; returns the uid that the call was about."""
    match call:
        case Register():
            return _register(connection, config, head, signer, call.hotkey)
        case Commit():
            return _commit(connection, config, head, signer, call.data)
        case SetWeights():
            return _set_weights(connection, config, head, signer, call)
        case AddStake():
            return _add_stake(connection, signer, call)


def run_epoch(connection: sqlite3.Connection, config: LocalChainConfig) -> None:
    """Yuma consensus over the weights in force: new incentive, dividends and bonds, and emission paid out,
    half by incentive and half by dividends, rounded down to whole rao."""
    present = neurons(connection, config)
    index = {neuron.uid: i for i, neuron in enumerate(present)}
    n = len(present)
    matrices = {}
    for table in ("weights", "bonds"):
        matrices[table] = np.zeros((n, n))
        for validator, target, value in connection.execute(f"SELECT validator, target, value FROM {table}"):
            matrices[table][index[validator], index[target]] = value
    result = epoch(
        np.array([neuron.stake for neuron in present], dtype=np.float64),
        matrices["weights"],
        matrices["bonds"],
        np.array([neuron.validator_permit for neuron in present], dtype=np.bool_),
        kappa=config.kappa,
        bond_alpha=config.bond_alpha,
    )
    half_rao = tao_to_rao(config.emission_per_block * config.tempo_blocks, "an emission") / 2
    for neuron, incentive, dividends in zip(present, result.incentive.tolist(), result.dividends.tolist(), strict=True):
        emission_rao = int(half_rao * incentive) + int(half_rao * dividends)
        connection.execute(
            "UPDATE neurons SET incentive = ?, dividends = ?, emission_rao = ? WHERE uid = ?",
            (incentive, dividends, emission_rao, neuron.uid),
        )
        credit(connection, neuron.coldkey, emission_rao)
    connection.execute("DELETE FROM bonds")
    connection.executemany(
        "INSERT INTO bonds (validator, target, value) VALUES (?, ?, ?)",
        [(present[i].uid, present[j].uid, float(result.bonds[i, j])) for i, j in np.argwhere(result.bonds > 0.0)],
    )


def balance_rao(connection: sqlite3.Connection, coldkey: str) -> int:
    """What `coldkey` owns and has not staked, in rao; 0 for an unknown one."""
    row = connection.execute("SELECT rao FROM balances WHERE coldkey = ?", (coldkey,)).fetchone()
    return 0 if row is None else int(row[0])


def credit(connection: sqlite3.Connection, coldkey: str, amount_rao: int) -> None:
    """Add to the balance of `coldkey`."""
    connection.execute(
        "INSERT INTO balances (coldkey, rao) VALUES (?, ?)"
        " ON CONFLICT (coldkey) DO UPDATE SET rao = rao + excluded.rao",
        (coldkey, amount_rao),
    )


def _register(connection: sqlite3.Connection, config: LocalChainConfig, head: int, coldkey: str, hotkey: str) -> int:
    check_address(hotkey)
    present = neurons(connection, config)
    for neuron in present:
        if neuron.hotkey == hotkey:
            raise AlreadyRegistered(f"hotkey {hotkey} holds uid {neuron.uid} already; go on with it")
    if sum(neuron.registered_at == head for neuron in present) >= config.max_registrations_per_block:
        raise RateLimited(f"block {head} takes no more registrations; try again from block {head + 1} on")
    _pay(connection, coldkey, tao_to_rao(config.registration_cost, "a registration cost"))
    taken = {neuron.uid for neuron in present}
    uid = next((uid for uid in range(config.max_uids) if uid not in taken), None)
    if uid is None:
        uid = _replaceable(present, config, head)
        connection.execute("DELETE FROM neurons WHERE uid = ?", (uid,))
    connection.execute(
        "INSERT INTO neurons (uid, hotkey, coldkey, registered_at) VALUES (?, ?, ?, ?)",
        (uid, hotkey, coldkey, head),
    )
    return uid


def _replaceable(present: tuple[Neuron, ...], config: LocalChainConfig, head: int) -> int:
    """The uid that makes room: least incentive, then longest registered; never immune ones or validators."""
    candidates = [
        neuron
        for neuron in present
        if not neuron.validator_permit and head - neuron.registered_at >= config.immunity_blocks
    ]
    if not candidates:
        raise SubnetFull(
            f"all {len(present)} uids are taken, by validators or by neurons younger than "
            f"{config.immunity_blocks} blocks; try again later"
        )
    return min(candidates, key=lambda neuron: (neuron.incentive, neuron.registered_at, neuron.uid)).uid


def _commit(connection: sqlite3.Connection, config: LocalChainConfig, head: int, hotkey: str, data: bytes) -> int:
    uid = _uid(connection, hotkey)
    if len(data) > COMMITMENT_LIMIT_BYTES:
        raise CommitmentTooLong(
            f"a commitment may have {COMMITMENT_LIMIT_BYTES} bytes, this one has {len(data)}; shorten it"
        )
    row = connection.execute("SELECT block FROM commitments WHERE uid = ?", (uid,)).fetchone()
    _check_rate("commitments", None if row is None else row[0], config.commitment_rate_limit_blocks, head)
    connection.execute("INSERT OR REPLACE INTO commitments (uid, data, block) VALUES (?, ?, ?)", (uid, data, head))
    return uid


def _set_weights(
    connection: sqlite3.Connection, config: LocalChainConfig, head: int, hotkey: str, call: SetWeights
) -> int:
    uid = _uid(connection, hotkey)
    present = {neuron.uid: neuron for neuron in neurons(connection, config)}
    row = dict(zip(call.uids, call.values, strict=False))
    if len(row) != len(call.uids) or len(call.uids) != len(call.values):
        raise BadExtrinsic("weights need one value for each uid and each uid only once; send them again so")
    unknown = row.keys() - present.keys()
    if unknown:
        raise BadExtrinsic(f"uid {min(unknown)} is not registered; set weights for registered uids only")
    largest = max(row.values(), default=0)
    if largest == 0:
        raise BadExtrinsic("no weight is positive; set at least one")
    if row.keys() != {uid} and not present[uid].validator_permit:
        raise NoPermit(f"uid {uid} has no validator permit, so it may weigh only itself; add stake to {hotkey} first")
    last = connection.execute("SELECT weights_set_at FROM neurons WHERE uid = ?", (uid,)).fetchone()[0]
    _check_rate("weights", last, config.weights_rate_limit_blocks, head)
    connection.execute("DELETE FROM weights WHERE validator = ?", (uid,))
    connection.executemany(
        "INSERT INTO weights (validator, target, value) VALUES (?, ?, ?)",
        [(uid, target, value * WEIGHT_LIMIT // largest) for target, value in row.items() if value > 0],
    )
    connection.execute("UPDATE neurons SET weights_set_at = ? WHERE uid = ?", (head, uid))
    return uid


def _add_stake(connection: sqlite3.Connection, coldkey: str, call: AddStake) -> int:
    uid = _uid(connection, call.hotkey)
    _pay(connection, coldkey, call.amount_rao)
    connection.execute(
        "INSERT INTO stakes (hotkey, rao) VALUES (?, ?) ON CONFLICT (hotkey) DO UPDATE SET rao = rao + excluded.rao",
        (call.hotkey, call.amount_rao),
    )
    return uid


def _uid(connection: sqlite3.Connection, hotkey: str) -> int:
    row = connection.execute("SELECT uid FROM neurons WHERE hotkey = ?", (hotkey,)).fetchone()
    if row is None:
        raise NotRegistered(f"hotkey {hotkey[:64]} holds no uid; register it first")
    return int(row[0])


def _pay(connection: sqlite3.Connection, coldkey: str, amount_rao: int) -> None:
    owned_rao = balance_rao(connection, coldkey)
    if owned_rao < amount_rao:
        raise InsufficientBalance(
            f"coldkey {coldkey} owns {owned_rao / RAO_PER_TAO:g} TAO and needs "
            f"{amount_rao / RAO_PER_TAO:g}; fund it first"
        )
    connection.execute("UPDATE balances SET rao = rao - ? WHERE coldkey = ?", (amount_rao, coldkey))


def _check_rate(what: str, last: int | None, limit_blocks: int, head: int) -> None:
    if last is not None and head < last + limit_blocks:
        raise RateLimited(f"{what} were set at block {last}; try again from block {last + limit_blocks} on")
