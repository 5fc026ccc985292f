"""What goes wrong with one neuron, one bucket or one machine, and that it stays there."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from neurons.miner import Miner
from neurons.validator import Validator
from protocol.errors import Reason
from protocol.ledger.manifest import Manifest
from protocol.run import preset_table
from protocol.window import Window
from storage.bucket import Bucket
from storage.checkpoint import write_checkpoint


def brief(every_windows: int = 1) -> dict[str, Any]:
    """Constants with as little training and judging as there can be, two checkpoints kept."""
    table = preset_table("demo")
    table["model"] |= {"vocab_size": 512, "hidden_size": 48, "intermediate_size": 96}
    table["dataset"] |= {"sequence_tokens": 64, "slots": 6}
    table["inner"] |= {"steps": 2, "warmup_steps": 0}
    table["gauntlet"] |= {"own_pages": 2, "random_pages": 2, "random_pages_most": 2, "held_out_pages": 1}
    table["checkpoints"] = {"every_windows": every_windows, "keep": 2}
    return table


class SilentBucket:
    """Somebody's bucket as others see it: it never answers for keys that end like this."""

    def __init__(self, inner: Bucket, *endings: str) -> None:
        self._inner, self._endings = inner, endings

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def get(self, key: str, *, limit_bytes: int) -> bytes:
        if key.endswith(self._endings):
            await asyncio.sleep(1e9)
        return await self._inner.get(key, limit_bytes=limit_bytes)


def silent(net: Any, name: str, *endings: str) -> Any:
    """Opens buckets; that of `name` never answers for keys that end like this."""

    def open_bucket(commitment: bytes) -> Any:
        bucket = net.open_bucket(commitment)
        return SilentBucket(bucket, *endings) if commitment == net.location(name) else bucket

    return open_bucket


class WrongRoot(Validator):
    """A leader whose manifests name a root that nobody has."""

    async def lead(self, window: Window, found: Any) -> Manifest:
        manifest = await super().lead(window, found)
        return manifest.model_copy(update={"root": "ab" * 32, "signature": ""}).signed(self.parts.hotkey)

    async def agree(self, window: Window, found: Any) -> Manifest:
        await self._keep(await self.lead(window, found))
        await asyncio.sleep(1e9)
        raise AssertionError


def test_a_manifest_that_names_a_wrong_root_is_passed_over_after_one_fresh_start(network, virtual) -> None:
    async def scenario() -> None:
        async with await network(["v", "w", "a"], stakes=(1000.0, 500.0), table=brief()) as net:
            net.stands_audit = False  # the leader lies
            net.start("v", WrongRoot)
            second = net.start("w", Validator)
            miner = net.start("a")
            loads = 0
            load = miner.load

            async def counted() -> None:
                nonlocal loads
                loads += 1
                await load()

            miner.load = counted
            await net.blocks(30)
            assert (await net.manifest(0, "w")).signer == second.hotkey
            assert miner.state.window >= 1
            assert loads == 2, "once to join and once in doubt"

    virtual(scenario())


def test_a_bucket_that_never_gives_its_key_delays_nobody(network, virtual) -> None:
    async def scenario() -> None:
        async with await network(["v", "w", "a", "b", "mute"], stakes=(1000.0, 500.0), table=brief()) as net:
            for name in "vw":
                net.start(name, Validator, open_bucket=silent(net, "mute", "key.json"))
            for name in ("a", "b", "mute"):
                net.start(name)
            await net.windows(4)
            judged = [await net.receipts(window) for window in range(4)]
            assert {r.of(4) and r.of(4).reason for r in judged} <= {None, Reason.UNREACHABLE}
            signers = {(await net.manifest(window)).signer for window in range(4)}
            assert signers == {net.nodes["v"].hotkey}, "the leader was not late"
            assert (await net.manifest(3)) == (await net.manifest(3, "w"))
            assert {r.of(uid).reason for r in judged for uid in (2, 3)} == {None}

    virtual(scenario())


def test_a_miner_reveals_in_time_though_the_bucket_of_another_one_never_answers(network, virtual) -> None:
    async def scenario() -> None:
        async with await network(["v", "a", "b", "mute"], table=brief()) as net:
            net.start("v", Validator)
            for name in "ab":
                net.start(name, open_bucket=silent(net, "mute", "shard-00000"))
            net.start("mute")
            await net.windows(3)
            for window in range(3):
                judged = await net.receipts(window)
                assert [judged.of(uid).reason for uid in (1, 2, 3)] == [None] * 3
            await net.blocks(6)
            assert len(net.roots()) == 1, "what the mute bucket holds comes from the leader's mirror"

    virtual(scenario())


def test_a_validator_whose_bucket_never_answers_does_not_stop_the_others(network, virtual) -> None:
    async def scenario() -> None:
        async with await network(["v", "w", "a", "b"], stakes=(1000.0, 500.0), table=brief()) as net:
            await net.chain.commit(net.keypairs["v"], net.location("v"))
            net.start("w", Validator, open_bucket=silent(net, "v", ".json"))
            for name in "ab":
                net.start(name, open_bucket=silent(net, "v", ".json"))
            await net.blocks(60)
            windows = net.nodes["w"].state.window
            assert windows >= 3
            manifests = [await net.manifest(window, "w") for window in range(windows)]
            assert sum(len(manifest.contributions) for manifest in manifests) >= 2

    virtual(scenario())


