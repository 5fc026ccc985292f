"""Whole networks in virtual time: who learns, who is paid, and that nobody ever differs by a bit."""

from __future__ import annotations

import json
import logging
import shutil
from typing import Any

import numpy as np

from neurons.adversaries import Copycat, FreeRider
from neurons.explain.explanation import explain
from neurons.explain.gathering import gather
from neurons.leaderboard.view import Watcher
from neurons.validator import Validator
from protocol.ledger.manifest import FIRST_PREVIOUS
from protocol.run import preset_table
from storage.bucket import Bucket
from storage.directory import DirectoryBucket
from storage.errors import Unavailable


def thorough() -> dict[str, Any]:
    """Constants with enough training and judging that honest work stands out from noise with a wide margin."""
    table = preset_table("demo")
    table["model"] |= {"vocab_size": 512, "hidden_size": 64, "intermediate_size": 160, "num_key_value_heads": 4}
    table["dataset"] |= {"slots": 6, "page_sequences": 8}
    table["inner"] |= {"steps": 8, "pages_per_step": 1, "learning_rate": 1e-2, "warmup_steps": 8}
    table["gauntlet"] |= {"own_pages": 8, "random_pages": 8, "random_pages_most": 8}
    return table


def test_honest_miners_learn_together_and_are_paid_while_cheats_are_not(network, virtual) -> None:
    async def scenario() -> Any:
        async with await network(["v", "a", "b", "c", "copycat", "freerider"], table=thorough()) as net:
            net.start("v", Validator)
            for name in "abc":
                net.start(name)
            net.start("copycat", Copycat)
            net.start("freerider", FreeRider)
            roots, windows = [], 10
            for _ in range(windows):
                await net.windows(1)
                await net.blocks(1)
                held = net.roots()
                assert len(held) == 1, f"neurons differ: {held}"
                roots.append(held.pop())
            assert len(set(roots)) == windows
            judged = [await net.receipts(window) for window in range(windows)]
            paid = {n.uid: n.incentive for n in await net.chain.neurons()}
            view = await Watcher(net.run, net.chain, net.open_bucket).refresh()
            look = net.onlooker()
            explained = {uid: explain(await gather(look, uid, None)).to_json() for uid in range(1, 6)}
            return judged, paid, view, explained

    judged, paid, view, explained = virtual(scenario())
    assert judged[-1].held_out_loss_after < 0.85 * judged[0].held_out_loss_before
    honest, cheats = (1, 2, 3), (4, 5)
    final = {uid: judged[-1].of(uid).after.final for uid in (*honest, *cheats)}
    assert min(final[uid] for uid in honest) > max(final[uid] for uid in cheats)
    assert max(paid[uid] for uid in cheats) < 0.05 * sum(paid[uid] for uid in honest) / len(honest)
    assert {r.of(4).reason for r in judged} == {"wrong_key", "duplicate"}
    # The same values on every screen.
    board = {peer["uid"]: peer for peer in view.to_json()["peers"]}
    for uid in (*honest, *cheats):
        for key in ("rating", "unique_work", "sync", "final", "weight", "incentive"):
            assert explained[uid][key] == board[uid][key], key


def test_the_same_scenario_twice_gives_the_same_ledger_to_the_bit(network, virtual) -> None:
    async def scenario() -> Any:
        async with await network(["v", "a", "b"]) as net:
            net.start("v", Validator)
            net.start("a")
            net.start("b")
            await net.windows(3)
            manifests = [await net.manifest(window) for window in range(3)]
            return [m.root for m in manifests], [c.payload_digest for m in manifests for c in m.contributions]

    assert virtual(scenario()) == virtual(scenario())


def test_a_neuron_with_one_flipped_bit_is_refused_and_heals_from_a_checkpoint(network, virtual) -> None:
    async def scenario() -> Any:
        async with await network(["v", "a", "b"]) as net:
            net.start("v", Validator)
            net.start("a")
            victim = net.start("b")
            await net.windows(2)
            victim.state.theta.view(np.uint32)[1234] ^= 1
            assert len(net.roots()) == 2
            await net.windows(4)
            await net.blocks(1)
            assert len(net.roots()) == 1
            return [(await net.receipts(window)).of(2).reason for window in range(6)]

    reasons = virtual(scenario())
    assert reasons[:2] == [None, None]
    assert "stale_base" in reasons
    assert reasons[-1] is None


