"""Processes that die and disks that fail at the worst moment, and what the next process makes of it."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

from neurons.audit.walk import audit
from neurons.clock import until
from neurons.miner import Miner
from neurons.rounds import Sealed
from neurons.validator import Validator
from protocol.errors import ChainUnreachable, Reason
from protocol.ledger.manifest import Manifest
from protocol.sealing import SealedShard
from protocol.window import Window, deadlines
from storage.bucket import Bucket
from storage.checkpoint import latest_window
from storage.errors import Unavailable

DIES_IN = 1


class Mortal(Miner):
    """Its process ends in window `DIES_IN`, before the step of this name."""

    before = ""
    dead = False

    async def reveal(self, window: Window, sealed: Sealed) -> None:
        await self._live_until("reveal", window.number)
        await super().reveal(window, sealed)

    async def seal(self, window: Window, payload: bytes) -> Sealed:
        publish = self.exchange.publish_seal

        async def mortal(number: int, root: str, data: bytes, shards: tuple[SealedShard, ...], key: bytes) -> Sealed:
            await self._live_until("seal", number)
            return await publish(number, root, data, shards, key)

        self.exchange.publish_seal = mortal  # type: ignore[method-assign]
        return await super().seal(window, payload)

    async def _live_until(self, step: str, number: int) -> None:
        if (step, number) == (self.before, DIES_IN):
            self.dead = True
            await asyncio.sleep(1e9)


async def payloads(net: Any, windows: int) -> list[list[str]]:
    """Digests of the payloads that were applied in each window."""
    return [[c.payload_digest for c in (await net.manifest(window)).contributions] for window in range(windows)]


async def play_mortal(net: Any, before: str) -> list[list[str]]:
    """Four windows of a network whose miner a ends before this step, and is started again when it is noticed."""
    net.start("v", Validator)
    net.start("b")
    mortal = net.start("a", Mortal)
    mortal.before = before
    while not await net.is_judged(3):
        await net.blocks(1)
        if mortal.dead:
            mortal.dead = False
            await net.stop("a")
            net.start("a")
    assert len({root for _, root in net.roots()}) == 1
    return await payloads(net, 4)


def test_a_miner_that_dies_around_its_seal_goes_on_as_if_nothing_had_happened(network, virtual, quick) -> None:
    """Before the seal is out it seals the same work again; after it, it reveals; the moments and the error feedback of
    the next windows are the same to the bit."""

    async def scenario(before: str) -> list[list[str]]:
        async with await network(["v", "a", "b"], table=dict(quick)) as net:
            return await play_mortal(net, before)

    undisturbed = virtual(scenario("nothing"))
    assert [len(window) for window in undisturbed] == [2] * 4
    assert virtual(scenario("reveal")) == undisturbed
    assert virtual(scenario("seal")) == undisturbed


def test_a_miner_that_comes_back_too_late_to_reveal_begins_the_next_window_without_what_nobody_has(
    network, virtual, quick
) -> None:
    async def scenario() -> Any:
        async with await network(["v", "a", "b"], table=quick) as net:
            net.start("v", Validator)
            net.start("b")
            net.start("a", Mortal).before = "reveal"
            late = deadlines(DIES_IN, net.run.time).reveal_block
            while (await net.chain.head()).number < late:
                await net.blocks(1)
            await net.stop("a")
            assert net.start("a").last_sent == DIES_IN - 1
            while not await net.is_judged(3):
                await net.blocks(1)
            return [(await net.receipts(window)).of(1).reason for window in range(4)]

    reasons = virtual(scenario())
    assert reasons[DIES_IN] is Reason.NO_REVEAL
    assert reasons[-1] is None


class MissedOnce:
    """A bucket that takes the first key only at the second attempt."""

    def __init__(self, inner: Bucket) -> None:
        self.inner, self.missed = inner, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    async def put(self, key: str, data: bytes) -> None:
        if key.endswith("key.json") and not self.missed:
            self.missed += 1
            raise Unavailable("the store answers 503")
        await self.inner.put(key, data)


def test_a_key_that_the_store_did_not_take_is_published_again_while_it_counts(network, virtual, quick) -> None:
    async def scenario() -> None:
        async with await network(["v", "a", "b"], table=quick) as net:
            store = MissedOnce(net.bucket("a"))
            net.start("v", Validator)
            net.start("a", bucket=store)
            net.start("b")
            await net.windows(2)
            assert store.missed == 1
            assert [(await net.receipts(window)).of(1).reason for window in range(2)] == [None, None]

    virtual(scenario())


def in_the_way(node: Any, name: str) -> Path:
    """Make it impossible to write this file of a node, as a full disk does."""
    path = node.parts.folder / f"~{name}"
    path.mkdir()
    return path


def test_a_validator_whose_disk_is_full_when_a_window_ends_says_nothing_of_it_and_goes_on(
    network, virtual, quick, tmp_path
) -> None:
    async def scenario() -> Any:
        async with await network(["v", "a", "b"], table=quick) as net:
            node = net.start("v", Validator)
            net.start("a")
            net.start("b")
            await net.windows(2)
            full = [in_the_way(node, name) for name in ("validator.json", "status.json")]
            while node.state.window < 3:
                await net.blocks(1)
            await net.blocks(6)
            for path in full:
                path.rmdir()
            assert not await net.is_judged(2)
            await net.windows(3)
            assert len({root for _, root in net.roots()}) == 1
            return await audit(net.onlooker(), None, None, True, tmp_path / "spool", lambda _: None)

    report = virtual(scenario())
    assert report.sentences() == ()
    assert [gap.words for gap in report.gaps] == ["window 2: validator uid 0 led it and has no receipts"]


class Stumbles(Validator):
    """The chain goes away when it is about to apply the manifest of window `DIES_IN` for the first time, and comes back
    when there is no time to judge that window once more."""

    stumbled = False

    async def apply(self, manifest: Manifest) -> None:
        if manifest.window == DIES_IN and not self.stumbled:
            self.stumbled = True
            await until(self.chain, self.judging_end(deadlines(DIES_IN, self.run.time)))
            raise ChainUnreachable("nothing answers")
        await super().apply(manifest)


def test_a_validator_that_stumbles_over_a_window_measures_the_next_one_on_its_own_state(
    network, virtual, quick, tmp_path
) -> None:
    async def scenario() -> Any:
        async with await network(["v", "a"], table=quick) as net:
            node = net.start("v", Stumbles)
            net.start("a")
            while not await net.is_judged(DIES_IN + 1):
                await net.blocks(1)
            assert node.stumbled
            return await audit(net.onlooker(), None, None, True, tmp_path / "spool", lambda _: None)

    assert virtual(scenario()).sentences() == ()


class MortalValidator(Validator):
    """Its process ends when it has written down the receipts of window `DIES_IN`, before it publishes them."""

    dead = False

    async def publish_owed(self) -> None:
        if self.owed is not None and self.owed.window == DIES_IN:
            self.dead = True
            await asyncio.sleep(1e9)
        await super().publish_owed()


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_receipts_that_were_written_down_are_published_by_the_next_process(network, virtual, quick, caplog) -> None:
    """And when even its file has rotted: the scorebook is made again from the receipts."""

    async def scenario() -> None:
        async with await network(["v", "a", "b"], table=quick) as net:
            node = net.start("v", MortalValidator)
            net.start("a")
            net.start("b")
            while not node.dead:
                await net.blocks(1)
            owed = node.owed
            await net.stop("v")
            assert not await net.is_judged(DIES_IN)
            (net.bucket("v").root / "~0123456789abcdef").write_bytes(b"half an object")
            node = net.start("v", Validator)
            await net.blocks(2)
            assert await net.receipts(DIES_IN) == owed
            await net.windows(1)
            book = node.memory.book
            await net.stop("v")
            flip_a_bit(node.parts.folder / "validator.json")
            flip_a_bit(net.nodes["a"].parts.folder / "training.safetensors")
            await net.stop("a")
            node, miner = net.start("v", Validator), net.start("a")
            assert node.memory.book.peers == ()
            assert miner.last_sent == -1
            await net.blocks(1)
            assert node.memory.book == book
            await net.windows(2)
            assert len({root for _, root in net.roots()}) == 1
            assert not list(net.bucket("v").root.glob("~*"))

    with caplog.at_level(logging.WARNING):
        virtual(scenario())
    said = [record.getMessage() for record in caplog.records]
    assert any("validator.json is damaged" in line for line in said)
    assert any("training.safetensors is damaged" in line for line in said)


def test_the_chain_jumps_ten_windows_while_everybody_sleeps(network, virtual, quick) -> None:
    async def scenario() -> None:
        async with await network(["v", "w", "a", "b"], stakes=(1000.0, 500.0), table=quick) as net:
            for name in "vw":
                net.start(name, Validator)
            for name in "ab":
                net.start(name)
            await net.windows(1)
            for _ in range(10 * net.run.time.window_blocks):
                net.chain.produce_block((await net.chain.head()).timestamp)
            await net.windows(13)
            counts = [len((await net.manifest(window)).contributions) for window in range(14)]
            assert counts[0] == 2
            assert 0 in counts
            assert counts[-1] == 2
            await net.blocks(1)
            assert len({root for _, root in net.roots()}) == 1

    virtual(scenario())


class Yesterday:
    """Somebody's bucket as others see it: under some names lies what lay under them a window ago."""

    def __init__(self, inner: Bucket, keys: Any, *endings: str) -> None:
        self.inner, self.keys, self.endings = inner, keys, endings

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    async def get(self, key: str, *, limit_bytes: int) -> bytes:
        window = self.keys.window_of(key)
        if window and key.endswith(self.endings):
            key = key.replace(f"/{window:08d}/", f"/{window - 1:08d}/")
        return await self.inner.get(key, limit_bytes=limit_bytes)


