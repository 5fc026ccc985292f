"""One suite for every adapter of the `Chain` port. An adapter joins by a `World` and a line in `WORLDS`."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Protocol

import pytest
from bittensor_core import Keypair

from protocol.chain.local import LocalChain, LocalChainConfig
from protocol.chain.port import COMMITMENT_LIMIT_BYTES, Chain
from protocol.chain.subtensor import SubtensorChain
from protocol.errors import (
    AlreadyRegistered,
    BadExtrinsic,
    ChainError,
    ChainUnreachable,
    CommitmentTooLong,
    InsufficientBalance,
    NoPermit,
    NotRegistered,
    RateLimited,
)
from tests.protocol.substrate import FakeSubtensor, Rules


def key(name: str) -> Keypair:
    return Keypair.create_from_uri(f"//{name}")


class World(Protocol):
    """A chain with one subnet without neurons, one block old, on which a test may play all parts.

    The first coldkey is rich, every other one owns nothing. Limits: one commitment in 3 blocks, one set of weights in
    5 blocks.
    """

    chain: Chain
    rich: Keypair

    def pass_blocks(self, count: int) -> None:
        """Let `count` blocks pass."""

    def make_validator(self, hotkey: Keypair) -> int:
        """Register `hotkey` with enough stake for a permit; returns its uid."""

    def settle(self) -> None:
        """Let blocks pass until every hotkey that is registered now may set weights."""

    def next_commitment(self) -> int:
        """The first block at which a hotkey that committed in the head may commit again."""


class LocalWorld:
    def __init__(self, folder: Path) -> None:
        self.rich = key("rich")
        config = LocalChainConfig(
            block_seconds=12.0,
            tempo_blocks=10,
            max_uids=8,
            max_validators=2,
            validator_min_stake=100.0,
            weights_rate_limit_blocks=5,
            commitment_rate_limit_blocks=3,
            immunity_blocks=100,
            registration_cost=1.0,
            emission_per_block=1.0,
            max_registrations_per_block=8,
        )
        self.local = LocalChain.create(folder / "chain.db", config, {self.rich.ss58_address: 10_000.0}, bytes(32))
        self.chain: Chain = self.local
        self.pass_blocks(1)

    def pass_blocks(self, count: int) -> None:
        for _ in range(count):
            self.local.produce_block(1_000.0)

    def make_validator(self, hotkey: Keypair) -> int:
        uid = asyncio.run(self.local.register(self.rich, hotkey.ss58_address))
        asyncio.run(self.local.add_stake(self.rich, hotkey.ss58_address, 1_000.0))
        return uid

    def settle(self) -> None:
        pass

    def next_commitment(self) -> int:
        return asyncio.run(self.local.head()).number + 3


class SubtensorWorld:
    """The adapter to a Bittensor chain, over the fake of one: today's runtime, or one older than the SDK.

    The commitments pallet counts bytes per epoch: with this much space a hotkey commits once in an epoch, and an
    epoch has three blocks."""

    def __init__(self, folder: Path, *, old: bool = False) -> None:
        self.rich = key("rich")
        self.fake = FakeSubtensor(Rules(tempo=2 if old else 3, max_space=150, rate_limit=5), old=old)
        self.fake.endow(self.rich.ss58_address, 10_000.0)
        self.pass_blocks(1)
        self.chain: Chain = asyncio.run(SubtensorChain.over(self.fake, self.fake.rules.netuid, "the fake"))

    def pass_blocks(self, count: int) -> None:
        self.fake.step(count)

    def make_validator(self, hotkey: Keypair) -> int:
        uid = asyncio.run(self.chain.register(self.rich, hotkey.ss58_address))
        self.fake.grant(hotkey.ss58_address, 1_000.0)
        return uid

    def settle(self) -> None:
        self.pass_blocks(self.fake.rules.rate_limit)  # registration counts as the first set of weights

    def next_commitment(self) -> int:
        return self.fake.next_epoch()


WORLDS = {"local": LocalWorld, "subtensor": SubtensorWorld, "old subtensor": partial(SubtensorWorld, old=True)}


@pytest.fixture(params=WORLDS)
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    world = WORLDS[request.param](tmp_path)
    yield world
    asyncio.run(world.chain.close())


def register(world: World, *names: str) -> list[int]:
    return [asyncio.run(world.chain.register(world.rich, key(name).ss58_address)) for name in names]


def test_the_head_is_a_block_that_can_be_read_again_by_its_number(world: World) -> None:
    world.pass_blocks(2)
    head = asyncio.run(world.chain.head())
    assert asyncio.run(world.chain.block(head.number)) == head
    assert len(head.hash) == 32
    assert asyncio.run(world.chain.block(head.number - 1)).hash != head.hash
    assert world.chain.block_seconds > 0


def test_a_block_of_the_future_is_refused(world: World) -> None:
    head = asyncio.run(world.chain.head())
    with pytest.raises(ChainError, match=str(head.number + 1)):
        asyncio.run(world.chain.block(head.number + 1))


def test_a_registered_hotkey_appears_once_with_its_coldkey(world: World) -> None:
    uids = register(world, "a", "b")
    neurons = asyncio.run(world.chain.neurons())
    assert [neuron.uid for neuron in neurons] == sorted(uids)
    by_uid = {neuron.uid: neuron for neuron in neurons}
    assert by_uid[uids[1]].hotkey == key("b").ss58_address
    assert by_uid[uids[1]].coldkey == world.rich.ss58_address
    assert not by_uid[uids[1]].validator_permit
    assert by_uid[uids[1]].registered_at == by_uid[uids[1]].last_update
    with pytest.raises(AlreadyRegistered):
        register(world, "a")


def test_who_was_registered_with_what_stake_can_be_asked_of_a_past_block(world: World) -> None:
    uid = world.make_validator(key("v"))
    world.pass_blocks(1)
    then = asyncio.run(world.chain.head()).number - 1
    before = asyncio.run(world.chain.neurons_at(then))
    register(world, "a")
    world.pass_blocks(2)
    head = asyncio.run(world.chain.head()).number
    assert asyncio.run(world.chain.neurons_at(then)) == before
    assert [(neuron.uid, neuron.validator_permit) for neuron in before] == [(uid, True)]
    assert asyncio.run(world.chain.neurons_at(head)) == asyncio.run(world.chain.neurons())
    assert len(asyncio.run(world.chain.neurons_at(head - 1))) == 2
    with pytest.raises(ChainError, match=str(head + 1)):
        asyncio.run(world.chain.neurons_at(head + 1))


def test_a_poor_coldkey_cannot_register(world: World) -> None:
    with pytest.raises(InsufficientBalance):
        asyncio.run(world.chain.register(key("poor"), key("a").ss58_address))
    assert asyncio.run(world.chain.neurons()) == ()


def test_a_coldkey_owns_what_it_has_not_spent(world: World) -> None:
    before = asyncio.run(world.chain.balance(world.rich.ss58_address))
    assert before == 10_000.0
    register(world, "a")
    assert 0 < asyncio.run(world.chain.balance(world.rich.ss58_address)) < before
    assert asyncio.run(world.chain.balance(key("stranger").ss58_address)) == 0.0


def test_only_an_address_can_be_registered(world: World) -> None:
    on_polkadot = "15oF4uVJwmo4TdGW7VfQxNLavjCXviqxT9S1MgbjMNHr6Sp5"
    for nonsense in ("", "5Grwva", key("a").ss58_address[:-1] + "1", on_polkadot, "x" * 5_000):
        with pytest.raises(BadExtrinsic, match="ss58"):
            asyncio.run(world.chain.register(world.rich, nonsense))


def test_the_newest_commitment_of_each_hotkey_is_read_back_byte_for_byte(world: World) -> None:
    register(world, "a", "b", "c")
    longest = bytes(range(COMMITMENT_LIMIT_BYTES))
    asyncio.run(world.chain.commit(key("a"), b"first"))
    asyncio.run(world.chain.commit(key("b"), longest))
    world.pass_blocks(3)
    asyncio.run(world.chain.commit(key("a"), b"\x00second"))
    assert asyncio.run(world.chain.commitments()) == {
        key("a").ss58_address: b"\x00second",
        key("b").ss58_address: longest,
    }


def test_a_commitment_of_129_bytes_is_refused_and_the_old_one_stays(world: World) -> None:
    register(world, "a")
    asyncio.run(world.chain.commit(key("a"), b"old"))
    world.pass_blocks(3)
    with pytest.raises(CommitmentTooLong, match="129"):
        asyncio.run(world.chain.commit(key("a"), bytes(129)))
    assert asyncio.run(world.chain.commitments()) == {key("a").ss58_address: b"old"}


def test_a_second_commitment_must_wait_for_the_block_that_the_refusal_names(world: World) -> None:
    register(world, "a")
    asyncio.run(world.chain.commit(key("a"), b"one"))
    first = world.next_commitment()
    world.pass_blocks(first - 1 - asyncio.run(world.chain.head()).number)
    with pytest.raises(RateLimited, match=f"block {first} on"):
        asyncio.run(world.chain.commit(key("a"), b"two"))
    world.pass_blocks(1)
    asyncio.run(world.chain.commit(key("a"), b"two"))


def test_a_stranger_can_neither_commit_nor_set_weights(world: World) -> None:
    register(world, "a")
    with pytest.raises(NotRegistered):
        asyncio.run(world.chain.commit(key("stranger"), b"x"))
    with pytest.raises(NotRegistered):
        asyncio.run(world.chain.set_weights(key("stranger"), {0: 1.0}))


def test_weights_are_read_back_normalised(world: World) -> None:
    validator = world.make_validator(key("v"))
    a, b, c = register(world, "a", "b", "c")
    world.settle()
    asyncio.run(world.chain.set_weights(key("v"), {a: 300.0, b: 100.0, c: 0.0}))
    rows = asyncio.run(world.chain.weights())
    assert rows.keys() == {validator}
    assert rows[validator].keys() == {a, b}
    assert rows[validator][a] == pytest.approx(0.75, abs=1e-4)
    assert sum(rows[validator].values()) == pytest.approx(1.0)


def test_new_weights_replace_the_old_ones_once_the_rate_limit_has_passed(world: World) -> None:
    validator = world.make_validator(key("v"))
    a, b = register(world, "a", "b")
    world.settle()
    asyncio.run(world.chain.set_weights(key("v"), {a: 1.0}))
    first = asyncio.run(world.chain.head()).number + 5
    world.pass_blocks(4)
    with pytest.raises(RateLimited, match=f"block {first} on"):
        asyncio.run(world.chain.set_weights(key("v"), {b: 1.0}))
    world.pass_blocks(1)
    asyncio.run(world.chain.set_weights(key("v"), {b: 1.0}))
    assert asyncio.run(world.chain.weights()) == {validator: {b: 1.0}}
    assert asyncio.run(world.chain.neurons())[validator].last_update == first


def test_without_a_permit_only_self_weight_is_taken(world: World) -> None:
    a, b = register(world, "a", "b")
    world.settle()
    with pytest.raises(NoPermit):
        asyncio.run(world.chain.set_weights(key("a"), {b: 1.0}))
    with pytest.raises(NoPermit):
        asyncio.run(world.chain.set_weights(key("a"), {a: 1.0, b: 1.0}))
    asyncio.run(world.chain.set_weights(key("a"), {a: 1.0}))
    assert asyncio.run(world.chain.weights()) == {}


@pytest.mark.parametrize(
    "weights",
    [{}, {0: 0.0}, {0: -1.0}, {0: float("nan")}, {0: float("inf")}, {7: 1.0}, {-1: 1.0}, {70_000: 1.0}],
    ids=str,
)
def test_weights_that_make_no_sense_are_refused(world: World, weights: dict[int, float]) -> None:
    world.make_validator(key("v"))
    with pytest.raises(BadExtrinsic):
        asyncio.run(world.chain.set_weights(key("v"), weights))
    assert asyncio.run(world.chain.weights()) == {}


def test_a_closed_connection_says_so_and_may_be_closed_again(world: World) -> None:
    asyncio.run(world.chain.close())
    asyncio.run(world.chain.close())
    with pytest.raises(ChainUnreachable, match="closed"):
        asyncio.run(world.chain.head())