def test_a_miner_that_comes_later_starts_from_a_checkpoint_and_is_judged(network, virtual) -> None:
    async def scenario() -> Any:
        async with await network(["v", "a", "b", "late"]) as net:
            net.start("v", Validator)
            net.start("a")
            net.start("b")
            await net.windows(7)
            late = net.start("late")
            await net.windows(2)
            await net.blocks(1)
            assert len(net.roots()) == 1
            log = [r.of(3) for r in [await net.receipts(window) for window in range(9)]]
            return late.state.window, log

    window, log = virtual(scenario())
    assert window == 9
    assert log[0] is None
    assert log[-1].reason is None
    assert log[-1].judgement is not None


def test_a_network_that_was_stopped_in_the_middle_of_a_window_goes_on(network, virtual) -> None:
    async def scenario() -> Any:
        async with await network(["v", "a", "b"]) as net:
            for name, kind in (("v", Validator), ("a", None), ("b", None)):
                net.start(name, *([kind] if kind else []))
            await net.windows(2)
            await net.blocks(5)
            book = net.nodes["v"].memory.book
            await net.stop()
            await net.blocks(15)  # the chain goes on without anybody
            net.start("v", Validator)
            assert net.nodes["v"].memory.book == book
            for name in "ab":
                assert net.start(name).last_sent >= 1
            await net.windows(6)
            await net.blocks(1)
            assert len(net.roots()) == 1
            manifests = [await net.manifest(window) for window in range(net.nodes["v"].state.window)]
            previous = FIRST_PREVIOUS
            for manifest in manifests:
                assert manifest.previous == previous
                previous = manifest.digest()
            return [len(manifest.contributions) for manifest in manifests]

    counts = virtual(scenario())
    assert counts[0] == counts[-1] == 2
    assert 0 in counts, "the windows nobody could take part in are recorded as empty"


def test_a_window_without_contributions_leaves_the_state_as_it_is_and_the_next_one_trains_on(network, virtual) -> None:
    async def scenario() -> Any:
        async with await network(["v", "a"]) as net:
            net.start("v", Validator)
            net.start("a")
            await net.windows(2)
            await net.stop("a")
            await net.windows(2)
            net.start("a")
            await net.windows(3)
            return [await net.manifest(window) for window in range(7)]

    manifests = virtual(scenario())
    empty = [m.window for m in manifests if not m.contributions]
    assert empty
    assert all(manifests[w].root == manifests[w + 1].root for w in empty if w + 1 < len(manifests))
    assert manifests[-1].contributions


def test_a_second_validator_reaches_the_same_scores_and_stands_in_when_the_leader_dies(network, virtual) -> None:
    async def scenario() -> Any:
        async with await network(["v", "w", "a", "b"], stakes=(1000.0, 500.0)) as net:
            net.start("v", Validator)
            second = net.start("w", Validator)
            net.start("a")
            net.start("b")
            await net.windows(3)
            await net.blocks(2)
            ours, theirs = await net.receipts(2), await net.receipts(2, "w")
            await net.stop("v")
            await net.blocks(40)
            assert len(net.roots()) == 1
            signers = {(await net.manifest(window, "w")).signer for window in range(second.state.window)}
            last = await net.manifest(second.state.window - 1, "w")
            return ours, theirs, signers, second.hotkey, last

    ours, theirs, signers, second, last = virtual(scenario())
    assert ours.scorebook_digest == theirs.scorebook_digest
    assert ours.receipts == theirs.receipts
    assert second in signers
    assert len(signers) == 2
    assert len(last.contributions) == 2


class FullDisk:
    """A bucket that takes nothing while `full`."""

    def __init__(self, inner: Bucket) -> None:
        self.inner, self.full = inner, False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    async def put(self, key: str, data: bytes) -> None:
        if self.full:
            raise Unavailable("no space left on device")
        await self.inner.put(key, data)