def test_a_bucket_that_serves_yesterdays_objects_costs_its_owner_and_nobody_else(network, virtual, quick) -> None:
    async def scenario() -> Any:
        async with await network(["v", "a", "b", "c"], table=quick) as net:

            def open_bucket(commitment: bytes) -> Any:
                bucket = net.open_bucket(commitment)
                endings = {net.location("a"): "seal.json", net.location("b"): "key.json"}
                return Yesterday(bucket, net.keys, endings[commitment]) if commitment in endings else bucket

            net.start("v", Validator, open_bucket=open_bucket)
            for name in "abc":
                net.start(name, open_bucket=open_bucket)
            await net.windows(3)
            await net.blocks(1)
            assert len({root for _, root in net.roots()}) == 1
            return [[r.of(uid).reason for uid in (1, 2, 3)] for r in [await net.receipts(w) for w in range(3)]]

    first, *later = virtual(scenario())
    assert first == [None, None, None]
    assert later == [[Reason.WRONG_WINDOW, Reason.WRONG_KEY, None]] * 2


class Away:
    """A bucket that answers nothing until it is `back`."""

    def __init__(self, inner: Bucket) -> None:
        self.inner, self.back = inner, False

    def __getattr__(self, name: str) -> Any:
        if not self.back:
            raise Unavailable("the connection was refused")
        return getattr(self.inner, name)


