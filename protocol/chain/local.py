"""The local chain: the `Chain` port over one SQLite file shared by processes of one machine (protocol §5).

Time is not read but made: somebody (a process with a timer, or a test stepping by hand) calls
`produce_block`. The chain therefore stands still while nobody runs it and goes on where it stopped.

Every write is a signed extrinsic, verified inside the transaction that writes. Whoever can write the file
could of course edit it without asking: the signatures are there so that the code of a neuron meets on one
machine the rules, and the refusals, that it will meet on a public chain; they do not protect the file.
"""

from __future__ import annotations

import json
import math
import os
import sqlite3
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import asdict
from pathlib import Path

from bittensor_core import Keypair
from blake3 import blake3

from protocol.chain import runtime
from protocol.chain.extrinsic import (
    RAO_PER_TAO,
    AddStake,
    Call,
    Commit,
    Extrinsic,
    Register,
    check_address,
    quantise_weights,
    sign,
    tao_to_rao,
    verify,
)
from protocol.chain.port import Block, Neuron
from protocol.chain.runtime import LocalChainConfig
from protocol.errors import BadExtrinsic, ChainError, ChainUnreachable

__all__ = ["LocalChain", "LocalChainConfig"]

SEED_BYTES = 32

_APPLICATION_ID = 0x57494E44  # "WIND": tells a chain from any other SQLite file
_FORMAT_VERSION = 2
_BUSY_SECONDS = 10.0