def test_a_miner_whose_own_disk_is_full_for_a_while_loses_those_windows_and_nothing_else(network, virtual) -> None:
    async def scenario() -> Any:
        async with await network(["v", "a", "b"]) as net:
            disk = FullDisk(net.bucket("b"))
            net.start("v", Validator)
            net.start("a")
            net.start("b", bucket=disk)
            await net.windows(2)
            disk.full = True
            await net.windows(2)
            disk.full = False
            await net.windows(2)
            await net.blocks(1)
            assert len(net.roots()) == 1
            return [(await net.receipts(window)).of(2).reason for window in range(6)]

    reasons = virtual(scenario())
    assert reasons[:2] == [None, None]
    assert "no_seal" in reasons
    assert reasons[-1] is None


def test_what_the_leaderboard_prints_is_json_that_reads_back(network, virtual) -> None:
    async def scenario() -> Any:
        async with await network(["v", "a"]) as net:
            net.start("v", Validator)
            net.start("a")
            await net.windows(1)
            view = await Watcher(net.run, net.chain, net.open_bucket).refresh()
            return view.to_json()

    table = virtual(scenario())
    assert json.loads(json.dumps(table)) == table


def test_a_run_that_begins_later_is_waited_for_and_starts_from_what_its_publisher_has(network, virtual, quick) -> None:
    quick["time"]["first_window"] = 2

    async def scenario() -> None:
        async with await network(["v", "a", "b"], table=quick) as net:
            publisher = DirectoryBucket(net.folder / "publisher")
            (net.folder / "buckets" / "v").rename(publisher.root)  # no validator has the first state
            net.start("v", Validator, publisher=publisher)
            net.start("a", publisher=publisher)
            net.start("b", publisher=publisher)
            first = 2 * net.run.time.window_blocks
            await net.blocks(first - 1)
            assert {node.state.window for node in net.nodes.values()} == {-1}
            await net.windows(4)
            assert (await net.manifest(2)).root == net.run.genesis_root
            contributed = {c.hotkey for c in (await net.manifest(3)).contributions}
            assert contributed == {net.nodes[name].hotkey for name in ("a", "b")}
            assert len({root for _, root in net.roots()}) == 1

    virtual(scenario())


class AwayBucket:
    """Somebody's bucket as others see it: while `away`, nothing answers."""

    away = True

    def __init__(self, inner: Bucket) -> None:
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    async def get(self, key: str, *, limit_bytes: int) -> bytes:
        if AwayBucket.away:
            raise Unavailable("nothing answers here")
        return await self.inner.get(key, limit_bytes=limit_bytes)


def test_who_starts_while_no_validator_answers_waits_for_a_newer_state_than_the_first(
    network, virtual, quick, monkeypatch
) -> None:
    """From the first state there may be no way on: what was sent since then is kept for a while only."""
    quick["checkpoints"] = {"every_windows": 2, "keep": 2}

    async def scenario() -> None:
        async with await network(["v", "a", "late"], table=quick) as net:
            publisher = DirectoryBucket(net.folder / "publisher")
            shutil.copytree(net.folder / "buckets" / "v", publisher.root)
            net.start("v", Validator)
            net.start("a")
            await net.windows(6)
            monkeypatch.setattr(AwayBucket, "away", True)

            def open_bucket(commitment: bytes) -> Any:
                bucket = net.open_bucket(commitment)
                return AwayBucket(bucket) if commitment == net.location("v") else bucket

            net.start("late", publisher=publisher, open_bucket=open_bucket)
            await net.blocks(3)
            assert net.nodes["late"].state.window == -1
            AwayBucket.away = False
            await net.windows(3)
            assert net.nodes["late"].state.window > 6
            assert len({root for _, root in net.roots()}) == 1

    virtual(scenario())


def test_a_miner_is_told_what_became_of_its_contribution(network, virtual, quick, caplog) -> None:
    async def scenario() -> None:
        async with await network(["v", "a", "thief"], table=quick) as net:
            net.start("v", Validator)
            net.start("a")
            net.start("thief", Copycat)
            await net.windows(3)

    with caplog.at_level(logging.INFO, logger="neurons.miner"):
        virtual(scenario())
    said = [record.getMessage() for record in caplog.records if record.name == "neurons.miner"]
    assert "window 1: credited, the own contribution was applied by everybody" in said
    assert any(line.startswith("window 1: the own contribution was rejected: ") for line in said)