class SlowSeals(SilentBucket):
    """A bucket that holds its owner's seal back until the keys of others can be read."""

    async def get(self, key: str, *, limit_bytes: int) -> bytes:
        if key.endswith("seal.json"):
            await asyncio.sleep(1.5)
        return await self._inner.get(key, limit_bytes=limit_bytes)


def test_a_seal_that_its_bucket_holds_back_until_keys_are_out_does_not_count(network, virtual) -> None:
    async def scenario() -> None:
        async with await network(["v", "a", "slow", "b"], table=brief()) as net:

            def open_bucket(commitment: bytes) -> Any:
                bucket = net.open_bucket(commitment)
                return SlowSeals(bucket) if commitment == net.location("slow") else bucket

            net.start("v", Validator, open_bucket=open_bucket)
            for name in ("a", "slow", "b"):
                net.start(name)
            await net.windows(2)
            for window in range(2):
                assert [c.uid for c in (await net.manifest(window)).contributions] == [1, 3]

    virtual(scenario())


class NamesNobody(WrongRoot):
    """A leader whose manifest applies the payload of something that is no address."""

    async def lead(self, window: Window, found: Any) -> Manifest:
        manifest = await Validator.lead(self, window, found)
        forged = manifest.contributions[0].model_copy(update={"hotkey": "1" * 48})
        changes = {"contributions": (forged, *manifest.contributions[1:]), "signature": ""}
        return manifest.model_copy(update=changes).signed(self.parts.hotkey)


def test_a_manifest_that_names_something_that_is_no_address_is_refused(network, virtual) -> None:
    async def scenario() -> None:
        async with await network(["v", "w", "a"], stakes=(1000.0, 500.0), table=brief()) as net:
            net.stands_audit = False  # the leader lies
            net.start("v", NamesNobody)
            second = net.start("w", Validator)
            net.start("a")
            await net.blocks(24)
            assert (await net.manifest(0, "w")).signer == second.hotkey
            assert net.nodes["a"].state.window >= 1

    virtual(scenario())


def test_a_checkpoint_of_a_window_that_has_not_begun_is_not_taken(network, virtual) -> None:
    async def scenario() -> None:
        async with await network(["v", "a"], table=brief()) as net:
            node = net.start("v", Validator)
            await net.blocks(3)
            root, theta = node.root(), node.state.theta
            for number in (998, 999, 1000):
                signed = (await _empty_manifest(node, number, root)).signed(net.keypairs["v"])
                await net.bucket("v").put(net.keys.manifest(number), signed.canonical())
            tensors = net.layout.tensors(theta)
            await write_checkpoint(net.bucket("v"), net.keys, window=1000, root=root, tensors=tensors)
            late = net.start("a")
            await net.blocks(3)
            assert late.state.window != 1000

    virtual(scenario())


async def _empty_manifest(node: Any, number: int, root: str) -> Manifest:
    return Manifest(
        signer=node.hotkey,
        run_digest=node.run.digest(),
        window=number,
        previous="00" * 32,
        root=root,
        alpha=1.0,
        contributions=(),
        rejected=(),
        gather=(),
        reserve=(),
    )


def test_a_validator_that_was_away_holds_the_manifests_of_the_windows_it_missed(network, virtual) -> None:
    async def scenario() -> None:
        async with await network(["v", "w", "a"], stakes=(1000.0, 500.0), table=brief(every_windows=5)) as net:
            net.start("v", Validator)
            net.start("w", Validator)
            net.start("a")
            await net.windows(1)
            await net.stop("w")
            await net.windows(3)
            net.start("w", Validator)
            await net.windows(2)
            for window in range(5):
                assert await net.manifest(window, "w") == await net.manifest(window)

    virtual(scenario())


class DiesBeforeRevealing(Miner):
    """Its process ends after sealing, in the third window."""

    async def reveal(self, window: Window, sealed: Any) -> None:
        if window.number == 2:
            await asyncio.sleep(1e9)
        await super().reveal(window, sealed)


def test_a_payload_that_was_never_revealed_was_not_sent_and_leaves_no_error_behind(network, virtual) -> None:
    async def scenario() -> None:
        async with await network(["v", "a", "b"], table=brief()) as net:
            net.start("v", Validator)
            net.start("b")
            net.start("a", DiesBeforeRevealing)
            await net.windows(3)
            await net.stop("a")
            assert (await net.receipts(2)).of(1).reason is Reason.NO_REVEAL
            assert net.start("a").last_sent == 1

    virtual(scenario())


def test_a_miner_keeps_no_window_that_nobody_can_ask_for(network, virtual) -> None:
    async def scenario() -> list[int | None]:
        async with await network(["v", "a"], table=brief()) as net:
            net.start("v", Validator)
            net.start("a")
            await net.windows(6)
            keys = [info.key async for info in net.bucket("a").list("")]
            return sorted({net.keys.window_of(key) for key in keys} - {None})

    kept = virtual(scenario())
    assert kept[0] >= 3
    assert kept[-1] >= 5


def test_a_commitment_that_names_no_bucket_is_told_once_a_window(network, virtual, caplog) -> None:
    async def scenario() -> None:
        async with await network(["v", "a", "junk"], table=brief()) as net:
            await net.chain.commit(net.keypairs["junk"], b"\xff nonsense")
            net.start("v", Validator)
            net.start("a")
            await net.windows(3)
            assert [c.uid for c in (await net.manifest(2)).contributions] == [1]

    with caplog.at_level(logging.INFO):
        virtual(scenario())
    told = [record for record in caplog.records if "names no bucket" in record.getMessage()]
    assert 0 < len(told) <= 10
