"""Every malformed contribution of protocol §11, sent by a real neuron into a real network."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable
from typing import Any

from neurons.adversaries.twisted import SignFlip
from neurons.clock import until
from neurons.miner import Miner
from neurons.rounds import Sealed
from neurons.validator import Validator
from protocol.errors import Reason
from protocol.gauntlet.receipts import Receipts
from protocol.gauntlet.selection import UNLISTED_WINDOWS
from protocol.sealing import SealedShard
from protocol.sparseloco.payload import HEADER, HEADER_BYTES
from protocol.window import Window, deadlines
from storage.bucket import Bucket
from storage.errors import Unavailable


class Villain(Miner):
    """An honest miner, except that in window W it sends what its W-th trick makes of its contribution."""

    tricks: tuple[str, ...] = ()

    async def window(self, number: int) -> None:
        window = deadlines(number, self.run.time)
        payload = await self.contribute(window)
        assert payload is not None
        trick = getattr(self, self.tricks[number % len(self.tricks)])
        await trick(window, payload)
        await until(self.chain, window.key_block)

    async def honest(self, window: Window, payload: bytes) -> None:
        await self.reveal(window, await self.seal(window, payload))

    async def no_seal(self, window: Window, payload: bytes) -> None:
        pass

    async def late_seal(self, window: Window, payload: bytes) -> None:
        await until(self.chain, window.seal_block + 1)
        await self.seal(window, payload)

    async def bad_signature(self, window: Window, payload: bytes) -> None:
        await self._reseal(window, payload, signature="00" * 64)

    async def malformed_seal(self, window: Window, payload: bytes) -> None:
        await self.seal(window, payload)
        await self._put_seal(window, b'{"signer": 7')

    async def huge_seal(self, window: Window, payload: bytes) -> None:
        await self._put_seal(window, b" " * 1_000_000)

    async def wrong_run(self, window: Window, payload: bytes) -> None:
        await self._reseal(window, payload, run_digest="ab" * 32)

    async def wrong_window(self, window: Window, payload: bytes) -> None:
        await self._reseal(window, payload, window=window.number + 1)

    async def wrong_layout(self, window: Window, payload: bytes) -> None:
        await self._reseal(window, payload, layout_digest="ab" * 32)

    async def no_reveal(self, window: Window, payload: bytes) -> None:
        await self.seal(window, payload)

    async def wrong_key(self, window: Window, payload: bytes) -> None:
        sealed = await self.seal(window, payload)
        await self.reveal(window, Sealed(sealed.seal, bytes(32)))

    async def no_shard(self, window: Window, payload: bytes) -> None:
        sealed = await self.seal(window, payload)
        await self.parts.bucket.delete(self.keys.shard(window.number, self.hotkey, 0))
        await self.reveal(window, sealed)

    async def shard_size(self, window: Window, payload: bytes) -> None:
        await self._reseal(window, payload, shards=(SealedShard(size_bytes=2**40, digest="ab" * 32),))

    async def larger_shard(self, window: Window, payload: bytes) -> None:
        await self._replace_shard(window, payload, lambda shard: shard + b"!")

    async def shorter_shard(self, window: Window, payload: bytes) -> None:
        await self._replace_shard(window, payload, lambda shard: shard[:-1])

    async def shard_digest(self, window: Window, payload: bytes) -> None:
        await self._replace_shard(window, payload, lambda shard: bytes([shard[0] ^ 1]) + shard[1:])

    async def not_canonical(self, window: Window, payload: bytes) -> None:
        # All bits of the first upper map set: far more than k ones.
        await self.honest(window, payload[:HEADER_BYTES] + b"\xff" * 16 + payload[HEADER_BYTES + 16 :])

    async def not_a_payload(self, window: Window, payload: bytes) -> None:
        await self.honest(window, bytes(len(payload)))

    async def bad_level(self, window: Window, payload: bytes) -> None:
        # The first record is one of a full chunk: its last two bytes are the lower and the upper level.
        at = HEADER_BYTES + 82 - 2
        await self.honest(window, payload[:at] + b"\xf0\x01" + payload[at + 2 :])

    async def stale_base(self, window: Window, payload: bytes) -> None:
        root = "cd" * 32
        payload = self._header(payload, 7, bytes.fromhex(root))
        key = bytes(32)
        shards = await self.exchange.publish_shards(window.number, payload, key)
        await self.reveal(window, await self.exchange.publish_seal(window.number, root, payload, shards, key))

    async def bad_sync_proof(self, window: Window, payload: bytes) -> None:
        await self.honest(window, self._header(payload, 8, bytes(32)))

    async def payload_of_another_hotkey(self, window: Window, payload: bytes) -> None:
        await self.honest(window, self._header(payload, 5, bytes(32)))

    async def duplicate(self, window: Window, payload: bytes) -> None:
        await self.honest(window, payload[:HEADER_BYTES] + self.last_valid[HEADER_BYTES:])

    async def overlap(self, window: Window, payload: bytes) -> None:
        # The same records with the sign of every value of the first one turned: new bytes, old positions.
        signs = HEADER_BYTES + 64
        body = bytearray(self.last_valid)
        for i in range(signs, signs + 8):
            body[i] ^= 0xFF
        await self.honest(window, payload[:HEADER_BYTES] + bytes(body[HEADER_BYTES:]))

    async def valid(self, window: Window, payload: bytes) -> None:
        self.last_valid = payload
        await self.honest(window, payload)

    async def unreachable(self, window: Window, payload: bytes) -> None:
        await self.honest(window, payload)

    async def never_answers(self, window: Window, payload: bytes) -> None:
        await self.honest(window, payload)

    async def _reseal(self, at: Window, payload: bytes, **changes: Any) -> None:
        sealed = await self.seal(at, payload)
        signature = changes.pop("signature", None)
        seal = sealed.seal.model_copy(update={**changes, "signature": ""}).signed(self.parts.hotkey)
        if signature:
            seal = seal.model_copy(update={"signature": signature})
        await self._put_seal(at, seal.canonical())
        await self.reveal(at, sealed)

    async def _put_seal(self, window: Window, data: bytes) -> None:
        await self.parts.bucket.put(self.keys.seal(window.number, self.hotkey), data)

    async def _replace_shard(self, window: Window, payload: bytes, change: Callable[[bytes], bytes]) -> None:
        sealed = await self.seal(window, payload)
        key = self.keys.shard(window.number, self.hotkey, 0)
        shard = await self.parts.bucket.get(key, limit_bytes=10**7)
        await self.parts.bucket.put(key, change(shard))
        await self.reveal(window, sealed)

    def _header(self, payload: bytes, field: int, value: bytes) -> bytes:
        fields = list(HEADER.unpack_from(payload))
        fields[field] = value
        return HEADER.pack(*fields) + payload[HEADER_BYTES:]


REASONS = {
    "valid": None,
    "overlap": Reason.OVERLAP,
    "duplicate": Reason.DUPLICATE,
    "no_seal": Reason.NO_SEAL,
    "late_seal": Reason.LATE_SEAL,
    "bad_signature": Reason.BAD_SIGNATURE,
    "malformed_seal": Reason.BAD_SIGNATURE,
    "huge_seal": Reason.BAD_SIGNATURE,
    "wrong_run": Reason.WRONG_RUN,
    "wrong_window": Reason.WRONG_WINDOW,
    "wrong_layout": Reason.WRONG_LAYOUT,
    "no_reveal": Reason.NO_REVEAL,
    "wrong_key": Reason.WRONG_KEY,
    "no_shard": Reason.NO_SHARD,
    "shard_size": Reason.SHARD_SIZE,
    "larger_shard": Reason.SHARD_SIZE,
    "shorter_shard": Reason.SHARD_SIZE,
    "shard_digest": Reason.SHARD_DIGEST,
    "not_canonical": Reason.NOT_CANONICAL,
    "not_a_payload": Reason.NOT_CANONICAL,
    "bad_level": Reason.BAD_LEVEL,
    "stale_base": Reason.STALE_BASE,
    "bad_sync_proof": Reason.BAD_SYNC_PROOF,
    "payload_of_another_hotkey": Reason.BAD_SIGNATURE,
    "unreachable": Reason.UNREACHABLE,
    "never_answers": Reason.UNREACHABLE,
}
"""Trick of each window → the reason it must be rejected for."""


class FaultyBucket:
    """The villain's bucket as others see it: in the windows of the last two tricks it fails, or never answers."""

    def __init__(self, inner: Bucket) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def get(self, key: str, *, limit_bytes: int) -> bytes:
        trick = list(REASONS)[int(key.split("/")[1]) % len(REASONS)] if key.endswith("seal.json") else ""
        if trick == "unreachable":
            raise Unavailable("the villain's store answers with an error")
        if trick == "never_answers":
            await asyncio.sleep(1e9)
        return await self._inner.get(key, limit_bytes=limit_bytes)


