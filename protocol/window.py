"""Windows: the chain is the only shared clock (protocol §3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from protocol.run import Time

WindowNumber = Annotated[int, Field(ge=0, lt=10**8)]
"""A window in a document. Object keys pad it to eight digits."""


@dataclass(frozen=True, slots=True)
class Window:
    """One window and its deadlines, all in block numbers."""

    number: int
    start_block: int
    """First block; its hash keys the assignment of pages."""
    close_block: int
    """C: first block after the window. Training for this window is over."""
    seal_block: int
    """C + g: validators take their one snapshot of all seals here."""
    key_block: int
    """C + g + 1: keys are published from here on; its hash draws the pages that are scored."""
    reveal_block: int
    """C + r: keys and shards are due."""
    manifest_block: int
    """C + m: the leader's manifest is due."""


def window_of(block: int, time: Time) -> int:
    """Number of the window that holds `block`."""
    return block // time.window_blocks


def deadlines(number: int, time: Time) -> Window:
    """The blocks of window `number`."""
    close = (number + 1) * time.window_blocks
    return Window(
        number=number,
        start_block=number * time.window_blocks,
        close_block=close,
        seal_block=close + time.seal_blocks,
        key_block=close + time.seal_blocks + 1,
        reveal_block=close + time.reveal_blocks,
        manifest_block=close + time.manifest_blocks,
    )


def failover_block(number: int, rank: int, time: Time) -> int:
    """First block at which the validator of this rank (0 = leader) may publish manifest `number`."""
    if rank == 0:
        return deadlines(number, time).key_block
    return deadlines(number, time).manifest_block + rank * time.failover_blocks
