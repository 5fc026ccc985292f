"""Who votes in a window, as a node learns it from a chain that forgets."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from neurons.electorates import Electorates
from protocol.chain.port import Block, Neuron
from protocol.errors import Pruned
from protocol.run import Run, preset_table, run_from_table


@pytest.fixture
def run() -> Run:
    table = preset_table("demo")
    table["genesis_root"] = table["dataset"]["index_digest"] = "00" * 32
    return run_from_table(table)


class Chain:
    """A chain at block `number`; `stakes` holds the stake of its only validator from a block on. It forgets blocks
    below `oldest`."""

    def __init__(self, number: int, stakes: dict[int, float]) -> None:
        self.number, self.stakes, self.oldest = number, stakes, 0
        self.asked = 0

    async def head(self) -> Block:
        return Block(self.number, bytes(32), 0.0)

    async def neurons_at(self, number: int) -> tuple[Neuron, ...]:
        self.asked += 1
        if number < self.oldest:
            raise Pruned("too old")
        stake = next((stake for block, stake in sorted(self.stakes.items(), reverse=True) if block <= number), 0.0)
        return (Neuron(0, "v", "cold", stake, stake > 0, 0.0, 0.0, 0.0, 0, 0),)

    async def neurons(self) -> tuple[Neuron, ...]:
        return await self.neurons_at(self.number)


def stake(found: Any) -> float:
    return sum(rao for _, rao in found.members) / 10**9


def test_a_window_has_the_validators_of_its_first_block_and_they_are_asked_for_once(run: Run) -> None:
    length = run.time.window_blocks
    chain = Chain(3 * length, {0: 1.0, length + 1: 2.0, 3 * length: 3.0})
    known = Electorates(run, chain, print)
    assert [stake(asyncio.run(known.of(window))) for window in (1, 2, 1)] == [1.0, 2.0, 1.0]
    assert chain.asked == 2
    asyncio.run(known.of(3))
    asyncio.run(known.of(3))
    assert chain.asked == 4, "in its first block it may still change"


def test_a_window_without_validators_has_those_of_the_next_that_has_any(run: Run) -> None:
    length = run.time.window_blocks
    known = Electorates(run, Chain(5 * length + 1, {2 * length + 1: 2.0}), print)
    assert stake(asyncio.run(known.of(0))) == 2.0
    assert asyncio.run(Electorates(run, Chain(length + 1, {}), print).of(0)).members == ()


def test_of_a_block_that_the_chain_has_forgotten_the_closest_that_is_known_is_taken_and_said(run: Run) -> None:
    length, told = run.time.window_blocks, []
    chain = Chain(6 * length + 1, {0: 1.0, 3 * length: 3.0, 6 * length: 6.0})
    known = Electorates(run, chain, told.append)
    asyncio.run(known.of(4))
    chain.oldest = 5 * length
    assert stake(asyncio.run(known.of(2))) == 3.0
    assert "of window 4" in told[0]
    assert stake(asyncio.run(Electorates(run, chain, told.append).of(2))) == 6.0
    assert "now" in told[1]