async def _play(net: Any, tricks: tuple[str, ...]) -> tuple[list[Receipts], str]:
    def open_bucket(commitment: bytes) -> Any:
        bucket = net.open_bucket(commitment)
        return FaultyBucket(bucket) if commitment == net.location("villain") else bucket

    net.start("v", Validator, open_bucket=open_bucket)
    for name in "abc":
        net.start(name)
    net.start("villain", Villain).tricks = tricks
    await net.windows(len(tricks))
    receipts = [await net.receipts(window) for window in range(len(tricks))]
    return receipts, net.nodes["a"].root()


def _sent(receipts: Receipts, uid: int) -> str:
    return receipts.of(uid).submission.payload_digest


def test_every_malformed_contribution_is_rejected_with_its_reason_and_changes_nothing_for_others(
    network, virtual, quick
) -> None:
    silent = ("valid", *["no_seal"] * (len(REASONS) - 1))

    async def scenario() -> None:
        async with await network(["v", "a", "b", "c", "villain"], table=copy.deepcopy(quick)) as net:
            judged, root = await _play(net, tuple(REASONS))
        async with await network(["v", "a", "b", "c", "villain"], table=copy.deepcopy(quick)) as net:
            alone, root_alone = await _play(net, silent)

        found = {trick: r.of(4).reason for trick, r in zip(REASONS, judged, strict=True)}
        assert found == REASONS
        assert not any(r.of(4).contributed for r, reason in zip(judged, REASONS.values(), strict=True) if reason)
        for with_villain, without in zip(judged, alone, strict=True):
            for uid in (1, 2, 3):
                assert with_villain.of(uid).reason is None
                assert with_villain.of(uid).contributed == without.of(uid).contributed
                assert _sent(with_villain, uid) == _sent(without, uid)
        assert root == root_alone

    virtual(scenario())


def test_before_there_is_a_list_the_leader_keeps_out_whoever_would_raise_the_loss(network, virtual, quick) -> None:
    async def scenario() -> tuple[list[set[int]], list[Receipts]]:
        quick["inner"] |= {"steps": 4}
        quick["gauntlet"] |= {"random_pages": 8, "random_pages_most": 8}
        async with await network(["v", "a", "b", "c", "x"], table=quick) as net:
            net.start("v", Validator)
            for name in "abc":
                net.start(name)
            net.start("x", SignFlip)
            await net.windows(UNLISTED_WINDOWS)
            applied = [{c.uid for c in (await net.manifest(w)).contributions} for w in range(UNLISTED_WINDOWS)]
            return applied, [await net.receipts(w) for w in range(UNLISTED_WINDOWS)]

    applied, found = virtual(scenario())
    # Of the first window's small steps nobody can say anything yet.
    assert applied[1:] == [{1, 2, 3}] * (UNLISTED_WINDOWS - 1)
    receipts = [receipts.of(4) for receipts in found[1:]]
    assert all(receipt.reason is None and receipt.judgement.gain < 0 for receipt in receipts)
