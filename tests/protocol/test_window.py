"""Blocks of a window, worked out by hand."""

from __future__ import annotations

import pytest

from protocol.run import Time
from protocol.window import Window, deadlines, failover_block, window_of

TIME = Time(window_blocks=10, seal_blocks=1, reveal_blocks=4, manifest_blocks=6, failover_blocks=3)


def test_a_window_has_these_blocks() -> None:
    assert deadlines(7, TIME) == Window(
        number=7, start_block=70, close_block=80, seal_block=81, key_block=82, reveal_block=84, manifest_block=86
    )


def test_keys_are_published_one_block_after_the_snapshot_whatever_the_grace() -> None:
    window = deadlines(0, Time(window_blocks=20, seal_blocks=3, reveal_blocks=5, manifest_blocks=9))
    assert (window.seal_block, window.key_block, window.reveal_block) == (23, 24, 25)


@pytest.mark.parametrize(("block", "number"), [(0, 0), (9, 0), (10, 1), (79, 7), (80, 8)])
def test_a_block_belongs_to_one_window(block: int, number: int) -> None:
    assert window_of(block, TIME) == number
    assert deadlines(number, TIME).start_block <= block < deadlines(number, TIME).close_block


def test_the_leader_may_publish_early_and_the_others_after_the_deadline_in_turn() -> None:
    assert [failover_block(7, rank, TIME) for rank in range(4)] == [82, 89, 92, 95]
