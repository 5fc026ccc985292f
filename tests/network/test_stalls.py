"""A chain that stands still, and one that jumps: nobody has to do anything about it."""

from __future__ import annotations

import asyncio

from neurons.lab.virtual import GENESIS_SECONDS
from neurons.validator import Validator


def test_a_chain_that_stands_still_for_hours_is_waited_for(network, virtual, quick) -> None:
    async def scenario() -> None:
        async with await network(["v", "a"], table=quick) as net:
            net.start("v", Validator)
            net.start("a")
            await net.windows(2)
            before = net.nodes["v"].state.window
            await asyncio.sleep(7200)
            assert {node.state.window for node in net.nodes.values()} == {before}
            await net.windows(2)
            await net.blocks(1)
            assert len(net.roots()) == 1
            assert (await net.manifest(before + 1)).contributions

    virtual(scenario())


def test_a_chain_that_jumps_ten_windows_costs_these_and_no_more(network, virtual, quick) -> None:
    async def scenario() -> None:
        async with await network(["v", "w", "a"], stakes=(1000.0, 900.0), table=quick) as net:
            for name in "vw":
                net.start(name, Validator)
            net.start("a")
            await net.windows(2)
            for _ in range(10 * net.run.time.window_blocks):
                net.chain.produce_block(GENESIS_SECONDS + asyncio.get_running_loop().time())
            jumped = net.nodes["v"].state.window + 10
            for _ in range(6 * net.run.time.window_blocks):
                await net.blocks(1)
            assert len(net.roots()) == 1
            windows = net.nodes["v"].state.window
            assert windows > jumped + 2
            applied = [len((await net.manifest(window)).contributions) for window in range(windows)]
            assert applied[:2] == [1, 1]
            assert applied[-1] == 1

    virtual(scenario())
