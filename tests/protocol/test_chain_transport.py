"""The adapter over the SDK's own transport and codec, against a node's JSON-RPC on loopback."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from bittensor import RpcSubstrate, calls
from bittensor._transport.codec import RuntimeCodec
from bittensor_core import Keypair

from protocol.chain.link import Patience
from protocol.chain.subtensor import SubtensorChain
from protocol.chain.subtensor_shapes import raw_commitment
from protocol.errors import ChainUnreachable
from tests.protocol.node import GENESIS_MILLIS, Node, metadata

NETUID = 2
ALICE = Keypair.create_from_uri("//Alice").ss58_address
QUICK = Patience(connect_seconds=10.0, read_seconds=10.0, write_seconds=10.0, pause_seconds=0.001, settle_blocks=0)


@pytest.fixture(autouse=True)
def _own_metadata_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("BITTENSOR_RUNTIME_CACHE_DIR", str(tmp_path))


@pytest.fixture
def codec() -> RuntimeCodec:
    return RuntimeCodec(metadata(), spec_version=438, transaction_version=1)


def key(codec: RuntimeCodec, pallet: str, item: str, params: list[Any]) -> str:
    return f"0x{codec.storage_key(codec.storage_entry(pallet, item), params).hex()}"


def play(codec: RuntimeCodec, scenario: Callable[[SubtensorChain, Node], Awaitable[Any]]) -> Any:
    async def act() -> Any:
        node = Node()
        node.storage[key(codec, "SubtensorModule", "NetworksAdded", [NETUID])] = "0x01"
        node.timestamp_key = key(codec, "Timestamp", "Now", [])
        async with node.running():
            chain = await SubtensorChain.connect(node.url, NETUID, QUICK)
            try:
                return await scenario(chain, node)
            finally:
                await chain.close()

    return asyncio.run(act())


async def head_of(chain: SubtensorChain, number: int) -> bool:
    """Whether the head gets there within a second."""
    for _ in range(200):
        if (await chain.head()).number == number:
            return True
        await asyncio.sleep(0.005)
    return False


def test_blocks_come_over_a_real_connection(codec: RuntimeCodec) -> None:
    async def scenario(chain: SubtensorChain, node: Node) -> Any:
        head, older = await chain.head(), await chain.block(3)
        return chain.block_seconds, head, older

    seconds, head, older = play(codec, scenario)
    assert seconds == 12.0
    assert (head.number, head.hash.hex(), head.timestamp) == (5, Node.hash(5)[2:], GENESIS_MILLIS / 1000 + 60)
    assert (older.number, older.timestamp) == (3, GENESIS_MILLIS / 1000 + 36)


def test_new_heads_arrive_by_subscription_also_after_the_connection_was_cut(codec: RuntimeCodec) -> None:
    async def scenario(chain: SubtensorChain, node: Node) -> Any:
        await chain.head()
        await node.step()
        followed = await head_of(chain, 6)
        asked = node.asked.count("chain_subscribeNewHeads")
        await node.break_connections()
        while node.asked.count("chain_subscribeNewHeads") == asked:
            await asyncio.sleep(0.005)
        await node.step()
        return followed, await head_of(chain, 7), node.dialled

    assert play(codec, scenario) == (True, True, 2)


def test_a_read_that_is_open_when_the_connection_is_cut_is_answered_over_the_next_one(codec: RuntimeCodec) -> None:
    async def scenario(chain: SubtensorChain, node: Node) -> Any:
        await chain.head()
        node.muted = {"state_getStorageAt"}
        reading = asyncio.create_task(chain.block(2))
        while node.asked[-1] != "state_getStorageAt":
            await asyncio.sleep(0.005)
        node.muted = set()
        await node.break_connections()
        return (await reading).number, node.dialled

    assert play(codec, scenario) == (2, 2)


def test_a_node_that_went_away_for_good_is_a_sentence(codec: RuntimeCodec) -> None:
    async def scenario() -> None:
        node = Node()
        node.storage[key(codec, "SubtensorModule", "NetworksAdded", [NETUID])] = "0x01"
        node.timestamp_key = key(codec, "Timestamp", "Now", [])
        async with node.running():
            chain = await SubtensorChain.connect(node.url, NETUID, QUICK)
        with pytest.raises(ChainUnreachable, match=r"ws://127.0.0.1:\d+ does not answer \(could not connect"):
            await chain.head()
        await chain.close()

    asyncio.run(scenario())


@pytest.mark.parametrize("length", [0, 1, 63, 64, 127, 128])
def test_a_commitment_that_is_sent_is_the_one_that_is_read(codec: RuntimeCodec, length: int) -> None:
    data = bytes(range(1, 256))[:length]
    call = calls.Commitments.set_commitment(netuid=NETUID, info={"fields": [[{f"Raw{length}": data}]]})
    sent = codec.compose_call(call.module, call.function, call.params).data
    pallet, function, netuid = b"\x12", b"\x00", NETUID.to_bytes(2, "little")
    assert sent == pallet + function + netuid + b"\x04" + bytes([length + 1]) + data

    async def scenario(chain: SubtensorChain, node: Node) -> Any:
        stored = bytes(8) + (7).to_bytes(4, "little") + sent[4:]
        node.storage[key(codec, "Commitments", "CommitmentOf", [NETUID, ALICE])] = f"0x{stored.hex()}"
        substrate = RpcSubstrate(node.url)
        await substrate.connect()
        record = await substrate.query("Commitments", "CommitmentOf", [NETUID, ALICE])
        await substrate.close()
        return record["block"], raw_commitment(record)

    assert play(codec, scenario) == (7, data)


@pytest.mark.parametrize("taken", [True, False])
def test_a_write_whose_connection_is_cut_is_looked_up_and_sent_again_only_if_it_was_not_taken(
    codec: RuntimeCodec, taken: bool
) -> None:
    data = b"where my bucket is"
    entry = b"\x04" + bytes([len(data) + 1]) + data

    async def scenario(chain: SubtensorChain, node: Node) -> Any:
        async def submitted(extrinsic: bytes) -> None:
            assert extrinsic.endswith(entry)
            if taken or len(node.submitted) > 1:
                stored = bytes(12) + entry
                node.storage[key(codec, "Commitments", "CommitmentOf", [NETUID, ALICE])] = f"0x{stored.hex()}"
            await node.break_connections()

        node.on_submit = submitted
        await chain.commit(Keypair.create_from_uri("//Alice"), data)
        return len(node.submitted), len(set(node.submitted)), node.dialled

    calls_sent, different, dialled = play(codec, scenario)
    assert calls_sent == dialled - 1 == (1 if taken else 2)
    assert different == calls_sent


def test_what_the_runtime_lacks_is_told_from_what_the_connection_does(codec: RuntimeCodec) -> None:
    """The errors on which the fake of a chain rests are the ones that the SDK's codec raises."""
    with pytest.raises(ValueError, match=r"storage function SubtensorModule.Nope not found"):
        codec.storage_entry("SubtensorModule", "Nope")
    with pytest.raises(ValueError, match=r"call Commitments.nope not found"):
        codec.compose_call("Commitments", "nope", {})
    with pytest.raises(ValueError, match="Raw129"):
        codec.compose_call("Commitments", "set_commitment", {"netuid": 1, "info": {"fields": [[{"Raw129": b""}]]}})
