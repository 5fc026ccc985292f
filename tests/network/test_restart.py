"""A validator that ends in the middle of a window: what the next process of it makes of that window."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from neurons.adversaries.timing import NoReveal
from neurons.collecting import Round
from neurons.miner import Miner
from neurons.validator import Validator
from protocol.errors import Reason
from protocol.gauntlet.receipts import Receipts
from protocol.gauntlet.scorebook import Scorebook
from protocol.ledger.manifest import Manifest
from protocol.sparseloco.payload import HEADER_BYTES
from protocol.window import Window, deadlines

DIES_IN = 2
WINDOWS = 4


class Mortal(Validator):
    """Its process ends in window `DIES_IN`, after the step of this name."""

    last_step = ""
    dead = False

    async def snapshot(self, window: Window) -> Round:
        found = await super().snapshot(window)
        await self._live_on("snapshot", window.number)
        return found

    async def collect(self, window: Window, found: Round) -> None:
        await super().collect(window, found)
        await self._live_on("collect", window.number)

    async def agree(self, window: Window, found: Round) -> Manifest:
        manifest = await super().agree(window, found)
        await self._live_on("agree", window.number)
        return manifest

    async def _look_for_late_seals(self, window: Window, found: Round) -> None:
        await super()._look_for_late_seals(window, found)
        await self._live_on("judge", window.number)

    async def publish(self, window: Window, *found: Any) -> None:
        await super().publish(window, *found)
        await self._live_on("publish", window.number)

    async def pay(self, number: int, book: Scorebook) -> None:
        await super().pay(number, book)
        await self._live_on("pay", number)

    async def _live_on(self, step: str, number: int) -> None:
        if (step, number) == (self.last_step, DIES_IN):
            self.dead = True
            await asyncio.sleep(1e9)


class Recycler(Miner):
    """Works in every other window, and in between sends what it sent the last time with all signs of the first record
    turned: other bytes at the same positions."""

    parity = 0
    last: bytes | None = None

    async def contribute(self, window: Window) -> bytes | None:
        payload = await super().contribute(window)
        assert payload is not None
        if self.last is None or window.number % 2 != self.parity:
            self.last = payload[HEADER_BYTES:]
            return payload
        signs = slice(64, 72)
        turned = bytes(byte ^ 0xFF for byte in self.last[signs])
        return payload[:HEADER_BYTES] + self.last[: signs.start] + turned + self.last[signs.stop :]


async def play(net: Any, last_step: str) -> tuple[list[str], list[int]]:
    """Digest of the scorebook after each window, and the blocks in which weights were set, of a network whose validator
    ends after this step and is started again a block later."""
    mortal = net.start("v", Mortal)
    mortal.last_step = last_step
    for name in "ab":
        net.start(name)
    net.start("silent", NoReveal)
    for parity, name in enumerate(("even", "odd")):
        net.start(name, Recycler).parity = parity
    paid = set()
    target = WINDOWS * net.run.time.window_blocks + 8
    while (await net.chain.head()).number < target:
        await net.blocks(1)
        paid |= {n.last_update // net.run.time.window_blocks for n in await net.chain.neurons() if n.uid == 0}
        if mortal.dead:
            mortal.dead = False
            await net.stop("v")
            net.start("v", Validator)
    receipts = [await net.receipts(window) for window in range(WINDOWS)]
    assert {r.of(3).reason for r in receipts} == {Reason.NO_REVEAL}
    overlaps = [[r.of(uid).reason is Reason.OVERLAP for uid in (4, 5)] for r in receipts]
    assert overlaps == [[False, False], [False, True], [True, False], [False, True]], "the last window is not forgotten"
    return [r.scorebook_digest for r in receipts], sorted(paid)


@pytest.fixture
def plain(quick: dict[str, Any]) -> dict[str, Any]:
    """Constants with which somebody is paid from the first window on, whatever chance says."""
    quick["gauntlet"] |= {"unique_work_errors": 0.0}
    return quick


@pytest.mark.parametrize("last_step", ["snapshot", "collect", "agree", "judge", "publish", "pay"])
def test_a_restart_in_the_middle_of_a_window_changes_no_score_and_no_pay(
    network, virtual, plain, last_step: str
) -> None:
    async def scenario(step: str) -> tuple[list[str], list[int]]:
        async with await network(["v", "a", "b", "silent", "even", "odd"], table=dict(plain)) as net:
            return await play(net, step)

    if not _UNDISTURBED:
        _UNDISTURBED.append(virtual(scenario("never")))
    assert virtual(scenario(last_step)) == _UNDISTURBED[0]


_UNDISTURBED: list[Any] = []
"""What comes of the same network when nothing ends, played once."""


async def restart_too_late(net: Any, window: int) -> None:
    """End the first validator, and start it again when the keys of `window` are out."""
    await net.stop("v")
    while (await net.chain.head()).number < deadlines(window, net.run.time).key_block:
        await net.blocks(1)
    net.start("v", Validator)


async def judged(net: Any, window: int) -> Receipts:
    """The first validator's receipts of `window`, when they are there."""
    while not await net.is_judged(window):
        await net.blocks(1)
    return await net.receipts(window)


def test_who_missed_the_snapshot_judges_nobody_and_costs_nobody_anything(network, virtual, quick) -> None:
    async def scenario() -> None:
        async with await network(["v", "a", "b"], table=quick) as net:
            net.start("v", Validator)
            for name in "ab":
                net.start(name)
            await net.windows(2)
            before = net.nodes["v"].memory.book
            await restart_too_late(net, 2)
            assert (await judged(net, 2)).receipts == ()
            assert net.nodes["v"].memory.book.peers == before.peers
            assert (await net.manifest(2)).contributions == ()
            assert [(await judged(net, 4)).of(uid).reason for uid in (1, 2)] == [None, None]

    virtual(scenario())


def test_a_leader_that_saw_nothing_lets_the_next_one_lead(network, virtual, quick) -> None:
    async def scenario() -> None:
        async with await network(["v", "w", "a", "b"], stakes=(1000.0, 500.0), table=quick) as net:
            for name in "vw":
                net.start(name, Validator)
            for name in "ab":
                net.start(name)
            await net.windows(2)
            await restart_too_late(net, 2)
            await judged(net, 2)
            manifest = await net.manifest(2)
            assert manifest.signer == net.nodes["w"].hotkey
            assert [c.uid for c in manifest.contributions] == [2, 3]
            assert manifest == await net.manifest(2, "w")

    virtual(scenario())


def test_a_leader_that_saw_nothing_leads_if_nobody_else_does(network, virtual, quick) -> None:
    async def scenario() -> None:
        async with await network(["v", "w", "a"], stakes=(1000.0, 500.0), table=quick) as net:
            net.start("v", Validator)  # the other validator never runs
            net.start("a")
            await net.windows(1)
            await restart_too_late(net, 1)
            await judged(net, 4)
            counts = [len((await net.manifest(window)).contributions) for window in range(5)]
            assert counts[0] == counts[-1] == 1
            assert counts[1] == 0

    virtual(scenario())
