"""Slots that change hands: nobody inherits a record, a place on a list, or pay."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from bittensor_core import Keypair

from protocol.chain.port import Neuron
from protocol.gauntlet.scorebook import PeerRecord, Scorebook
from protocol.gauntlet.selection import select
from protocol.gauntlet.slots import departed, remaining, seats
from protocol.gauntlet.weights import weights_of
from protocol.ledger.manifest import Seat
from protocol.run import Run
from protocol.window import deadlines

ALICE, BOB, CAROL = (Keypair.create_from_uri(uri).ss58_address for uri in ("//Alice", "//Bob", "//Carol"))

LAST = 6
"""The last window in the book."""


def neuron(uid: int, hotkey: str, registered_at: int = 0) -> Neuron:
    return Neuron(uid, hotkey, hotkey, 0.0, False, 0.0, 0.0, 0.0, 0, registered_at)


@pytest.fixture
def book() -> Scorebook:
    """Alice in slot 1 and Bob in slot 4, both with a good record."""
    peers = tuple(
        PeerRecord(uid=uid, hotkey=hotkey, mu=40.0, sigma=1.0, unique_work=0.5, judged=9, signs=(1, 1))
        for uid, hotkey in ((1, ALICE), (4, BOB))
    )
    return Scorebook(run_digest="00" * 32, window=LAST + 1, peers=peers)


def test_who_is_still_there_has_not_departed(book: Scorebook, run: Run) -> None:
    assert departed(book, [neuron(1, ALICE), neuron(2, CAROL), neuron(4, BOB)], run) == ()


def test_a_slot_with_another_hotkey_or_none_has_departed(book: Scorebook, run: Run) -> None:
    assert departed(book, [neuron(1, CAROL), neuron(4, BOB)], run) == (1,)
    assert departed(book, [neuron(1, ALICE)], run) == (4,)
    assert departed(book, [neuron(4, ALICE), neuron(1, BOB)], run) == (1, 4)


def test_who_left_and_came_back_into_its_old_slot_starts_from_nothing(book: Scorebook, run: Run) -> None:
    snapshot = deadlines(LAST, run.time).seal_block
    assert departed(book, [neuron(1, ALICE, snapshot), neuron(4, BOB, snapshot + 1)], run) == (4,)


def test_a_departed_hotkey_is_neither_listed_nor_paid(book: Scorebook, make_run: Callable[..., Run]) -> None:
    run = make_run(weights__rule="power")
    assert set(weights_of(book, *select(book, run), run)) == {1, 4}
    left = remaining(book, (1,))
    assert [record.hotkey for record in left.peers] == [BOB]
    assert weights_of(left, *select(left, run), run) == {4: 1.0}
    assert seats(left, select(left, run)[0]) == (Seat(uid=4, hotkey=BOB),)
    assert left.of(1, CAROL) == PeerRecord(uid=1, hotkey=CAROL)
