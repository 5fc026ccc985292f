"""The adapter to Bittensor's chain: what it sends and reads, every refusal, and connections that break under it."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest
from bittensor import Client, ExtrinsicResult, RpcPolicyError
from bittensor._generated.errors import ERRORS
from bittensor.error_map import CUSTOM_TRANSACTION_ERRORS, DISPATCH_ERRORS
from bittensor.result import ChainError as SdkError
from bittensor_core import Keypair

from protocol.chain.link import Patience
from protocol.chain.refusals import REFUSALS
from protocol.chain.subtensor import SubtensorChain
from protocol.chain.subtensor_shapes import raw_commitment
from protocol.errors import (
    AlreadyRegistered,
    BadExtrinsic,
    ChainError,
    ChainUnreachable,
    CommitmentTooLong,
    InsufficientBalance,
    NoPermit,
    NoSubnet,
    NotRegistered,
    OutdatedVersion,
    Pruned,
    RateLimited,
    RegistrationClosed,
    RuntimeDiffers,
    SubnetFull,
    WrongColdkey,
)
from tests.protocol.substrate import RAO, U16, FakeSubtensor, Refusal, Rules

QUICK = Patience(connect_seconds=5.0, read_seconds=5.0, write_seconds=5.0, pause_seconds=0.001)
FAST = 4
"""Milliseconds between blocks of a chain on which something is waited for."""

Scenario = Callable[[SubtensorChain, FakeSubtensor], Awaitable[Any]]


def key(name: str) -> Keypair:
    return Keypair.create_from_uri(f"//{name}")


RICH, VALIDATOR, MINER = key("rich"), key("v"), key("m")
SECRET = "wss-access-key-1234"


def fake(rules: Rules | None = None, *, old: bool = False) -> FakeSubtensor:
    """A chain with a validator (uid 0) and a miner (uid 1) who may do everything now."""
    chain = FakeSubtensor(Rules(), old=old)
    chain.endow(RICH.ss58_address, 100.0)
    for name in ("v", "m"):
        chain.enrol(RICH.ss58_address, key(name).ss58_address)
    chain.grant(VALIDATOR.ss58_address, 1_000.0)
    if rules is not None:
        chain.rules = replace(rules, epoch_counter=not old)
    chain.step(20)
    return chain


def play(node: FakeSubtensor, scenario: Scenario) -> Any:
    """Run a scenario with a fresh connection to `node`."""

    async def act() -> Any:
        chain = await SubtensorChain.over(node, node.rules.netuid, "the fake", QUICK)
        try:
            return await scenario(chain, node)
        finally:
            await chain.close()

    return asyncio.run(act())


# --- every call of the port, as it is used in the tests of broken connections -------------------------------------


async def _head(chain: SubtensorChain, node: FakeSubtensor) -> Any:
    return (await chain.head()).number == node.state.number


async def _block(chain: SubtensorChain, node: FakeSubtensor) -> Any:
    return (await chain.block(3)).timestamp == 1_700_000_000 + 3 * node.rules.slot_millis / 1000


async def _neurons(chain: SubtensorChain, node: FakeSubtensor) -> Any:
    return [neuron.hotkey for neuron in await chain.neurons()] == node.state.hotkeys


async def _commitments(chain: SubtensorChain, node: FakeSubtensor) -> Any:
    node.put_commitment(MINER.ss58_address, {"block": 1, "deposit": 0, "info": {"fields": [{"Raw1": "0xaa"}]}})
    return await chain.commitments() == {MINER.ss58_address: b"\xaa"}


async def _weights(chain: SubtensorChain, node: FakeSubtensor) -> Any:
    node.reveal(0, [(1, U16)])
    return await chain.weights() == {0: {1: 1.0}}


async def _register(chain: SubtensorChain, node: FakeSubtensor) -> Any:
    uid = await chain.register(RICH, key("new").ss58_address)
    paid = node.state.balances[RICH.ss58_address] == 97 * RAO
    return uid == 2 and node.state.hotkeys.count(key("new").ss58_address) == 1 and paid


async def _commit(chain: SubtensorChain, node: FakeSubtensor) -> Any:
    await chain.commit(MINER, b"here")
    return (await chain.commitments())[MINER.ss58_address] == b"here"


async def _set_weights(chain: SubtensorChain, node: FakeSubtensor) -> Any:
    await chain.set_weights(VALIDATOR, {0: 1.0, 1: 3.0})
    return node.state.weights == {0: [(0, 21845), (1, U16)]}


READS = {
    "head": (_head, ("block_number", "block_hash", "query")),
    "block": (_block, ("block_hash", "query", "finalized_block_number")),
    "neurons": (_neurons, ("runtime_call",)),
    "commitments": (_commitments, ("runtime_call", "query_batch")),
    "weights": (_weights, ("runtime_call", "query_map")),
}
WRITES = {
    "register": (_register, ("query", "compose", "mev_next_key", "account_next_index", "find_extrinsic")),
    "commit": (_commit, ("query", "compose")),
    "set_weights": (_set_weights, ("query", "runtime_call", "compose", "block_number")),
}
PORT = READS | WRITES
CUTS = [(name, method) for name, (_, methods) in PORT.items() for method in methods]


@pytest.mark.parametrize("old", [False, True], ids=["today", "old"])
@pytest.mark.parametrize("name", PORT)
def test_every_call_of_the_port_succeeds(name: str, old: bool) -> None:
    assert play(fake(old=old), PORT[name][0])


@pytest.mark.parametrize(("name", "method"), CUTS)
def test_every_call_survives_a_connection_that_breaks_under_one_of_its_requests(name: str, method: str) -> None:
    async def scenario(chain: SubtensorChain, node: FakeSubtensor) -> Any:
        node.cut(method)
        held = await PORT[name][0](chain, node)
        return held and not any(node._cuts.values())

    assert play(fake(Rules(slot_millis=FAST)), scenario)


@pytest.mark.parametrize("name", READS)
def test_a_read_ends_in_a_sentence_when_the_node_stays_away(name: str) -> None:
    async def scenario(chain: SubtensorChain, node: FakeSubtensor) -> Any:
        node.down = True
        with pytest.raises(ChainUnreachable, match=r"the fake does not answer .*; check the network"):
            await READS[name][0](chain, node)
        node.down = False
        return await READS[name][0](chain, node)

    assert play(fake(), scenario)


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("name", WRITES)
def test_a_write_whose_answer_is_lost_takes_effect_exactly_once(name: str, after: bool) -> None:
    async def scenario(chain: SubtensorChain, node: FakeSubtensor) -> Any:
        node.cut("submit", after=after)
        held = await WRITES[name][0](chain, node)
        return held, [function for function, _ in node.sent]

    held, sent = play(fake(Rules(slot_millis=FAST)), scenario)
    assert held
    # A registration is an inner call in a carrier; the carrier alone is not seen again.
    assert len(sent) == (2 if name == "register" else 1)


@pytest.mark.parametrize("name", WRITES)
@pytest.mark.parametrize("said", ["Dropped", "Usurped", "Stale"])
def test_a_call_that_the_pool_lost_is_sent_again(name: str, said: str) -> None:
    async def scenario(chain: SubtensorChain, node: FakeSubtensor) -> Any:
        node.pool_says(said)
        return await WRITES[name][0](chain, node)

    assert play(fake(Rules(slot_millis=FAST)), scenario)


@pytest.mark.parametrize("name", WRITES)
def test_a_write_that_never_gets_through_says_that_its_fate_is_open(name: str) -> None:
    async def scenario(chain: SubtensorChain, node: FakeSubtensor) -> Any:
        node.cut("submit", times=9)
        with pytest.raises(ChainUnreachable, match="does not answer"):
            await WRITES[name][0](chain, node)
        return node.sent

    assert play(fake(Rules(slot_millis=FAST)), scenario) == []


def test_a_refusal_that_only_an_earlier_lost_attempt_explains_is_a_success() -> None:
    async def scenario(chain: SubtensorChain, node: FakeSubtensor) -> Any:
        include, waiting = node._include, []

        def late(call: Any, signer: str) -> ExtrinsicResult:
            # The chain takes the first call only after its sender has looked for it in vain and sent it again.
            waiting.append((call, signer))
            if len(waiting) > 1:
                include(*waiting[0])
            return include(call, signer) if len(waiting) > 1 else ExtrinsicResult(True)

        node._include = late  # type: ignore[method-assign]
        node.cut("submit", after=True)
        await chain.commit(MINER, b"once")
        assert len(node.sent) == 2
        return await chain.commitments()

    assert play(fake(Rules(slot_millis=FAST, max_space=150)), scenario)[MINER.ss58_address] == b"once"


# --- reading ------------------------------------------------------------------------------------------------------


def test_neurons_are_what_the_sdk_itself_makes_of_the_same_answer() -> None:
    node = fake()
    node._change(lambda state: state.incentives.update({MINER.ss58_address: U16}))

    async def scenario(chain: SubtensorChain, node: FakeSubtensor) -> Any:
        graph = await Client(substrate=node).subnets.metagraph(node.rules.netuid, commitments=False)  # type: ignore[arg-type]
        return await chain.neurons(), list(graph)  # type: ignore[arg-type]

    ours, theirs = play(node, scenario)
    assert [
        (n.uid, n.hotkey, n.coldkey, n.stake, n.validator_permit, n.incentive, n.last_update, n.registered_at)
        for n in ours
    ] == [
        (
            n.uid,
            n.hotkey,
            n.coldkey,
            n.total_stake.rao / RAO,
            n.validator_permit,
            n.incentive,
            n.last_update,
            n.block_at_registration,
        )
        for n in theirs
    ]
    assert (ours[0].stake, ours[1].incentive) == (1_000.0, 1.0)


@pytest.mark.parametrize("old", [False, True], ids=["today", "old"])
def test_neurons_are_of_one_block_even_when_the_next_comes_while_they_are_read(old: bool) -> None:
    async def scenario(chain: SubtensorChain, node: FakeSubtensor) -> Any:
        ask = node.runtime_call

        async def slow(*args: Any) -> Any:
            node.step()
            node.enrol(RICH.ss58_address, key(f"late {node.state.number}").ss58_address)
            node._change(lambda state: state.registered_at.__setitem__(1, state.number))
            return await ask(*args)

        node.runtime_call = slow  # type: ignore[method-assign]
        return [neuron.registered_at for neuron in await chain.neurons()]

    assert play(fake(old=old), scenario) == [0, 0]


def test_many_who_ask_in_one_block_cost_one_request() -> None:
    async def scenario(chain: SubtensorChain, node: FakeSubtensor) -> Any:
        await asyncio.gather(*(chain.neurons() for _ in range(5)), *(chain.commitments() for _ in range(5)))
        first = node.asked.count("runtime_call")
        node.step()
        await asyncio.sleep(0.01)  # the stream brings the new head
        await chain.neurons()
        return first, node.asked.count("runtime_call"), node.asked.count("block_number")

    assert play(fake(), scenario) == (1, 2, 1)


def test_the_sdk_cannot_decode_one_commitment_and_all_others_are_read() -> None:
    async def scenario(chain: SubtensorChain, node: FakeSubtensor) -> Any:
        node.undecodable = {VALIDATOR.ss58_address}
        await chain.commit(MINER, b"fine")
        return await chain.commitments()

    assert play(fake(), scenario) == {MINER.ss58_address: b"fine"}


def record(*fields: Any) -> dict[str, Any]:
    return {"block": 1, "deposit": 0, "info": {"fields": list(fields)}}


@pytest.mark.parametrize(
    "odd",
    [
        None,
        7,
        [],
        {},
        {"info": None},
        {"info": {"fields": None}},
        record(),
        record("None"),
        record("ResetBondsFlag"),
        record({"Raw2": "0xaabb"}, {"Raw1": "0xcc"}),
        record({"Raw2": "0xaabb", "Raw1": "0xcc"}),
        record({"Raw2": "0xaa"}),
        record({"Raw129": "0x" + "00" * 129}),
        record({"Raw1": "aa"}),
        record({"Raw1": "0xzz"}),
        record({"Raw1": 170}),
        record({"Raw1": None}),
        record({"Raw1": []}),
        record({"Raw٣": "0xaabbcc"}),
        record({"Raw": "0x"}),
        record({"Raw01x": "0xaa"}),
        record({"BlakeTwo256": "0x" + "00" * 32}),
        record({"TimelockEncrypted": {"encrypted": "0x0102", "reveal_round": 123}}),
        record([{"Raw1": "0xaa"}]),
    ],
    ids=repr,
)
def test_an_odd_commitment_is_absent(odd: Any) -> None:
    assert raw_commitment(odd) is None


def test_ten_thousand_hostile_commitments_give_at_most_128_bytes_each_and_no_error() -> None:
    rng = random.Random(5)

    def value(depth: int) -> Any:
        kind = rng.randrange(9 if depth else 6)
        return (
            lambda: "0x" + rng.randbytes(rng.randrange(140)).hex(),
            lambda: rng.choice(["", "0x", "0xg", "None", "\ud800", "0x 00", "x" * 300]),
            lambda: rng.randrange(-(2**70), 2**70),
            lambda: rng.choice([None, True, float("nan")]),
            lambda: rng.randbytes(rng.randrange(8)),
            lambda: f"Raw{rng.randrange(-2, 200)}",
            lambda: [value(depth - 1) for _ in range(rng.randrange(3))],
            lambda: {f"Raw{rng.randrange(130)}": value(depth - 1) for _ in range(rng.randrange(1, 3))},
            lambda: {"info": {"fields": [value(depth - 1)]}},
        )[kind]()

    found = 0
    for _ in range(10_000):
        data = rng.randbytes(rng.randrange(140))
        near = record({f"Raw{len(data) + rng.choice([0, 0, 0, 1, -1])}": rng.choice(["0x", ""]) + data.hex()})
        read = raw_commitment(rng.choice([near, record(value(3)), value(4)]))
        assert read is None or (isinstance(read, bytes) and len(read) <= 128)
        found += read is not None
    assert found > 500


def test_every_length_from_0_to_128_bytes_goes_over_the_chain_unchanged() -> None:
    async def scenario(chain: SubtensorChain, node: FakeSubtensor) -> Any:
        for length in range(129):
            data = bytes(range(256))[-length:] if length else b""
            await chain.commit(MINER, data)
            if (await chain.commitments())[MINER.ss58_address] != data:
                return length
        return None

    assert play(fake(Rules(max_space=1_000_000)), scenario) is None


def test_weights_of_a_validator_without_a_permit_do_not_count() -> None:
    async def scenario(chain: SubtensorChain, node: FakeSubtensor) -> Any:
        node.reveal(0, [(0, 1), (1, 3), (7, 0)])
        node.reveal(1, [(1, U16)])
        return await chain.weights()

    assert play(fake(), scenario) == {0: {0: 0.25, 1: 0.75}}


# --- blocks -------------------------------------------------------------------------------------------------------


def test_the_head_follows_the_stream_without_asking_and_comes_back_after_a_lost_one() -> None:
    async def scenario(chain: SubtensorChain, node: FakeSubtensor) -> Any:
        heads = [(await chain.head()).number]
        for broken in (False, True, False):
            if broken:
                node.break_streams()
            node.step()
            await asyncio.sleep(0.05)
            heads.append((await chain.head()).number)
        return heads, node.asked.count("block_number"), node.asked.count("blocks")

    assert play(fake(), scenario) == ([20, 21, 22, 23], 1, 2)


def test_a_stream_that_is_silent_for_too_long_is_not_believed() -> None:
    node = fake(Rules(slot_millis=FAST))

    async def scenario(chain: SubtensorChain, node: FakeSubtensor) -> Any:
        await chain.head()
        await asyncio.sleep(0.01)
        node._streams.clear()  # it stays open and says nothing any more
        node.step(5)
        await asyncio.sleep(0.02)
        return (await chain.head()).number

    assert play(node, scenario) == 25


def test_the_number_of_the_head_never_goes_back() -> None:
    async def scenario(chain: SubtensorChain, node: FakeSubtensor) -> Any:
        first = await chain.head()
        node.state = node._states[node._hashes[15]]
        chain._heads.doubt()
        return first.number, (await chain.head()).number

    assert play(fake(), scenario) == (20, 20)


def test_a_block_is_kept_only_once_it_is_final() -> None:
    node = fake()
    node.final_lag = 3

    async def scenario(chain: SubtensorChain, node: FakeSubtensor) -> Any:
        await chain.head()
        old, young = await chain.block(5), await chain.block(19)
        node._hashes[5], node._hashes[19] = node._hashes[6], node._hashes[18]
        return (await chain.block(5)) == old, (await chain.block(19)) == young

    assert play(node, scenario) == (True, False)


def test_a_block_that_the_node_has_dropped_is_its_own_error() -> None:
    node = fake(Rules(keeps_blocks=10))

    async def scenario(chain: SubtensorChain, node: FakeSubtensor) -> Any:
        await chain.block(11)
        with pytest.raises(Pruned, match=r"block 5 is too old .* archive node"):
            await chain.block(5)
        with pytest.raises(ChainError, match="-1"):
            await chain.block(-1)

    play(node, scenario)


# --- writing: what is sent ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "calls"),
    [
        (False, {"submit_encrypted", "burned_register", "set_commitment", "set_mechanism_weights"}),
        (True, {"burned_register", "set_commitment", "set_weights"}),
    ],
    ids=["today", "old"],
)
def test_intents_are_sent_first_and_raw_calls_where_the_runtime_is_older(old: bool, calls: set[str]) -> None:
    async def scenario(chain: SubtensorChain, node: FakeSubtensor) -> Any:
        await _register(chain, node)
        await chain.commit(MINER, b"x")
        await chain.set_weights(VALIDATOR, {1: 1.0})
        return {function for function, _ in node.sent}

    assert play(fake(old=old), scenario) == calls


def test_coldkeys_pay_and_hotkeys_speak() -> None:
    async def scenario(chain: SubtensorChain, node: FakeSubtensor) -> Any:
        await _register(chain, node)
        await chain.commit(MINER, b"x")
        await chain.set_weights(VALIDATOR, {1: 1.0})
        return dict(node.sent)

    sent = play(fake(), scenario)
    assert sent["burned_register"] == RICH.ss58_address
    assert sent["set_commitment"] == MINER.ss58_address
    assert sent["set_mechanism_weights"] == VALIDATOR.ss58_address


def test_a_commitment_that_is_there_already_is_not_sent_again() -> None:
    async def scenario(chain: SubtensorChain, node: FakeSubtensor) -> Any:
        for data in (b"same", b"same", b"other", b"other"):
            await chain.commit(MINER, data)
        return len(node.sent)

    assert play(fake(), scenario) == 2


def test_sealed_weights_are_committed_and_count_once_the_chain_has_opened_them(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def scenario(chain: SubtensorChain, node: FakeSubtensor) -> Any:
        await chain.set_weights(VALIDATOR, {0: 1.0, 1: 3.0})
        before = await chain.weights()
        node.reveal(0, [(0, 21845), (1, U16)])
        node.step()
        await asyncio.sleep(0.01)
        return before, await chain.weights(), node.state.sealed, node.sent

    with caplog.at_level(logging.INFO, "protocol.chain.subtensor_calls"):
        before, after, sealed, sent = play(fake(Rules(commit_reveal=True)), scenario)
    assert before == {}
    assert after == {0: {0: pytest.approx(0.25, abs=1e-4), 1: pytest.approx(0.75, abs=1e-4)}}
    assert [(who, block) for who, block, *_ in sealed] == [(VALIDATOR.ss58_address, 20)]
    assert sent == [("commit_timelocked_mechanism_weights", VALIDATOR.ss58_address)]
    assert "uid 0 committed weights of 2 uids, sealed" in caplog.text


def test_a_runtime_a_little_older_than_the_sdk_gets_sealed_weights_by_the_raw_call() -> None:
    class Between(FakeSubtensor):
        """Counts epochs in storage, but does not know the choice of consensus that the SDK asks for."""

        def _check_item(self, module: str, item: str, keys: int) -> None:
            if item == "SubnetEpochConsensus":
                raise ValueError(f"storage function {module}.{item} not found")
            super()._check_item(module, item, keys)

    node = Between(Rules(commit_reveal=True))
    node.__dict__.update({k: v for k, v in fake(node.rules).__dict__.items()})

    async def scenario(chain: SubtensorChain, node: FakeSubtensor) -> Any:
        await chain.set_weights(VALIDATOR, {1: 1.0})
        return node.sent, len(node.state.sealed)

    assert play(node, scenario) == ([("commit_timelocked_weights", VALIDATOR.ss58_address)], 1)


def test_a_runtime_that_counts_epochs_otherwise_cannot_be_sent_sealed_weights() -> None:
    async def scenario(chain: SubtensorChain, node: FakeSubtensor) -> Any:
        with pytest.raises(RuntimeDiffers, match="update Windrow"):
            await chain.set_weights(VALIDATOR, {1: 1.0})
        return node.sent

    assert play(fake(Rules(commit_reveal=True), old=True), scenario) == []


@pytest.mark.parametrize("old", [False, True], ids=["today", "old"])
def test_a_share_above_the_subnets_limit_is_clipped_and_the_rest_keep_their_ratio(old: bool) -> None:
    node = fake(Rules(max_weight=U16 // 2), old=old)
    node.enrol(RICH.ss58_address, key("other").ss58_address)

    async def scenario(chain: SubtensorChain, node: FakeSubtensor) -> Any:
        await chain.set_weights(VALIDATOR, {0: 1.0, 1: 8.0, 2: 1.0})
        return (await chain.weights())[0]

    row = play(node, scenario)
    assert row[1] == pytest.approx(0.5, abs=1e-3)
    assert row[0] == row[2] == pytest.approx(0.25, abs=1e-3)


def test_what_the_chain_made_of_weights_is_compared_and_shown(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(chain: SubtensorChain, node: FakeSubtensor) -> Any:
        await chain.set_weights(VALIDATOR, {1: 2.0})
        node.step(10)
        set_weights = node._set_weights
        node._set_weights = lambda who, uids, values, version: set_weights(who, [0], [9], version)  # type: ignore[method-assign]
        chain._heads.doubt()
        with pytest.raises(ChainError, match="holds other weights of uid 0 than were sent"):
            await chain.set_weights(VALIDATOR, {1: 2.0})

    with caplog.at_level(logging.INFO, "protocol.chain.subtensor_calls"):
        play(fake(), scenario)
    assert "weights of uid 0 are on chain: {1: 65535}" in caplog.text


def test_the_owner_of_the_subnet_may_weigh_without_a_permit() -> None:
    async def scenario(chain: SubtensorChain, node: FakeSubtensor) -> Any:
        await chain.set_weights(MINER, {0: 1.0})
        return node.state.weights

    assert play(fake(Rules(owner_hotkey=MINER.ss58_address)), scenario) == {1: [(0, U16)]}


# --- writing: what is refused -------------------------------------------------------------------------------------


async def _register_new(chain: SubtensorChain, node: FakeSubtensor) -> Any:
    await chain.register(RICH, key("new").ss58_address)


async def _weigh(chain: SubtensorChain, node: FakeSubtensor) -> Any:
    await chain.set_weights(VALIDATOR, {1: 1.0})


def _steal(node: FakeSubtensor) -> None:
    node._change(lambda state: state.owners.update({key("new").ss58_address: MINER.ss58_address}))


def _poor(node: FakeSubtensor) -> None:
    node.endow(RICH.ss58_address, 0.5)


def _less_stake(node: FakeSubtensor) -> None:
    node.grant(VALIDATOR.ss58_address, 5.0)


def _no_permit(node: FakeSubtensor) -> None:
    node.grant(VALIDATOR.ss58_address, 1_000.0, permit=False)


def _just_set(node: FakeSubtensor) -> None:
    node._change(lambda state: state.last_update.__setitem__(0, 18))


@pytest.mark.parametrize("old", [False, True], ids=["today", "old"])
@pytest.mark.parametrize(
    ("rules", "before", "act", "error", "sentence"),
    [
        (Rules(registration_allowed=False), None, _register_new, RegistrationClosed, "SubNetRegistrationDisabled"),
        (Rules(registrations_per_block=0), None, _register_new, RateLimited, "TooManyRegistrationsThisBlock"),
        (Rules(max_uids=2), None, _register_new, SubnetFull, "NoNeuronIdAvailable"),
        (Rules(), _steal, _register_new, WrongColdkey, "NonAssociatedColdKey"),
        (Rules(), _poor, _register_new, InsufficientBalance, r"owns 0.5 TAO and registration costs 1 now"),
        (Rules(stake_threshold=10 * RAO), _less_stake, _weigh, NoPermit, "stake of 5 and validators need 10"),
        (Rules(), _no_permit, _weigh, NoPermit, "uid 0 has no validator permit"),
        (Rules(version_key=9), None, _weigh, OutdatedVersion, "version 9, this is 1; update Windrow"),
        (Rules(min_weights=2), None, _weigh, BadExtrinsic, "weights for 2 uids, these are for 1"),
        (Rules(), _just_set, _weigh, RateLimited, "set at block 18; try again from block 23 on"),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else None,
)
def test_each_documented_refusal_has_its_error_and_says_what_to_do(
    old: bool,
    rules: Rules,
    before: Callable[[FakeSubtensor], None] | None,
    act: Scenario,
    error: type[ChainError],
    sentence: str,
) -> None:
    node = fake(rules, old=old)
    if before is not None:
        before(node)

    async def scenario(chain: SubtensorChain, node: FakeSubtensor) -> Any:
        with pytest.raises(error, match=sentence):
            await act(chain, node)

    play(node, scenario)


@pytest.mark.parametrize(
    "rules", [Rules(stake_threshold=2_000 * RAO), Rules(version_key=9), Rules(min_weights=2)], ids=repr
)
def test_what_the_chain_would_say_only_when_it_opens_sealed_weights_is_said_before(rules: Rules) -> None:
    rules.commit_reveal = True

    async def scenario(chain: SubtensorChain, node: FakeSubtensor) -> Any:
        with pytest.raises(ChainError):
            await _weigh(chain, node)
        return node.sent

    assert play(fake(rules), scenario) == []


@pytest.mark.parametrize(
    ("refuse", "act", "error"),
    [
        ("HotKeyAlreadyRegisteredInSubNet", _register, AlreadyRegistered),
        ("NotEnoughBalanceToStake", _register, InsufficientBalance),
        ("TooManyRegistrationsThisInterval", _register, RateLimited),
        ("AccountNotAllowedCommit", _commit, NotRegistered),
        ("SpaceLimitExceeded", _commit, RateLimited),
        ("TooManyFieldsInCommitmentInfo", _commit, CommitmentTooLong),
        ("HotKeyNotRegisteredInSubNet", _set_weights, NotRegistered),
        ("NotEnoughStakeToSetWeights", _set_weights, NoPermit),
        ("NeuronNoValidatorPermit", _set_weights, NoPermit),
        ("IncorrectWeightVersionKey", _set_weights, OutdatedVersion),
        ("SettingWeightsTooFast", _set_weights, RateLimited),
        ("CommittingWeightsTooFast", _set_weights, RateLimited),
        ("TooManyUnrevealedCommits", _set_weights, RateLimited),
        ("IncorrectCommitRevealVersion", _set_weights, OutdatedVersion),
        ("WeightVecLengthIsLow", _set_weights, BadExtrinsic),
        ("MaxWeightExceeded", _set_weights, BadExtrinsic),
        ("UidVecContainInvalidOne", _set_weights, BadExtrinsic),
        ("SubnetNotExists", _set_weights, NoSubnet),
        ("InvalidChild", _set_weights, ChainError),
    ],
)
def test_what_only_the_chain_can_know_is_refused_by_its_name(
    refuse: str, act: Scenario, error: type[ChainError]
) -> None:
    async def scenario(chain: SubtensorChain, node: FakeSubtensor) -> Any:
        def dispatch(call: Any, signer: str) -> None:
            if call.function != "submit_encrypted":
                raise Refusal(refuse)

        node._dispatch = dispatch  # type: ignore[method-assign]
        with pytest.raises(error, match=refuse) as caught:
            await act(chain, node)
        return type(caught.value), len(node.sent)

    kind, sent = play(fake(), scenario)
    assert kind is error
    assert sent <= 2  # a refusal is final: nothing is sent again


def test_a_key_that_is_only_an_address_is_told_to_unlock() -> None:
    async def scenario(chain: SubtensorChain, node: FakeSubtensor) -> Any:
        locked = Keypair(ss58_address=VALIDATOR.ss58_address)
        for call in (
            chain.register(locked, key("new").ss58_address),
            chain.commit(locked, b"x"),
            chain.set_weights(locked, {1: 1.0}),
        ):
            with pytest.raises(BadExtrinsic, match="unlock its wallet"):
                await call

    play(fake(), scenario)


@pytest.mark.parametrize("name", WRITES)
@pytest.mark.parametrize("taken", [False, True], ids=["signing", "reading its block"])
def test_a_call_over_which_the_sdk_stumbles_counts_if_the_chain_has_taken_it(name: str, taken: bool) -> None:
    async def scenario(chain: SubtensorChain, node: FakeSubtensor) -> Any:
        submit = node.submit

        async def stumbling(*args: Any, **kwargs: Any) -> Any:
            node.asked.append("submitted")
            if taken:
                await submit(*args, **kwargs)
            raise SdkError("no address type") from ValueError("no address type")  # as RpcSubstrate wraps it

        node.submit = stumbling  # type: ignore[method-assign]
        if taken:
            return await WRITES[name][0](chain, node)
        with pytest.raises(RuntimeDiffers, match="no address type"):
            await WRITES[name][0](chain, node)
        # Once each way: as the intent, and as the raw call where there is one.
        return node.asked.count("submitted") == (1 if name == "commit" else 2)

    assert play(fake(), scenario)


def test_every_name_that_is_translated_is_one_that_the_sdk_knows() -> None:
    known = {info.name for info in ERRORS.values()} | DISPATCH_ERRORS.keys() | set(CUSTOM_TRANSACTION_ERRORS.values())
    assert REFUSALS.keys() <= known


# --- connecting ---------------------------------------------------------------------------------------------------


def test_when_no_local_node_answers_one_sentence_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("protocol.chain.link._LOCAL", "ws://127.0.0.1:9")
    with pytest.raises(ChainUnreachable) as caught:
        asyncio.run(SubtensorChain.connect("local", 1, QUICK))
    assert str(caught.value).startswith("no subtensor node answers at ws://127.0.0.1:9 (local) (")
    assert str(caught.value).endswith(
        "; start one there, check the network of this machine, or name another network or endpoint"
    )


def test_a_host_that_accepts_and_says_nothing_is_given_up() -> None:
    async def scenario() -> None:
        writers = []
        server = await asyncio.start_server(lambda _, writer: writers.append(writer), "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        async with server:
            with pytest.raises(ChainUnreachable, match=f"127.0.0.1:{port} .*no answer within"):
                await SubtensorChain.connect(f"ws://127.0.0.1:{port}", 1, replace(QUICK, connect_seconds=0.05))
            for writer in writers:
                writer.close()

    asyncio.run(scenario())


@pytest.mark.parametrize("network", ["", "finey", "http://127.0.0.1:9944", "ws://", "sqlite:x", "wss:///path"])
def test_what_is_no_network_is_refused_before_anything_is_asked(network: str) -> None:
    with pytest.raises(ChainError, match="is no network"):
        asyncio.run(SubtensorChain.connect(network, 1, QUICK))


def test_an_access_key_in_an_endpoint_is_in_no_error_and_no_log(caplog: pytest.LogCaptureFixture) -> None:
    url = f"ws://user:{SECRET}@127.0.0.1:9/{SECRET}?key={SECRET}"
    with caplog.at_level(logging.DEBUG), pytest.raises(ChainUnreachable) as caught:
        asyncio.run(SubtensorChain.connect(url, 1, QUICK))
    seen: BaseException | None = caught.value
    while seen is not None:
        assert SECRET not in str(seen)
        seen = seen.__cause__
    assert SECRET not in caplog.text


@pytest.mark.parametrize("netuid", [0, 3, 70_000])
def test_a_subnet_that_does_not_exist_is_told_at_once(netuid: int) -> None:
    node = fake()
    with pytest.raises(NoSubnet, match=f"the fake has no subnet {netuid}"):
        asyncio.run(SubtensorChain.over(node, netuid, "the fake", QUICK))
    assert node.closed == 1


def test_an_endpoint_that_refuses_this_machine_is_not_asked_again() -> None:
    async def scenario(chain: SubtensorChain, node: FakeSubtensor) -> Any:
        async def refuse(*args: Any, **kwargs: Any) -> Any:
            node.asked.append("refused")
            raise RpcPolicyError("HTTP 429", retry_after="30")

        node.runtime_call = refuse  # type: ignore[method-assign]
        with pytest.raises(ChainUnreachable, match=r"refuses this machine .*wait for 30 s"):
            await chain.neurons()
        return node.asked.count("refused")

    assert play(fake(), scenario) == 1


def test_a_call_that_takes_too_long_is_given_up_and_a_caller_that_is_cancelled_ends() -> None:
    async def scenario() -> Any:
        node = fake()
        chain = await SubtensorChain.over(node, 2, "the fake", replace(QUICK, read_seconds=0.01, read_attempts=2))

        async def hang(*args: Any, **kwargs: Any) -> Any:
            await asyncio.sleep(60)

        node.runtime_call = hang  # type: ignore[method-assign]
        with pytest.raises(ChainUnreachable, match="no answer within"):
            await chain.neurons()
        waiting = asyncio.create_task(chain.neurons())
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await chain.close()

    asyncio.run(scenario())


def test_another_callers_cancellation_inside_the_sdk_does_not_end_this_one() -> None:
    async def scenario(chain: SubtensorChain, node: FakeSubtensor) -> Any:
        ask = node.runtime_call
        tries: list[int] = []

        async def cancelled_once(*args: Any) -> Any:
            tries.append(1)
            if len(tries) == 1:
                raise asyncio.CancelledError
            return await ask(*args)

        node.runtime_call = cancelled_once  # type: ignore[method-assign]
        return len(await chain.neurons())

    assert play(fake(), scenario) == 2


def test_a_read_under_which_the_chain_is_closed_says_so() -> None:
    async def scenario(chain: SubtensorChain, node: FakeSubtensor) -> Any:
        await chain.head()
        reading = asyncio.create_task(chain.block(3))
        node.cut("block_hash")
        await asyncio.sleep(0)
        await chain.close()
        with pytest.raises(ChainUnreachable, match="closed; connect again"):
            await reading

    play(fake(), scenario)


def test_closing_ends_the_stream_and_may_be_done_twice() -> None:
    async def scenario() -> Any:
        node = fake()
        chain = await SubtensorChain.over(node, 2, "the fake", QUICK)
        await chain.head()
        await asyncio.sleep(0.01)
        open_streams = len(node._streams)
        await chain.close()
        await chain.close()
        return open_streams, len(node._streams), node.closed

    assert asyncio.run(scenario()) == (1, 0, 1)
