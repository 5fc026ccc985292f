"""Validators that see different things: all judge what a manifest applies, and what else one saw stays its own."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from bittensor_core import Keypair
from blake3 import blake3

from neurons.adversaries.timing import KeylessBucket
from neurons.collecting import Round
from neurons.validator import Validator
from protocol.errors import Reason
from protocol.ledger.manifest import Contribution, Manifest
from protocol.sealing import SealedShard
from protocol.sparseloco.payload import Header, split, sync_proof
from protocol.window import Window
from storage.bucket import Bucket
from storage.directory import DirectoryBucket
from storage.errors import NotFound
from storage.seal import associated_data, encrypt_shard


@dataclass(frozen=True, slots=True)
class EmptyBucket(DirectoryBucket):
    """A bucket that shows nothing at all to whoever is given this view of it."""

    async def get(self, key: str, *, limit_bytes: int) -> bytes:
        raise NotFound(f"{key} is not for you")

    async def head(self, key: str) -> Any:
        raise NotFound(f"{key} is not for you")


def hidden(net: Any, name: str, view: type[DirectoryBucket]) -> Callable[[bytes], Bucket]:
    """Opens buckets; that of `name` shows only this view."""

    def open_bucket(commitment: bytes) -> Bucket:
        if commitment == net.location(name):
            return view(net.bucket(name).root)
        return net.open_bucket(commitment)

    return open_bucket


@pytest.mark.parametrize("view", [KeylessBucket, EmptyBucket])
def test_who_shows_its_work_to_the_leader_only_is_judged_by_all(network, virtual, quick, view: Any) -> None:
    async def scenario() -> None:
        async with await network(["v", "w", "a", "b", "coy"], stakes=(1000.0, 500.0), table=quick) as net:
            net.start("v", Validator)
            net.start("w", Validator, open_bucket=hidden(net, "coy", view))
            for name in ("a", "b", "coy"):
                net.start(name)
            await net.windows(3)
            for window in range(3):
                while not await _has_receipts(net, window, "w"):
                    await net.blocks(1)
                ours, theirs = await net.receipts(window), await net.receipts(window, "w")
                assert {c.uid for c in (await net.manifest(window)).contributions} == {2, 3, 4}
                assert (theirs.of(4).reason, theirs.of(4).contributed) == (None, True)
                assert theirs.of(4).judgement == ours.of(4).judgement
                assert theirs.scorebook_digest == ours.scorebook_digest

    virtual(scenario())


def test_who_hides_from_the_leader_is_not_applied_and_judged_by_those_who_saw_it(network, virtual, quick) -> None:
    async def scenario() -> None:
        async with await network(["v", "w", "a", "b", "coy"], stakes=(1000.0, 500.0), table=quick) as net:
            net.start("v", Validator, open_bucket=hidden(net, "coy", KeylessBucket))
            net.start("w", Validator)
            for name in ("a", "b", "coy"):
                net.start(name)
            await net.windows(2)
            for window in range(2):
                while not await _has_receipts(net, window, "w"):
                    await net.blocks(1)
                manifest = await net.manifest(window)
                assert {c.uid for c in manifest.contributions} == {2, 3}
                assert (await net.receipts(window)).of(4).reason is Reason.NO_REVEAL
                seen = (await net.receipts(window, "w")).of(4)
                assert (seen.reason, seen.contributed) == (None, False)
                assert seen.judgement is not None
            await net.blocks(3)
            assert len(net.roots()) == 1

    virtual(scenario())


async def _has_receipts(net: Any, window: int, name: str) -> bool:
    try:
        await net.receipts(window, name)
    except NotFound:
        return False
    return True


class Forger(Validator):
    """A leader that applies a payload in the name of a peer that has sent none."""

    victim = ""

    async def lead(self, window: Window, found: Round) -> Manifest:
        manifest = await super().lead(window, found)
        forged = await self._forged(window, found, next(iter(found.payloads().values())).update.records.tobytes())
        contributions = sorted((*manifest.contributions, forged), key=lambda named: named.uid)
        rejected = [refusal for refusal in manifest.rejected if refusal.uid != forged.uid]
        changes = {"contributions": tuple(contributions), "rejected": tuple(rejected), "signature": ""}
        return manifest.model_copy(update=changes).signed(self.parts.hotkey)

    async def _forged(self, window: Window, found: Round, body: bytes) -> Contribution:
        victim = Keypair.create_from_uri(f"//{self.victim}").ss58_address
        uid = next(n.uid for n in await self.chain.neurons() if n.hotkey == victim)
        payload = (
            Header(
                run_digest=self.run.digest(),
                window=window.number,
                hotkey=victim,
                layout_digest=self.layout.digest,
                base_root=self.root(),
                sync_proof=sync_proof(self.state.theta, victim, found.window_hash),
                inner_steps=1,
                tokens=1,
            ).pack()
            + body
        )
        key = os.urandom(32)
        associated = associated_data(self.run.digest_bytes, window.number, victim)
        shards = []
        for index, part in enumerate(split(payload, self.exchange.plain_sizes)):
            shard = encrypt_shard(key, index, associated, part)
            await self.parts.bucket.put(self.keys.shard(window.number, victim, index), shard)
            shards.append(SealedShard(size_bytes=len(shard), digest=blake3(shard).hexdigest()))
        return Contribution(
            uid=uid,
            hotkey=victim,
            payload_digest=blake3(payload).hexdigest(),
            key=key.hex(),
            shards=tuple(shards),
            location=self.parts.location.hex(),
        )


def test_no_leader_can_send_a_payload_in_the_name_of_another(network, virtual, quick) -> None:
    """All apply it, for a follower cannot know better; but whoever judges does not take it for that peer's work."""

    async def scenario() -> None:
        async with await network(["v", "w", "a", "idle"], stakes=(1000.0, 500.0), table=quick) as net:
            net.start("v", Forger).victim = "idle"
            net.start("w", Validator)
            net.start("a")
            await net.chain.commit(net.keypairs["idle"], net.location("idle"))
            await net.windows(1)
            while not await _has_receipts(net, 0, "w"):
                await net.blocks(1)
            assert [c.uid for c in (await net.manifest(0, "w")).contributions] == [2, 3]
            theirs = await net.receipts(0, "w")
            assert theirs.of(2).reason is None
            assert theirs.of(3) is None
            assert not net.nodes["w"].memory.book.knows(3, net.keypairs["idle"].ss58_address)

    virtual(scenario())
