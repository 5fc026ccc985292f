"""A validator measures as many peers as its machine manages, and is there in time for the next seals."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from neurons.collecting import Round
from neurons.judge import Judge
from neurons.lab.virtual import VirtualTimeLoop
from neurons.validator import Validator
from protocol.gauntlet.receipts import Receipts
from protocol.gauntlet.selection import UNLISTED_WINDOWS
from protocol.window import Window, deadlines

GRADIENT_SECONDS = 0.9
LOSS_SECONDS = 0.3


class SlowJudge(Judge):
    """Takes its time for every page."""

    loop: VirtualTimeLoop
    factor: float

    def gradient(self, page: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        self.loop.work(self.factor * GRADIENT_SECONDS)
        return super().gradient(page)

    def losses(self, sequences: np.ndarray) -> np.ndarray:
        self.loop.work(self.factor * LOSS_SECONDS)
        return super().losses(sequences)


class SlowValidator(Validator):
    """Judges slowly, all the more slowly the later the window, and notes at which block it turned to each window."""

    turned: dict[int, int]
    slower_by = 0.0

    async def snapshot(self, window: Window) -> Round:
        self.turned = getattr(self, "turned", {})
        self.turned[window.number] = (await self.chain.head()).number
        return await super().snapshot(window)

    def _judge(self) -> Judge:
        judge = SlowJudge(self.model, self.state.theta, self.run, self.parts.dtype)
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualTimeLoop)
        judge.loop, judge.factor = loop, 1 + self.slower_by * self.state.window
        return judge


def with_threads() -> None:
    """While one thread is slow, the others go on."""
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(4))


def on_time(net: Any, validator: SlowValidator) -> bool:
    """Whether it was there before the seals of each window were due."""
    return all(block <= deadlines(w, net.run.time).seal_block for w, block in validator.turned.items())


def measured(receipts: Receipts) -> set[int]:
    return {r.uid for r in receipts.receipts if r.judgement and r.judgement.loss_after is not None}


def test_a_slow_machine_measures_fewer_everyone_in_turn_and_is_never_late(network, virtual, quick) -> None:
    async def scenario() -> None:
        with_threads()
        quick["time"] |= {"window_blocks": 12}
        async with await network(["v", "a", "b", "c", "d"], table=quick) as net:
            validator = net.start("v", SlowValidator)
            for name in "abcd":
                net.start(name)
            await net.windows(9)
            found = [await net.receipts(window) for window in range(9)]
            assert on_time(net, validator)
            everyone = {1, 2, 3, 4}
            assert all({r.uid for r in each.receipts if r.judgement} == everyone for each in found)
            listed = UNLISTED_WINDOWS  # before there is a list the first look takes of the time, too
            assert all(1 <= len(measured(each)) < 4 for each in found[listed:])
            for start in range(listed, 6):
                assert set().union(*(measured(each) for each in found[start : start + 4])) == everyone

    virtual(scenario())


def test_a_machine_that_becomes_too_slow_to_judge_is_still_on_time(network, virtual, quick) -> None:
    async def scenario() -> None:
        with_threads()
        async with await network(["v", "a", "b"], table=quick) as net:
            validator = net.start("v", SlowValidator)
            validator.slower_by = 1.5
            for name in "ab":
                net.start(name)
            await net.windows(5)
            last = await net.receipts(4)
            assert on_time(net, validator)
            assert not any(r.judgement for r in last.receipts)
            assert last.random_pages == ()

    virtual(scenario())


def test_receipts_name_the_random_pages_that_were_used(network, virtual, quick) -> None:
    """More than at first, because the order of four beginners is not settled on two pages."""

    async def scenario() -> None:
        quick["gauntlet"] |= {"random_pages": 2, "random_pages_most": 6}
        async with await network(["v", "a", "b", "c", "d"], table=quick) as net:
            net.start("v", Validator)
            for name in "abcd":
                net.start(name)
            await net.windows(3)
            used = [await net.receipts(window) for window in range(3)]
            for receipts in used:
                pages = {len(r.judgement.places) for r in receipts.receipts if r.judgement}
                assert pages == {len(receipts.random_pages)}
                assert len(receipts.random_pages) in (2, 4, 6)
            assert any(len(receipts.random_pages) > 2 for receipts in used)

    virtual(scenario())