class LocalChain:
    """A process's connection to a local chain. Make it with `create` or `open`; never carry it through a fork.

    Calls are short (with 256 neurons: reads below 1 ms, writes below 3 ms, a block with its epoch 70 ms), so they
    run on the caller's thread, also inside `async def`; any thread may call. All methods raise `ChainUnreachable`
    after `close`, and when the file stays locked for 10 s or is damaged.
    """

    def __init__(self, path: Path, connection: sqlite3.Connection, config: LocalChainConfig, seed: bytes) -> None:
        self._path = path
        self._connection: sqlite3.Connection | None = connection
        self._lock = threading.Lock()
        self._config = config
        self._seed = seed

    @classmethod
    def create(cls, path: Path, config: LocalChainConfig, balances: Mapping[str, float], seed: bytes) -> LocalChain:
        """Make the file of a new chain, without any block yet, and open it.

        `balances` maps coldkeys (ss58) to TAO; `seed` (32 bytes) fixes all block hashes. The file appears
        whole or not at all. Raises `ChainError` when something is there already, and for impossible balances.
        """
        if len(seed) != SEED_BYTES:
            raise ChainError(f"a chain seed has {SEED_BYTES} bytes, this one has {len(seed)}; draw a new one")
        try:
            descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".new", dir=path.parent)
            os.close(descriptor)
            try:
                _write_genesis(name, config, balances, seed)
                _publish(Path(name), path)
            finally:
                os.unlink(name)
        except (OSError, sqlite3.Error) as error:
            raise ChainError(f"{path} cannot be made ({error}); choose another folder") from error
        return cls.open(path)

    @classmethod
    def open(cls, path: Path) -> LocalChain:
        """Connect to the chain in `path`; raises `ChainUnreachable` when there is none of this version."""
        if not path.is_file():
            raise ChainUnreachable(f"there is no local chain at {path}; start the network first or correct the path")
        # mode=rw: SQLite would otherwise make an empty database if the file vanished just now.
        uri = f"{path.absolute().as_uri()}?mode=rw"
        try:
            connection = sqlite3.connect(
                uri, uri=True, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False
            )
            try:
                config, seed = _read_genesis(connection, path)
            except BaseException:
                connection.close()
                raise
        except sqlite3.Error as error:
            raise ChainUnreachable(f"{path} cannot be read as a local chain ({error}); correct the path") from error
        return cls(path, connection, config, seed)

    @property
    def block_seconds(self) -> float:
        """Nominal seconds between two blocks."""
        return self._config.block_seconds

    @property
    def config(self) -> LocalChainConfig:
        """The constants this chain was made with."""
        return self._config

    def produce_block(self, timestamp: float) -> Block:
        """Append the next block (the first one is number 0) and, when its number is a positive multiple of
        the tempo, run the Yuma epoch in the same transaction.

        `timestamp` is in Unix seconds. Time never runs backwards on a chain: a block that would be older than
        its parent takes the parent's timestamp.
        """
        if not math.isfinite(timestamp):
            raise ChainError(f"a block cannot have the timestamp {timestamp}; give Unix seconds")
        with self._transaction("BEGIN IMMEDIATE") as connection:
            row = connection.execute("SELECT number, timestamp FROM blocks ORDER BY number DESC LIMIT 1").fetchone()
            number, timestamp = (0, timestamp) if row is None else (row[0] + 1, max(row[1], timestamp))
            if row is not None:
                runtime.keep_neurons(connection, self._config, row[0])
            connection.execute("INSERT INTO blocks (number, timestamp) VALUES (?, ?)", (number, timestamp))
            if number > 0 and number % self._config.tempo_blocks == 0:
                runtime.run_epoch(connection, self._config)
        return self._block(number, timestamp)

    def submit(self, extrinsic: Extrinsic) -> int:
        """Verify a signed extrinsic and do what it says, or raise and change nothing; returns its uid.

        Raises `BadExtrinsic` for a wrong signature, a nonce that is not the signer's next one and arguments
        of a wrong shape; else the `ChainError` of the rule it breaks. A refused extrinsic does not use up its
        nonce.
        """
        with self._transaction("BEGIN IMMEDIATE") as connection:
            return self._include(connection, extrinsic)

    async def balance(self, coldkey: str) -> float:
        """TAO that `coldkey` (ss58) owns and has not staked; 0 for an unknown one."""
        with self._transaction("BEGIN") as connection:
            return runtime.balance_rao(connection, coldkey) / RAO_PER_TAO

    def nonce(self, signer: str) -> int:
        """The nonce that the next extrinsic of `signer` (ss58) must carry."""
        with self._transaction("BEGIN") as connection:
            return _next_nonce(connection, signer)

    async def head(self) -> Block:
        """The newest block; `ChainError` while there is none."""
        with self._transaction("BEGIN") as connection:
            number = _head(connection)
            return self._read_block(connection, number)

    async def block(self, number: int) -> Block:
        """The block with this number; `ChainError` when it is not there yet."""
        with self._transaction("BEGIN") as connection:
            return self._read_block(connection, number)

    async def neurons(self) -> tuple[Neuron, ...]:
        """All registered neurons in ascending uid. `emission` is what the last epoch paid, in TAO."""
        with self._transaction("BEGIN") as connection:
            return runtime.neurons(connection, self._config)

    async def neurons_at(self, number: int) -> tuple[Neuron, ...]:
        """All that were registered at the end of block `number`, in ascending uid: the newest block has not ended.
        `ChainError` when it is not there yet, `Pruned` when it is some hundred blocks old."""
        with self._transaction("BEGIN") as connection:
            head = _head(connection)
            if number > head:
                raise ChainError(f"block {number} is not there yet; wait until the head has passed it")
            if number == head:
                return runtime.neurons(connection, self._config)
            return runtime.neurons_at(connection, number)

    async def commitments(self) -> dict[str, bytes]:
        """The newest commitment of every registered hotkey that has one, by ss58 address."""
        with self._transaction("BEGIN") as connection:
            return dict(
                connection.execute("SELECT hotkey, data FROM commitments JOIN neurons USING (uid) ORDER BY uid")
            )

    async def weights(self) -> dict[int, dict[int, float]]:
        """Row-normalised weights of those who hold a permit now: the rows that the next epoch will read."""
        with self._transaction("BEGIN") as connection:
            permitted = {n.uid for n in runtime.neurons(connection, self._config) if n.validator_permit}
            rows: dict[int, dict[int, int]] = {}
            for validator, target, value in connection.execute("SELECT validator, target, value FROM weights"):
                if validator in permitted:
                    rows.setdefault(validator, {})[target] = value
        return {uid: {j: value / sum(row.values()) for j, value in row.items()} for uid, row in rows.items()}

    async def register(self, coldkey: Keypair, hotkey: str) -> int:
        """Give `hotkey` (ss58) the lowest free uid, or that of the least useful neuron when all are taken.

        `coldkey` pays the registration cost, which is burnt. A replaced neuron loses its weights, bonds and
        commitment; its stake stays with its hotkey and counts again once that registers anew. Raises
        `AlreadyRegistered`, `RateLimited`, `InsufficientBalance`, `SubnetFull` and, for no address,
        `BadExtrinsic`.
        """
        return self._send(coldkey, Register(hotkey=hotkey))

    async def commit(self, hotkey: Keypair, data: bytes) -> None:
        """Replace the hotkey's commitment; raises `NotRegistered`, `CommitmentTooLong` and `RateLimited`."""
        self._send(hotkey, Commit(data=data))

    async def set_weights(self, hotkey: Keypair, weights: Mapping[int, float]) -> None:
        """Replace the weights of `hotkey`; kept as u16, the largest being 65535.

        Raises `NotRegistered`, `BadExtrinsic` (an unknown uid, a weight that is negative or not finite, none
        that is positive), `NoPermit` (weights for others need a validator permit) and `RateLimited`.
        """
        self._send(hotkey, quantise_weights(weights))

    async def add_stake(self, coldkey: Keypair, hotkey: str, amount: float) -> None:
        """Move `amount` TAO from the balance of `coldkey` to the stake of the registered `hotkey` (ss58).

        Raises `NotRegistered`, `InsufficientBalance` and, for no positive amount, `BadExtrinsic`.
        """
        amount_rao = tao_to_rao(amount, "a stake")
        if amount_rao == 0:
            raise BadExtrinsic(f"a stake of {amount} TAO is less than one rao; add more")
        self._send(coldkey, AddStake(hotkey=hotkey, amount_rao=amount_rao))

    async def close(self) -> None:
        """Close the file. Idempotent."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    def _send(self, keypair: Keypair, call: Call) -> int:
        # The nonce is read in the transaction that uses it, so processes may share a key.
        with self._transaction("BEGIN IMMEDIATE") as connection:
            nonce = _next_nonce(connection, keypair.ss58_address)
            return self._include(connection, sign(keypair, self._seed, call, nonce))

    def _include(self, connection: sqlite3.Connection, extrinsic: Extrinsic) -> int:
        call = verify(extrinsic, self._seed)
        due = _next_nonce(connection, extrinsic.signer)
        if extrinsic.nonce != due:
            raise BadExtrinsic(f"the nonce is {extrinsic.nonce}, but {due} is due for {extrinsic.signer}; sign again")
        uid = runtime.apply(connection, self._config, _head(connection), extrinsic.signer, call)
        connection.execute("INSERT OR REPLACE INTO nonces (signer, next) VALUES (?, ?)", (extrinsic.signer, due + 1))
        return uid

    def _read_block(self, connection: sqlite3.Connection, number: int) -> Block:
        row = connection.execute("SELECT timestamp FROM blocks WHERE number = ?", (number,)).fetchone()
        if row is None:
            raise ChainError(f"block {number} is not there yet; wait until the head has passed it")
        return self._block(number, row[0])

    def _block(self, number: int, timestamp: float) -> Block:
        return Block(number, blake3(self._seed + number.to_bytes(8, "little")).digest(), timestamp)

    @contextmanager
    def _transaction(self, begin: str) -> Iterator[sqlite3.Connection]:
        with self._lock:
            if self._connection is None:
                raise ChainUnreachable(f"the connection to {self._path} is closed; open it again")
            try:
                with self._connection:  # commits, or rolls back on any exception
                    self._connection.execute(begin)
                    yield self._connection
            except sqlite3.Error as error:
                raise ChainUnreachable(
                    f"the local chain at {self._path} does not answer ({error}); "
                    "see whether another process holds it and whether the disk is full"
                ) from error


def _head(connection: sqlite3.Connection) -> int:
    number: int | None = connection.execute("SELECT MAX(number) FROM blocks").fetchone()[0]
    if number is None:
        raise ChainError("the chain has no block yet; let its first block be produced")
    return number


def _next_nonce(connection: sqlite3.Connection, signer: str) -> int:
    row = connection.execute("SELECT next FROM nonces WHERE signer = ?", (signer,)).fetchone()
    return 0 if row is None else int(row[0])


def _write_genesis(name: str, config: LocalChainConfig, balances: Mapping[str, float], seed: bytes) -> None:
    with closing(sqlite3.connect(name, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")  # readers and the writer do not wait for each other
        connection.executescript(runtime.SCHEMA)
        connection.execute("INSERT INTO chain (seed, config) VALUES (?, ?)", (seed, json.dumps(asdict(config))))
        for coldkey, amount in balances.items():
            check_address(coldkey)
            runtime.credit(connection, coldkey, tao_to_rao(amount, f"a balance of {coldkey}"))
        connection.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {_FORMAT_VERSION}")


def _publish(built: Path, path: Path) -> None:
    """Give the finished file its name. A hard link, not a rename: it fails when the name is taken."""
    # SQLite would replay a log that an earlier, deleted chain left behind into the new file.
    for taken in (path, Path(f"{path}-wal"), Path(f"{path}-journal")):
        if taken.exists():
            raise ChainError(f"{taken} exists already; open that chain, or choose another folder for a new one")
    try:
        os.link(built, path)
    except FileExistsError as error:
        raise ChainError(f"{path} was made by somebody else just now; open that chain instead") from error


def _read_genesis(connection: sqlite3.Connection, path: Path) -> tuple[LocalChainConfig, bytes]:
    application_id = connection.execute("PRAGMA application_id").fetchone()[0]
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if application_id != _APPLICATION_ID:
        raise ChainUnreachable(f"{path} is not a local chain of Windrow; correct the path")
    if version != _FORMAT_VERSION:
        raise ChainUnreachable(
            f"{path} has format {version} of the local chain, this Windrow reads format {_FORMAT_VERSION}; "
            "start a new network in another folder"
        )
    connection.execute("PRAGMA foreign_keys = ON")
    # In WAL mode a commit then needs no disk flush; a power cut may cost the last blocks but never the file.
    connection.execute("PRAGMA synchronous = NORMAL")
    seed, config = connection.execute("SELECT seed, config FROM chain").fetchone()
    return LocalChainConfig(**json.loads(config)), seed