def test_a_node_whose_bucket_is_away_when_it_starts_joins_when_it_is_back(network, virtual, quick) -> None:
    async def scenario() -> None:
        async with await network(["v", "a", "b"], table=quick) as net:
            net.start("v", Validator)
            net.start("b")
            node = net.start("a")
            await net.windows(1)
            await net.stop("a")
            store = Away(node.parts.bucket)
            node = net.start("a", bucket=store)
            await net.blocks(4)
            assert node.state.window == -1
            store.back = True
            await net.windows(2)
            assert len({root for _, root in net.roots()}) == 1

    virtual(scenario())


class Hesitates(Validator):
    """Does not vote while it is `quiet`."""

    quiet = False

    async def take_part(self) -> None:
        if not self.quiet:
            await super().take_part()


def test_a_node_that_was_away_while_much_became_final_does_not_take_an_old_certificate_for_a_rivals(
    network, virtual, quick
) -> None:
    """The manifests between the old certificate and the new one are known to it later than both."""

    async def scenario() -> None:
        async with await network(["v", "a"], table=quick) as net:
            node = net.start("v", Hesitates)
            miner = net.start("a")
            while miner.ledger.final_window < 1:
                await net.blocks(1)
            node.quiet = True
            old = miner.ledger.final_window
            await net.stop("a")
            while node.state.window < old + 5:
                await net.blocks(1)
            assert node.ledger.final_window == old
            node.quiet = False
            while node.ledger.final_window == old:
                await net.blocks(1)
            net.start("a")
            await net.windows(2)
            await net.blocks(1)
            assert len({root for _, root in net.roots()}) == 1

    virtual(scenario())


def test_a_validator_that_was_killed_on_a_branch_that_lost_keeps_the_manifest_that_won(network, virtual, quick) -> None:
    quick["checkpoints"] = {"every_windows": 1, "keep": 50}

    async def scenario() -> None:
        async with await network(["v", "w", "a"], stakes=(1000.0, 500.0), table=quick) as net:
            node = net.start("v", Validator)
            net.start("w", Validator)
            net.start("a")
            number = -1
            while node.ledger.final_window < 2 or await latest_window(net.bucket("v"), net.keys) <= number:
                await net.blocks(1)
                number = node.ledger.final_window
            won = await net.manifest(number)
            await net.stop("v")
            lost = won.model_copy(update={"signer": net.nodes["w"].hotkey, "signature": ""})
            await net.bucket("v").put(net.keys.manifest(number), lost.signed(net.keypairs["w"]).canonical())
            net.start("v", Validator)
            await net.windows(2)
            assert await net.manifest(number) == won

    virtual(scenario())
