"""The ledger when validators die, lie or cannot reach each other: which manifests are followed, and what is final."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from neurons.audit.report import EXIT_DIFFERENCE
from neurons.audit.walk import audit
from neurons.collecting import Round
from neurons.errors import ContradictionError
from neurons.miner import Miner
from neurons.status import read_status
from neurons.validator import Validator
from protocol.ledger.attestation import Attestation, Ballots, Step
from protocol.ledger.ballot import Ballot, Phase, due_block
from protocol.ledger.manifest import Manifest
from protocol.window import Window, deadlines, failover_block
from storage.bucket import Bucket
from storage.directory import DirectoryBucket
from storage.errors import Unavailable

EQUAL = (100.0, 100.0, 100.0)


async def until(net: Any, block: int) -> None:
    """Go on until this block is there, and the neurons have seen it."""
    while (await net.chain.head()).number < block:
        await net.blocks(1)
    await asyncio.sleep(0.9)


class Mortal(Validator):
    """Goes no further than a step of a window: `dead` is set then."""

    dies_in = -1
    after_signing = False
    dead = False

    async def lead(self, window: Window, found: Round) -> Manifest:
        await self._live_on(window.number, not self.after_signing)
        return await super().lead(window, found)

    async def _keep(self, manifest: Manifest) -> None:
        await self._live_on(manifest.window, self.after_signing and manifest.signer == self.hotkey)
        await super()._keep(manifest)

    async def _live_on(self, number: int, here: bool) -> None:
        if here and number == self.dies_in:
            self.dead = True
            await asyncio.sleep(1e9)


class Loads(Miner):
    """Counts how often it started from a checkpoint."""

    loads = 0

    async def load(self) -> None:
        self.loads += 1
        await super().load()


def test_the_leader_dies_between_sealing_and_publishing_and_stays_away(network, virtual, quick) -> None:
    """No window is lost, each costs m + f blocks at most, all becomes final, and who comes back leads again."""

    async def scenario() -> None:
        async with await network(["v", "w", "x", "a", "b"], stakes=EQUAL, table=quick) as net:
            net.start("v", Mortal).dies_in = 1
            for name in "wx":
                net.start(name, Validator)
            for name in "ab":
                net.start(name)
            while not net.nodes["v"].dead:
                await net.blocks(1)
            await net.stop("v")
            time, second = net.run.time, net.nodes["w"]
            for window in range(1, 5):
                limit = failover_block(window, 1, time)
                await until(net, limit)
                manifest = await net.manifest(window, "w")
                assert (manifest.signer, len(manifest.contributions)) == (second.hotkey, 2)
                assert {net.nodes[name].ledger.head for name in "wxab"} == {manifest.digest()}
            await until(net, due_block(Ballot(4, 1), Phase.CONFIRM, time) + 1)
            for name in "wxab":
                assert net.nodes[name].ledger.final_window >= 3, "two of three are more than half"
            net.start("v", Validator)
            await until(net, deadlines(8, time).key_block + 1)
            assert (await net.manifest(8, "w")).signer == net.nodes["v"].hotkey
            assert [await net.manifest(window, "v") for window in range(9)] == [
                await net.manifest(window, "w") for window in range(9)
            ]
            assert not net.nodes["w"].ledger.evidence
            status = read_status(net.folder / "nodes" / "a")
            assert status is not None
            assert (status.final, status.leader) == (net.nodes["a"].ledger.final_window, net.nodes["v"].hotkey)
            assert status.final >= 6

    virtual(scenario())


def test_a_manifest_that_was_signed_before_a_restart_is_used_again(network, virtual, quick) -> None:
    async def scenario() -> None:
        async with await network(["v", "w", "a"], stakes=(100.0, 50.0), table=quick) as net:
            mortal = net.start("v", Mortal)
            mortal.dies_in, mortal.after_signing = 1, True
            net.start("w", Validator)
            net.start("a")
            while not mortal.dead:
                await net.blocks(1)
            signed = mortal.voter.signed(1, mortal.state.previous)
            await net.stop("v")
            (net.folder / "nodes" / "v" / "window.json").unlink()  # so that another one would name nobody
            net.start("v", Validator)
            await net.windows(2)
            assert signed is not None
            assert await net.bucket("v").get(net.keys.manifest_of(1, signed.digest()), limit_bytes=10**7)
            assert not net.nodes["w"].ledger.evidence

    virtual(scenario())


@dataclass(frozen=True, slots=True)
class OtherFace(DirectoryBucket):
    """The bucket of a validator as it shows itself to some."""

    async def get(self, key: str, *, limit_bytes: int) -> bytes:
        return await DirectoryBucket.get(self, key.replace("/ledger/", "/other/"), limit_bytes=limit_bytes)


class TwoFaced(Validator):
    """Signs a second manifest of window 1, without the last contribution, for those who see its other face."""

    async def _keep(self, manifest: Manifest) -> None:
        await super()._keep(manifest)
        other = manifest
        if manifest.window == 1 and manifest.signer == self.hotkey:
            changes = {"contributions": manifest.contributions[:-1], "signature": ""}
            other = manifest.model_copy(update=changes).signed(self.parts.hotkey)
        key = self.keys.manifest(manifest.window).replace("/ledger/", "/other/")
        await self.parts.bucket.put(key, other.canonical())


def test_a_leader_that_shows_two_manifests_to_two_halves_all_end_on_one(network, virtual, quick) -> None:
    async def scenario() -> None:
        async with await network(["v", "w", "x", "a", "b"], stakes=EQUAL, table=quick) as net:
            net.stands_audit = False  # it signed two

            def open_bucket(commitment: bytes) -> Bucket:
                return (
                    OtherFace(net.bucket("v").root) if commitment == net.location("v") else net.open_bucket(commitment)
                )

            net.start("v", TwoFaced)
            net.start("w", Validator)
            net.start("x", Validator, open_bucket=open_bucket)
            net.start("a", Loads)
            net.start("b", Loads, open_bucket=open_bucket)
            await until(net, deadlines(1, net.run.time).key_block + 1)
            heads = [net.nodes[name].ledger.head for name in "ab"]
            assert len({*heads}) == 2, "each half has its own"
            await until(net, deadlines(4, net.run.time).manifest_block)
            assert len({net.nodes[name].ledger.head for name in "vwxab"}) == 1
            assert {node.ledger.final_window for node in net.nodes.values()} <= {3, 4}
            assert len({node.state.root() for name, node in net.nodes.items() if name in "ab"}) == 1
            assert sorted(net.nodes[name].loads for name in "ab") == [1, 2], "the other half went back and replayed"
            witness, loser = ("w", "a") if net.nodes["a"].loads == 2 else ("x", "b")
            for name in (witness, loser):
                assert list(net.nodes[name].ledger.evidence) == [(1, net.nodes["v"].hotkey, "manifests")]
            key = net.keys.evidence(1, net.nodes["v"].hotkey, "manifests")
            assert await net.bucket(witness).get(key, limit_bytes=10**7)
            status = read_status(net.folder / "nodes" / loser)
            assert status is not None
            assert "two manifests of window 1" in status.evidence[0]
            report = await audit(net.onlooker(), None, 3, False, net.folder / "audit", lambda _: None)
            words = [sentence for sentence in report.sentences() if "two manifests" in sentence]
            assert [sentence.split(":")[0] for sentence in words] == ["window 1"]
            assert report.exit_code == EXIT_DIFFERENCE

    virtual(scenario())


@dataclass
class Border:
    """Lets nobody read buckets of the other side while it is closed."""

    net: Any
    sides: tuple[str, ...]
    is_closed: bool = False

    def opener(self, name: str) -> Callable[[bytes], Bucket]:
        """How `name` opens buckets."""
        side = next(side for side in self.sides if name in side)
        beyond = {self.net.location(other) for other in "".join(self.sides) if other not in side}

        def open_bucket(commitment: bytes) -> Bucket:
            bucket = self.net.open_bucket(commitment)
            return Beyond(bucket, self) if commitment in beyond else bucket  # type: ignore[return-value]

        return open_bucket


@dataclass
class Beyond:
    """A bucket on the other side."""

    inner: Any
    border: Border = field(repr=False)

    def __getattr__(self, name: str) -> Any:
        if self.border.is_closed:
            raise Unavailable("no way to the other side")
        return getattr(self.inner, name)


def test_two_sides_that_cannot_reach_each_other_end_on_the_one_with_most_stake(network, virtual, quick) -> None:
    quick["checkpoints"] |= {"every_windows": 2}

    async def scenario() -> None:
        async with await network(["v", "w", "x", "a", "b"], stakes=(40.0, 30.0, 30.0), table=quick) as net:
            border = Border(net, ("va", "wxb"))
            for name in "vwx":
                net.start(name, Validator, open_bucket=border.opener(name))
            for name in "ab":
                net.start(name, Loads, open_bucket=border.opener(name))
            time = net.run.time
            await until(net, deadlines(0, time).manifest_block + 4)
            border.is_closed = True
            await until(net, deadlines(4, time).manifest_block + 4)
            ours, theirs = ({net.nodes[name].ledger.head for name in side} for side in border.sides)
            assert len(ours) == len(theirs) == 1
            assert ours != theirs
            assert net.nodes["a"].ledger.final_window <= 1 < 3 <= net.nodes["b"].ledger.final_window
            border.is_closed = False
            await until(net, deadlines(7, time).manifest_block + 4)
            assert len({net.nodes[name].ledger.head for name in "vwxab"}) == 1
            assert [node.ledger.final_window for node in net.nodes.values()] == [7] * 5
            assert (net.nodes["a"].loads, net.nodes["b"].loads) == (2, 1)
            assert net.nodes["a"].state.root() == net.nodes["b"].state.root()
            assert (await net.manifest(4, "v")).digest() in theirs, "its bucket tells the way of all"
            report = await audit(net.onlooker(), None, 7, False, net.folder / "audit", lambda _: None)
            assert report.exit_code == 0
            assert not any("branch" in gap.words for gap in report.gaps), "nobody holds what was left"

    virtual(scenario())


def test_an_audit_goes_the_way_of_the_votes_past_what_a_dead_leader_still_holds(network, virtual, quick) -> None:
    async def scenario() -> None:
        async with await network(["v", "w", "x", "a"], stakes=EQUAL, table=quick) as net:
            border = Border(net, ("v", "wxa"))
            for name in "vwx":
                net.start(name, Validator, open_bucket=border.opener(name))
            net.start("a", open_bucket=border.opener("a"))
            await until(net, deadlines(0, net.run.time).manifest_block + 4)
            border.is_closed = True
            await until(net, deadlines(2, net.run.time).manifest_block + 4)
            await net.stop("v")
            await until(net, deadlines(4, net.run.time).manifest_block + 4)
            assert await net.manifest(1, "v") != await net.manifest(1, "w")
            report = await audit(net.onlooker(), None, 4, False, net.folder / "audit", lambda _: None)
            assert report.exit_code == 0
            assert any("a branch that was left" in gap.words for gap in report.gaps)
            assert [window.root_checked for window in report.windows] == [True] * 5

    virtual(scenario())


def votes_of(net: Any, name: str, ballot: Ballot) -> list[Step]:
    """What a validator signed in a ballot, as another one knows it."""
    hotkey = net.nodes[name].hotkey
    return [vote.step for vote in net.nodes["v"].ledger.votes if (vote.signer, vote.ballot) == (hotkey, ballot)]


def test_a_validator_that_loses_its_pledge_sits_out_the_ballot_under_way(network, virtual, quick) -> None:
    async def scenario() -> None:
        async with await network(["v", "w", "a"], stakes=(100.0, 50.0), table=quick) as net:
            for name in "vw":
                net.start(name, Validator)
            net.start("a")
            await until(net, due_block(Ballot(1, 0), Phase.LOCK, net.run.time))
            await net.stop("w")
            (net.folder / "nodes" / "w" / "pledge.json").unlink()
            await until(net, due_block(Ballot(1, 0), Phase.NOMINATE, net.run.time))
            net.start("w", Validator)
            await until(net, due_block(Ballot(1, 0), Phase.CONFIRM, net.run.time) + 1)
            assert votes_of(net, "v", Ballot(1, 0)) != []
            assert votes_of(net, "w", Ballot(1, 0)) == []
            await until(net, due_block(Ballot(2, 0), Phase.CONFIRM, net.run.time) + 1)
            assert Step.CONFIRM in votes_of(net, "w", Ballot(2, 0))

    virtual(scenario())


def test_who_is_shown_two_final_manifests_that_exclude_each_other_stops_and_names_both(network, virtual, quick) -> None:
    async def scenario() -> None:
        async with await network(["v", "a"], table=quick) as net:
            net.start("v", Validator)
            net.start("a")
            await until(net, due_block(Ballot(1, 0), Phase.CONFIRM, net.run.time) + 1)
            assert net.nodes["a"].ledger.final_window == 1
            await net.stop("v")
            key, real = net.keypairs["v"], await net.manifest(1)
            rival = real.model_copy(update={"contributions": (), "signature": ""}).signed(key)
            fields = {"run_digest": net.run.digest(), "window": 1, "round": 1, "step": Step.CONFIRM, "head_window": 1}
            vote = Attestation(signer=key.ss58_address, head=rival.digest(), **fields).signed(key)
            await net.bucket("v").put(net.keys.manifest_of(1, rival.digest()), rival.canonical())
            ballots = Ballots(run_digest=net.run.digest(), votes=(vote,))
            await net.bucket("v").put(net.keys.ballots(), ballots.canonical())
            with pytest.raises(ContradictionError) as stopped:
                await net.blocks(12)
            assert real.digest() in str(stopped.value)
            assert rival.digest() in str(stopped.value)

    virtual(scenario())
