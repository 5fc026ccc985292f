"""A slot that changes hands: whoever registers in it starts from nothing and is paid nothing for the last holder."""

from __future__ import annotations

from typing import Any

import pytest
from bittensor_core import Keypair

from neurons.validator import Validator
from protocol.window import deadlines
from tests.network.praise import praise

HEIR = "heir"


async def inherit(net: Any) -> None:
    """Register a newcomer on the full subnet, which takes the slot of whoever earns least."""
    net.keypairs[HEIR] = Keypair.create_from_uri(f"//{HEIR}")
    assert await net.chain.register(net.coldkey, net.keypairs[HEIR].ss58_address) == net.nodes["c"].uid


@pytest.mark.parametrize("when", ["while the window goes on", "between the snapshot and the weights"])
def test_who_takes_over_a_slot_is_neither_applied_nor_paid_for_what_its_last_holder_did(
    network, virtual, quick, when: str
) -> None:
    quick["dataset"] |= {"slots": 4}
    quick["gauntlet"] |= {"unique_work_rate": 0.01}  # so few pages tell nothing, and must not undo the praise

    async def scenario() -> None:
        async with await network(["v", "a", "b", "c"], table=quick, immunity_blocks=1) as net:
            net.start("v", Validator)
            for name in "abc":
                net.start(name)
            await net.windows(1)
            praise(net, {"a": 60.0, "b": 50.0, "c": 40.0})
            await net.windows(4)
            uid = net.nodes["c"].uid
            window = net.nodes["v"].state.window
            listed = (await net.manifest(window - 1)).gather
            assert {seat.uid for seat in listed} == {1, 2, 3}
            assert (await net.chain.weights())[0][uid] > 0
            due = deadlines(window, net.run.time)
            block = due.start_block + 5 if when == "while the window goes on" else due.key_block + 1
            while (await net.chain.head()).number < block:
                await net.blocks(1)
            await net.stop("c")
            await inherit(net)
            heir = net.start(HEIR)
            later = range(window, window + 4)
            while not await net.is_judged(later[-1]):
                await net.blocks(1)
                if (await net.chain.weights()).get(0, {}).get(uid, 0.0) > 0:
                    record = net.nodes["v"].memory.book.of(uid, heir.hotkey)
                    assert record.final(net.run) > 0, "nobody is paid for the record of another"
            manifests = [await net.manifest(number) for number in later]
            receipts = [await net.receipts(number) for number in later]
            in_time = when == "while the window goes on"
            assert [r.departed for r in receipts] == ([(uid,), (), (), ()] if in_time else [(), (uid,), (), ()])
            own = [(r, r.of(uid)) for r in receipts if r.of(uid) and r.of(uid).hotkey == heir.hotkey]
            assert {receipt.reason for _, receipt in own} == {None}, "its work is judged"
            first, *_ = (receipt for _, receipt in own)
            assert (first.before.judged, first.before.rating) == (0, 0.0)
            applied = [{c.hotkey for c in m.contributions} for m in manifests]
            assert all(heir.hotkey not in hotkeys for hotkeys in applied[:3]), "it is on no list yet"
            assert all({net.nodes[name].hotkey for name in "ab"} <= hotkeys for hotkeys in applied)
            assert not any(seat.uid == uid and seat.hotkey != heir.hotkey for m in manifests[2:] for seat in m.gather)
            await net.blocks(6)
            assert len(net.roots()) == 1

    virtual(scenario())
