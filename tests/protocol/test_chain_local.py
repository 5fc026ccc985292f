"""What only the local chain does: its file, its blocks, its signed extrinsics, its epochs, and many processes."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from bittensor_core import Keypair
from blake3 import blake3

from protocol.chain.extrinsic import (
    AddStake,
    Commit,
    Extrinsic,
    Register,
    SetWeights,
    quantise_weights,
    sign,
    verify,
)
from protocol.chain.local import LocalChain, LocalChainConfig
from protocol.chain.port import Chain, Neuron
from protocol.errors import (
    BadExtrinsic,
    ChainError,
    ChainUnreachable,
    InsufficientBalance,
    NotRegistered,
    Pruned,
    RateLimited,
    SubnetFull,
)

REPOSITORY = Path(__file__).parents[2]
SEED = bytes(range(32))
CONFIG = LocalChainConfig(
    block_seconds=2.0,
    tempo_blocks=4,
    max_uids=4,
    max_validators=2,
    validator_min_stake=10.0,
    weights_rate_limit_blocks=0,
    commitment_rate_limit_blocks=0,
    immunity_blocks=3,
    registration_cost=0.5,
    emission_per_block=2.5,
    max_registrations_per_block=8,
)


def key(name: str) -> Keypair:
    return Keypair.create_from_uri(f"//{name}")


def ss58(name: str) -> str:
    return str(key(name).ss58_address)


OWNER = key("owner")


def make(path: Path, config: LocalChainConfig = CONFIG) -> LocalChain:
    return LocalChain.create(path, config, {OWNER.ss58_address: 1_000.0}, SEED)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "chain.db"


@pytest.fixture
def chain(path: Path) -> Iterator[LocalChain]:
    chain = make(path)
    chain.produce_block(100.0)
    yield chain
    asyncio.run(chain.close())


def register(chain: LocalChain, *names: str) -> None:
    for name in names:
        asyncio.run(chain.register(OWNER, ss58(name)))


def stake(chain: LocalChain, name: str, amount: float) -> None:
    asyncio.run(chain.add_stake(OWNER, ss58(name), amount))


def neurons(chain: Chain) -> dict[str, Neuron]:
    return {neuron.hotkey: neuron for neuron in asyncio.run(chain.neurons())}


# The file


def test_a_new_chain_has_no_block_and_says_what_to_do(path: Path) -> None:
    chain = make(path)
    with pytest.raises(ChainError, match="no block yet"):
        asyncio.run(chain.head())
    with pytest.raises(ChainError, match="no block yet"):
        register(chain, "a")
    asyncio.run(chain.close())


def test_everything_is_there_again_after_reopening(path: Path, chain: LocalChain) -> None:
    register(chain, "v", "a")
    stake(chain, "v", 20.0)
    asyncio.run(chain.commit(key("a"), b"where"))
    asyncio.run(chain.set_weights(key("v"), {1: 1.0}))
    for second in range(101, 106):
        chain.produce_block(float(second))
    reads = ("head", "neurons", "commitments", "weights")
    before = [asyncio.run(getattr(chain, read)()) for read in reads]
    asyncio.run(chain.close())
    again = LocalChain.open(path)
    assert [asyncio.run(getattr(again, read)()) for read in reads] == before
    assert again.config == CONFIG
    assert again.produce_block(200.0).number == 6
    asyncio.run(again.close())


def test_creating_over_anything_is_refused_and_changes_nothing(path: Path) -> None:
    path.write_bytes(b"somebody's thesis")
    with pytest.raises(ChainError, match="exists already"):
        make(path)
    assert path.read_bytes() == b"somebody's thesis"
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_the_log_of_a_deleted_chain_is_never_replayed_into_a_new_one(path: Path) -> None:
    Path(f"{path}-wal").write_bytes(b"old")
    with pytest.raises(ChainError, match=r"chain\.db-wal exists already"):
        make(path)
    assert not path.exists()


@pytest.mark.parametrize(
    ("balances", "seed", "word"),
    [({"nobody": 1.0}, SEED, "ss58"), ({ss58("a"): -1.0}, SEED, "balance"), ({}, b"short", "32 bytes")],
)
def test_a_chain_that_cannot_be_made_leaves_no_file(
    path: Path, balances: dict[str, float], seed: bytes, word: str
) -> None:
    with pytest.raises(ChainError, match=word):
        LocalChain.create(path, CONFIG, balances, seed)
    assert list(path.parent.iterdir()) == []


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ChainError, match="nowhere"):
        make(tmp_path / "nowhere" / "chain.db")


def test_a_file_that_is_no_chain_is_refused_with_a_sentence(path: Path) -> None:
    with pytest.raises(ChainUnreachable, match="there is no local chain"):
        LocalChain.open(path)
    path.write_bytes(b"not a database at all, just some text of a certain length" * 40)
    with pytest.raises(ChainUnreachable, match="cannot be read"):
        LocalChain.open(path)
    path.unlink()
    with closing(sqlite3.connect(path)) as other:
        other.execute("CREATE TABLE recipes (cake TEXT)")
    with pytest.raises(ChainUnreachable, match="not a local chain"):
        LocalChain.open(path)


def test_a_chain_of_another_format_is_refused(path: Path, chain: LocalChain) -> None:
    asyncio.run(chain.close())
    with closing(sqlite3.connect(path)) as other:
        other.execute("PRAGMA user_version = 99")
    with pytest.raises(ChainUnreachable, match="99"):
        LocalChain.open(path)


@pytest.mark.parametrize(
    "change", [{"tempo_blocks": 0}, {"kappa": 0.0}, {"bond_alpha": float("nan")}, {"immunity_blocks": 0}], ids=str
)
def test_impossible_constants_are_refused_by_name(change: dict[str, float]) -> None:
    with pytest.raises(ChainError, match=next(iter(change))):
        replace(CONFIG, **change)


# Blocks


def test_blocks_count_from_zero_and_their_hash_follows_from_seed_and_number(path: Path) -> None:
    chain = make(path)
    for number in range(3):
        block = chain.produce_block(50.0 + number)
        assert block.number == number
        assert block.timestamp == 50.0 + number
        assert block.hash == blake3(SEED + number.to_bytes(8, "little")).digest()
        assert asyncio.run(chain.head()) == block
    asyncio.run(chain.close())


def test_time_on_the_chain_never_runs_backwards(chain: LocalChain) -> None:
    assert chain.produce_block(90.0).timestamp == 100.0
    assert chain.produce_block(101.0).timestamp == 101.0
    with pytest.raises(ChainError, match="nan"):
        chain.produce_block(float("nan"))
    assert asyncio.run(chain.head()).number == 2


# Extrinsics


def forged(extrinsic: Extrinsic) -> dict[str, Extrinsic]:
    thief = sign(key("thief"), SEED, Register(hotkey=ss58("a")), extrinsic.nonce)
    return {
        "another signer's signature": replace(extrinsic, signature=thief.signature),
        "another signer's name": replace(extrinsic, signer=ss58("thief")),
        "no signature": replace(extrinsic, signature=b""),
        "a signature of 63 bytes": replace(extrinsic, signature=extrinsic.signature[:63]),
        "one flipped bit": replace(extrinsic, signature=bytes([extrinsic.signature[0] ^ 1]) + extrinsic.signature[1:]),
        "other arguments": replace(extrinsic, args=Register(hotkey=ss58("b")).encode()),
        "another call": replace(extrinsic, call="add_stake"),
        "another nonce": replace(extrinsic, nonce=extrinsic.nonce + 1),
        "a negative nonce": replace(extrinsic, nonce=-1),
        "a signer that is no address": replace(extrinsic, signer="x" * 10_000),
        "another chain": sign(OWNER, bytes(32), Register(hotkey=ss58("a")), extrinsic.nonce),
        "a skipped nonce": sign(OWNER, SEED, Register(hotkey=ss58("a")), extrinsic.nonce + 1),
    }


def test_an_extrinsic_that_is_not_genuine_is_refused_and_changes_nothing(chain: LocalChain) -> None:
    genuine = sign(OWNER, SEED, Register(hotkey=ss58("a")), 0)
    for fault, extrinsic in forged(genuine).items():
        with pytest.raises(BadExtrinsic):
            pytest.fail(f"accepted: {fault}, as uid {chain.submit(extrinsic)}")
        assert asyncio.run(chain.neurons()) == (), fault
        assert asyncio.run(chain.balance(OWNER.ss58_address)) == 1_000.0
    assert chain.submit(genuine) == 0


def test_an_extrinsic_counts_only_once(chain: LocalChain) -> None:
    register(chain, "a")
    once = sign(OWNER, SEED, AddStake(hotkey=ss58("a"), amount_rao=10**9), 1)
    chain.submit(once)
    with pytest.raises(BadExtrinsic, match="2 is due"):
        chain.submit(once)
    assert neurons(chain)[ss58("a")].stake == 1.0


def test_a_refused_call_neither_costs_anything_nor_uses_up_the_nonce(chain: LocalChain) -> None:
    with pytest.raises(NotRegistered):
        stake(chain, "nobody", 5.0)
    assert chain.nonce(OWNER.ss58_address) == 0
    register(chain, "a")
    assert chain.nonce(OWNER.ss58_address) == 1
    assert asyncio.run(chain.balance(OWNER.ss58_address)) == 999.5


@pytest.mark.parametrize(
    ("call", "args"),
    [
        ("register", b""),
        ("register", b"[]"),
        ("register", b"{}"),
        ("register", b'{"hotkey":1}'),
        ("register", b'{"hotkey":"x","more":1}'),
        ("register", b'{"hotkey":"' + ss58("a").encode() + b'"} '),
        ("register", b'{"hotkey":"x","hotkey":"' + ss58("a").encode() + b'"}'),
        ("commit", b'{"data":"zz"}'),
        ("commit", b'{"data":"AB"}'),
        ("set_weights", b'{"uids":[0],"values":[1.5]}'),
        ("set_weights", b'{"uids":[0],"values":[65536]}'),
        ("set_weights", b'{"uids":[0],"values":[-1]}'),
        ("set_weights", b'{"uids":[0],"values":[true]}'),
        ("set_weights", b'{"uids":[0],"values":[]}'),
        ("set_weights", b'{"uids":[0],"values":[1,1]}'),
        ("set_weights", b'{"uids":[0,0],"values":[1,1]}'),
        ("set_weights", b'{"uids":[0],"values":[0]}'),
        ("set_weights", b'{"uids":[],"values":[]}'),
        ("add_stake", b'{"amount_rao":0,"hotkey":"' + ss58("owner").encode() + b'"}'),
        ("add_stake", b'{"amount_rao":-5,"hotkey":"' + ss58("owner").encode() + b'"}'),
        ("add_stake", b'{"amount_rao":1' + b"0" * 400 + b',"hotkey":"' + ss58("owner").encode() + b'"}'),
        ("sudo", b"{}"),
    ],
    ids=lambda value: value[:40] if isinstance(value, bytes) else value,
)
def test_well_signed_nonsense_is_refused(chain: LocalChain, call: str, args: bytes) -> None:
    register(chain, "owner")  # the signer is a registered hotkey too, so only the arguments can be at fault
    unsigned = Extrinsic(call, args, OWNER.ss58_address, 1, b"")
    with pytest.raises(BadExtrinsic):
        chain.submit(replace(unsigned, signature=OWNER.sign(unsigned.message(SEED))))
    assert len(neurons(chain)) == 1
    assert chain.nonce(OWNER.ss58_address) == 1


@pytest.mark.parametrize(
    "call",
    [
        Register(hotkey=ss58("a")),
        Commit(data=b"\x00\xff"),
        SetWeights(uids=(0, 3), values=(65_535, 1)),
        AddStake(hotkey=ss58("a"), amount_rao=1),
    ],
    ids=lambda call: call.name,
)
def test_a_signed_call_comes_out_as_it_went_in(
    call: Register | Commit | SetWeights | AddStake,
) -> None:
    assert verify(sign(OWNER, SEED, call, 7), SEED) == call


def test_an_extrinsic_is_measured_before_it_is_read(chain: LocalChain) -> None:
    with pytest.raises(BadExtrinsic, match="larger"):
        chain.submit(sign(OWNER, SEED, Register(hotkey="x" * 2_000_000), 0))


def test_no_two_extrinsics_share_a_message() -> None:
    left = Extrinsic("ab", b"c", "d", 0, b"")
    for other in (Extrinsic("a", b"bc", "d", 0, b""), Extrinsic("ab", b"", "cd", 0, b""), replace(left, nonce=1)):
        assert other.message(SEED) != left.message(SEED)


def test_an_address_without_its_private_key_cannot_sign(chain: LocalChain) -> None:
    with pytest.raises(BadExtrinsic, match="unlock"):
        asyncio.run(chain.register(Keypair(ss58_address=OWNER.ss58_address), ss58("a")))


def test_weights_are_scaled_to_the_largest_and_tiny_ones_vanish() -> None:
    call = quantise_weights({2: 1e-9, 0: 0.5, 1: 0.25, 3: 0.0})
    assert call.uids == (0, 1)
    assert call.values == (65_535, 32_768)
    assert quantise_weights({4: 5e-324}).values == (65_535,)


# Registration, stake and permits


def test_registering_costs_and_staking_moves_what_is_left(chain: LocalChain) -> None:
    register(chain, "a")
    stake(chain, "a", 9.25)
    assert asyncio.run(chain.balance(OWNER.ss58_address)) == 990.25
    assert neurons(chain)[ss58("a")].stake == 9.25
    with pytest.raises(InsufficientBalance, match=r"990\.25"):
        stake(chain, "a", 990.3)
    for nonsense in (0.0, -1.0, float("nan"), float("inf"), 1e-12):
        with pytest.raises(BadExtrinsic):
            stake(chain, "a", nonsense)
    assert asyncio.run(chain.balance(OWNER.ss58_address)) == 990.25


def test_a_permit_follows_stake_at_once(chain: LocalChain) -> None:
    register(chain, "a", "b", "c")

    def permitted() -> set[str]:
        return {hotkey for hotkey, neuron in neurons(chain).items() if neuron.validator_permit}

    stake(chain, "a", 9.0)
    assert permitted() == set()
    stake(chain, "a", 1.0)
    assert permitted() == {ss58("a")}
    stake(chain, "b", 10.0)
    stake(chain, "c", 10.0)
    assert permitted() == {ss58("a"), ss58("b")}  # two places, equal stake: the lower uids
    stake(chain, "c", 0.5)
    assert permitted() == {ss58("c"), ss58("a")}


def test_without_a_minimum_stake_a_permit_still_takes_some(path: Path) -> None:
    chain = make(path, replace(CONFIG, validator_min_stake=0.0))
    chain.produce_block(0.0)
    register(chain, "a")
    assert not neurons(chain)[ss58("a")].validator_permit
    asyncio.run(chain.close())


def test_one_block_takes_only_so_many_registrations(path: Path) -> None:
    chain = make(path, replace(CONFIG, max_registrations_per_block=2))
    chain.produce_block(0.0)
    register(chain, "a", "b")
    with pytest.raises(RateLimited, match="block 1 on"):
        register(chain, "c")
    chain.produce_block(1.0)
    register(chain, "c")
    asyncio.run(chain.close())


def test_a_full_subnet_replaces_the_least_useful_neuron_that_is_old_enough(chain: LocalChain) -> None:
    register(chain, "v", "good", "bad", "worse")
    stake(chain, "v", 50.0)
    stake(chain, "worse", 5.0)
    asyncio.run(chain.commit(key("worse"), b"here"))
    asyncio.run(chain.set_weights(key("v"), {1: 0.6, 2: 0.3, 3: 0.1}))
    with pytest.raises(SubnetFull, match="3 blocks"):
        register(chain, "new")
    for second in range(101, 105):
        chain.produce_block(float(second))  # block 4 runs the epoch
    assert neurons(chain)[ss58("worse")].incentive == pytest.approx(0.1, abs=1e-4)

    register(chain, "new")
    now = neurons(chain)
    assert ss58("worse") not in now
    assert now[ss58("new")] == Neuron(
        uid=3,
        hotkey=ss58("new"),
        coldkey=OWNER.ss58_address,
        stake=0.0,
        validator_permit=False,
        incentive=0.0,
        dividends=0.0,
        emission=0.0,
        last_update=4,
        registered_at=4,
    )
    assert asyncio.run(chain.commitments()) == {}
    assert asyncio.run(chain.weights())[0].keys() == {1, 2}

    # The newcomer starts without any of its predecessor's weight or bonds.
    for second in range(105, 109):
        chain.produce_block(float(second))
    assert neurons(chain)[ss58("new")].incentive == 0.0
    # The stake stayed with the hotkey and is back when it registers again.
    register(chain, "worse")
    assert neurons(chain)[ss58("worse")].uid == 3
    assert neurons(chain)[ss58("worse")].stake == 5.0


def test_among_equals_the_longest_registered_is_replaced_and_validators_never(chain: LocalChain) -> None:
    register(chain, "v")
    stake(chain, "v", 50.0)
    chain.produce_block(101.0)
    register(chain, "older")
    chain.produce_block(102.0)
    register(chain, "b", "c")
    for second in range(103, 107):
        chain.produce_block(float(second))
    register(chain, "new")
    assert neurons(chain).keys() == {ss58(name) for name in ("v", "new", "b", "c")}
    for second in range(107, 111):
        chain.produce_block(float(second))
    register(chain, "newer")  # "new" has the lower uid, but "b" has been there for longer
    assert neurons(chain).keys() == {ss58(name) for name in ("v", "new", "newer", "c")}


# Epochs


def test_an_epoch_runs_every_tempo_and_pays_half_by_incentive_half_by_dividends(path: Path) -> None:
    chain = make(path)
    asyncio.run(chain.close())
    path.unlink()
    wallets = {ss58(f"cold-{name}"): 100.0 for name in ("v", "w", "a", "b")}
    chain = LocalChain.create(path, replace(CONFIG, registration_cost=0.0), wallets, SEED)
    chain.produce_block(0.0)
    for name in ("v", "w", "a", "b"):
        asyncio.run(chain.register(key(f"cold-{name}"), ss58(name)))
    asyncio.run(chain.add_stake(key("cold-v"), ss58("v"), 60.0))
    asyncio.run(chain.add_stake(key("cold-w"), ss58("w"), 40.0))
    asyncio.run(chain.set_weights(key("v"), {2: 1.0, 3: 1.0}))
    asyncio.run(chain.set_weights(key("w"), {2: 1.0}))
    for second in range(1, 4):
        chain.produce_block(float(second))
    assert all(neuron.emission == 0.0 for neuron in neurons(chain).values())
    chain.produce_block(4.0)

    # S = .6 .4; W = (½ ½) and (1 0). C_a: 1 gathers .4, ½ gathers 1: ½. C_b: ½ gathers .6: ½.
    # R_a = .6·½ + .4·½ = ½, R_b = .6·½ = .3: I = 5/8, 3/8. ΔB_a = .6 .4, ΔB_b = 1 0.
    # D_v = .6·5/8 + 3/8 = ¾, D_w = ¼. An epoch emits 2.5 · 4 = 10 TAO: 5 by I, 5 by D.
    expected = {"v": (0.0, 0.75, 3.75), "w": (0.0, 0.25, 1.25), "a": (0.625, 0.0, 3.125), "b": (0.375, 0.0, 1.875)}
    for name, (incentive, dividends, emission) in expected.items():
        neuron = neurons(chain)[ss58(name)]
        assert neuron.incentive == pytest.approx(incentive, abs=1e-12), name
        assert neuron.dividends == pytest.approx(dividends, abs=1e-12), name
        assert neuron.emission == pytest.approx(emission, abs=2e-9), name
        staked = {"v": 60.0, "w": 40.0}.get(name, 0.0)
        assert neuron.stake == staked
        assert asyncio.run(chain.balance(ss58(f"cold-{name}"))) == pytest.approx(100.0 - staked + emission, abs=2e-9)

    # Next tempo w comes round to (½ ½). ΔB_b = .6 .4 now, so B_b = .1·(.6 .4) + .9·(1 0) = .96 .04;
    # I = ½ ½: D_v = ½·.6 + ½·.96 = .78.
    asyncio.run(chain.set_weights(key("w"), {2: 1.0, 3: 1.0}))
    for second in range(5, 9):
        chain.produce_block(float(second))
    assert neurons(chain)[ss58("v")].dividends == pytest.approx(0.78, abs=1e-12)
    asyncio.run(chain.close())


def test_an_epoch_in_which_nobody_judged_pays_nothing(chain: LocalChain) -> None:
    register(chain, "v", "a")
    stake(chain, "v", 50.0)
    before = asyncio.run(chain.balance(OWNER.ss58_address))
    for second in range(101, 110):
        chain.produce_block(float(second))
    assert asyncio.run(chain.balance(OWNER.ss58_address)) == before
    assert all(neuron.emission == 0.0 for neuron in neurons(chain).values())


def test_the_self_weight_of_a_neuron_without_a_permit_counts_for_nothing(chain: LocalChain) -> None:
    register(chain, "a")
    asyncio.run(chain.set_weights(key("a"), {0: 1.0}))
    for second in range(101, 105):
        chain.produce_block(float(second))
    assert neurons(chain)[ss58("a")].incentive == 0.0


# Many processes


def start(script: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", script, *arguments],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


WRITER = """
import asyncio, json, sys
from pathlib import Path
from bittensor_core import Keypair
from protocol.chain.local import LocalChain

