"""Peers that cost as much as they can: the manifest comes in the same block, from the same peers, as without them."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import pytest

from neurons.adversaries.timing import DrippingBucket
from neurons.miner import Miner
from neurons.validator import Validator
from protocol.ledger.manifest import Manifest
from protocol.window import failover_block
from storage.bucket import ObjectInfo, Writer
from storage.directory import DirectoryBucket
from storage.errors import TooLarge, Unavailable, WrongSize
from tests.network.praise import praise

HONEST = ("a", "b", "c")


@dataclass(frozen=True, slots=True)
class Silent(DirectoryBucket):
    """Never answers for keys that end like this."""

    ending: str

    async def get(self, key: str, *, limit_bytes: int) -> bytes:
        if key.endswith(self.ending):
            await asyncio.sleep(1e9)
        return await DirectoryBucket.get(self, key, limit_bytes=limit_bytes)

    async def copy_range(self, key: str, start: int, length: int, writer: Writer, *, size_bytes: int) -> None:
        if key.endswith(self.ending):
            await asyncio.sleep(1e9)
        await DirectoryBucket.copy_range(self, key, start, length, writer, size_bytes=size_bytes)


@dataclass(frozen=True, slots=True)
class SilentHead(DirectoryBucket):
    """Has no objects, and never says whether one has come."""

    async def head(self, key: str) -> ObjectInfo:
        await asyncio.sleep(1e9)
        raise Unavailable("never")


@dataclass(frozen=True, slots=True)
class Immense(DirectoryBucket):
    """Says of everything that it is far larger than it may be."""

    async def get(self, key: str, *, limit_bytes: int) -> bytes:
        raise TooLarge(f"{key} has {2**40} bytes or more, its limit is {limit_bytes}")

    async def copy_range(self, key: str, start: int, length: int, writer: Writer, *, size_bytes: int) -> None:
        raise WrongSize(f"{key} has {2**40} bytes")


@dataclass(frozen=True, slots=True)
class Unlisted(DirectoryBucket):
    """Must never be listed: a list can go on for ever."""

    def list(self, prefix: str) -> Any:
        raise AssertionError(f"somebody lists {prefix}")


VIEWS: dict[str, Any] = {
    "drips": lambda root: DrippingBucket(root, 1000.0),
    "hides its seal": lambda root: Silent(root, "/seal.json"),
    "hides its shards": lambda root: Silent(root, "/shard-00000"),
    "hides its key": lambda root: Silent(root, "/key.json"),
    "hides whether": SilentHead,
    "is immense": Immense,
    "must not be listed": Unlisted,
}


class Observed(Validator):
    """A validator that notes in which block its manifests were written."""

    async def _keep(self, manifest: Manifest) -> None:
        await super()._keep(manifest)
        self.written = {**getattr(self, "written", {}), manifest.window: (await self.chain.head()).number}


class Idle(Miner):
    """Sends nothing."""

    async def window(self, number: int) -> None:
        await asyncio.sleep(1e9)


async def play(net: Any, hostile: tuple[str, ...], listed: tuple[str, ...]) -> list[tuple[int, list[int]]]:
    """Block of each manifest and the honest uids that it applies, while these are on the list."""

    def open_bucket(commitment: bytes) -> Any:
        for number, view in enumerate(VIEWS.values()):
            if commitment == net.location(f"hostile-{number}"):
                return view(net.bucket(f"hostile-{number}").root)
        return net.open_bucket(commitment)

    validator = net.start("v", Observed, open_bucket=open_bucket)
    for name in HONEST:
        net.start(name, open_bucket=open_bucket)
    for name in hostile:
        net.start(name, Idle if name.endswith("-4") else Miner)
    await net.windows(1)
    praise(net, dict.fromkeys(listed, 60.0))
    await net.windows(5)
    manifests = [await net.manifest(window) for window in range(3, 6)]
    honest = {net.nodes[name].hotkey for name in HONEST}
    return [(validator.written[m.window], [c.uid for c in m.contributions if c.hotkey in honest]) for m in manifests]


@pytest.fixture
def table(quick: dict[str, Any]) -> dict[str, Any]:
    """Slots for all, and so little doubt that praise lasts."""
    quick["dataset"] |= {"slots": 1 + len(HONEST) + len(VIEWS)}
    quick["gauntlet"] |= {"unique_work_rate": 0.01}
    return quick


def test_the_manifest_comes_in_the_same_block_with_hostile_peers_and_without(network, virtual, table) -> None:
    hostile = tuple(f"hostile-{number}" for number in range(len(VIEWS)))
    table["gauntlet"] |= {"gather_size": len(HONEST), "reserve_size": 0}

    async def scenario(present: tuple[str, ...]) -> Any:
        async with await network(["v", *HONEST, *hostile], table=dict(table)) as net:
            return await play(net, present, HONEST)

    without = virtual(scenario(()))
    assert [len(applied) for _, applied in without] == [3, 3, 3]
    assert virtual(scenario(hostile)) == without


def test_who_leads_waits_for_no_other_validator(network, virtual, table) -> None:
    async def scenario(silent: bool) -> dict[int, int]:
        async with await network(["v", "w", *HONEST], stakes=(1000.0, 500.0), table=dict(table)) as net:

            def open_bucket(commitment: bytes) -> Any:
                other = commitment == net.location("w") and silent
                return Silent(net.bucket("w").root, ".json") if other else net.open_bucket(commitment)

            await net.chain.commit(net.keypairs["w"], net.location("w"))
            leader = net.start("v", Observed, open_bucket=open_bucket)
            for name in HONEST:
                net.start(name, open_bucket=open_bucket)
            await net.windows(3)
            written: dict[int, int] = leader.written
            return written

    assert virtual(scenario(True)) == virtual(scenario(False))


@pytest.mark.parametrize("number", range(len(VIEWS) - 1), ids=list(VIEWS)[:-1])
def test_a_hostile_peer_on_the_list_delays_the_manifest_until_keys_are_due_and_no_longer(
    network, virtual, table, number: int
) -> None:
    name = f"hostile-{number}"

    async def scenario() -> None:
        async with await network(["v", *HONEST, *(f"hostile-{n}" for n in range(number + 1))], table=table) as net:
            found = await play(net, (name,), (*HONEST, name))
            time = net.run.time
            for window, (block, applied) in enumerate(found, start=3):
                close = (window + 1) * time.window_blocks
                assert block <= close + time.reveal_blocks
                assert block < failover_block(window, 1, time), "nobody has to stand in"
                assert len(applied) == 3

    virtual(scenario())