async def main(path, name):
    chain = LocalChain.open(path)
    owner = Keypair.create_from_uri("//owner")
    uids = []
    for i in range(5):
        hotkey = Keypair.create_from_uri(f"//{name}-{i}")
        uids.append(await chain.register(owner, hotkey.ss58_address))
        await chain.add_stake(owner, hotkey.ss58_address, 1.0)
        for j in range(5):
            await chain.commit(hotkey, f"{name}-{i}-{j}".encode())
            chain.produce_block(float(j))
    await chain.close()
    print(json.dumps(uids))

asyncio.run(main(Path(sys.argv[1]), sys.argv[2]))
"""


def test_processes_that_write_at_the_same_time_with_the_same_key_lose_nothing(path: Path) -> None:
    chain = make(path, replace(CONFIG, max_uids=64, max_registrations_per_block=64, emission_per_block=0.0))
    chain.produce_block(0.0)
    names = ("p", "q", "r", "s")
    writers = [start(WRITER, str(path), name) for name in names]
    uids = []
    for writer in writers:
        out, err = writer.communicate(timeout=120)
        assert writer.returncode == 0, err
        uids += json.loads(out)
    assert sorted(uids) == list(range(20))
    assert asyncio.run(chain.head()).number == 4 * 5 * 5
    assert chain.nonce(OWNER.ss58_address) == 40
    assert asyncio.run(chain.balance(OWNER.ss58_address)) == 1_000.0 - 20 * 0.5 - 20 * 1.0
    expected = {ss58(f"{name}-{i}"): f"{name}-{i}-4".encode() for name in names for i in range(5)}
    assert asyncio.run(chain.commitments()) == expected
    assert all(chain.nonce(hotkey) == 5 for hotkey in expected)
    asyncio.run(chain.close())


DIES_WRITING = """
import os, sys
from pathlib import Path
from protocol.chain.local import LocalChain

chain = LocalChain.open(Path(sys.argv[1]))
with chain._transaction("BEGIN IMMEDIATE") as connection:
    connection.execute("INSERT INTO blocks (number, timestamp) VALUES (1, 1.0)")
    connection.execute("UPDATE balances SET rao = 0")
    os._exit(9)
"""


def test_a_process_that_dies_while_writing_leaves_no_trace_and_no_lock(path: Path, chain: LocalChain) -> None:
    dying = start(DIES_WRITING, str(path))
    dying.communicate(timeout=60)
    assert dying.returncode == 9
    assert asyncio.run(chain.head()).number == 0
    assert asyncio.run(chain.balance(OWNER.ss58_address)) == 1_000.0
    assert chain.produce_block(101.0).number == 1


DIES_CREATING = f"""
import os, sys
from pathlib import Path
from protocol.chain.local import LocalChain, LocalChainConfig

os.link = lambda *_: os._exit(9)  # the last step of the making
LocalChain.create(Path(sys.argv[1]), {CONFIG!r}, {{}}, bytes(32))
"""


def test_a_process_that_dies_while_creating_leaves_no_half_made_chain(path: Path) -> None:
    dying = start(DIES_CREATING, str(path))
    dying.communicate(timeout=60)
    assert dying.returncode == 9
    with pytest.raises(ChainUnreachable, match="there is no local chain"):
        LocalChain.open(path)
    asyncio.run(make(path).close())


def test_only_one_of_many_creators_makes_the_chain(path: Path) -> None:
    outcomes: list[str] = []

    def create() -> None:
        try:
            asyncio.run(make(path).close())
            outcomes.append("made")
        except ChainError:
            outcomes.append("refused")

    threads = [threading.Thread(target=create) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["made"] + ["refused"] * 5
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_threads_may_share_one_connection(chain: LocalChain) -> None:
    register(chain, "a")

    def commit() -> None:
        for i in range(20):
            asyncio.run(chain.commit(key("a"), bytes([i])))

    threads = [threading.Thread(target=commit) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert chain.nonce(ss58("a")) == 80


def test_a_chain_that_another_process_holds_too_long_is_reported_not_waited_for_ever(
    path: Path, chain: LocalChain
) -> None:
    chain._connection.execute("PRAGMA busy_timeout = 1")  # type: ignore[union-attr]
    with closing(sqlite3.connect(path, isolation_level=None)) as holder:
        holder.execute("BEGIN IMMEDIATE")
        with pytest.raises(ChainUnreachable, match="another process"):
            chain.produce_block(101.0)
        assert asyncio.run(chain.head()).number == 0  # reading goes on
        holder.execute("ROLLBACK")
    assert chain.produce_block(101.0).number == 1


def test_who_was_registered_long_ago_is_forgotten(path: Path, chain: LocalChain) -> None:
    async def scenario() -> None:
        for _ in range(40):
            chain.produce_block(0.0)
        before = await chain.neurons_at(39)
        await chain.register(OWNER, ss58("late"))
        for _ in range(600):
            chain.produce_block(0.0)
        head = (await chain.head()).number
        assert len(await chain.neurons_at(head - 500)) == len(before) + 1
        with pytest.raises(Pruned):
            await chain.neurons_at(39)

    asyncio.run(scenario())
