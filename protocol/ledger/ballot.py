"""Ballots: when validators vote on which manifests are final (protocol §12).

A ballot is four steps, f blocks apart, on the chain's clock: f is the time after which every honest node has read, and
acted on, what an honest validator published. Ballots follow each other without overlap: the first of a window when its
manifest is due, the next as soon as the last one is over.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from protocol.run import Time
from protocol.window import deadlines

_STEPS = 4


class Phase(IntEnum):
    """What is due in a ballot, in this order, f blocks apart."""

    LOCK = 0
    """Take the newest quorum that was published as the lock."""
    NOMINATE = 1
    """The ballot's leader attests the head of the chain it follows."""
    ATTEST = 2
    """The others attest what the leader nominated."""
    CONFIRM = 3
    """Who sees a quorum of attestations, and one nomination only, confirms it."""


@dataclass(frozen=True, slots=True, order=True)
class Ballot:
    """The `round`-th ballot after the close of `window`. Ballots are ordered by time."""

    window: int
    round: int


NO_BALLOT = Ballot(-1, 0)
"""Before every ballot: what was final before anybody voted."""


def rounds(time: Time) -> tuple[int, int]:
    """(s, n): after every s-th window there are n ballots. s is 1 unless a window is shorter than a ballot."""
    length = _STEPS * time.failover_blocks
    span = -(-length // time.window_blocks)
    return span, span * time.window_blocks // length


def due_block(ballot: Ballot, phase: Phase, time: Time) -> int:
    """The one block in which `phase` of `ballot` is done. The first nomination of a window is due with its manifest."""
    first = deadlines(ballot.window, time).manifest_block
    return first + (_STEPS * ballot.round + phase - Phase.NOMINATE) * time.failover_blocks


def due_at(block: int, time: Time) -> tuple[Ballot, Phase] | None:
    """What is due in this block: at most one phase of one ballot."""
    span, count = rounds(time)
    start = due_block(Ballot(0, 0), Phase.LOCK, time)
    period, offset = divmod(block - start, span * time.window_blocks)
    steps, rest = divmod(offset, time.failover_blocks)
    number, phase = divmod(steps, _STEPS)
    if period < 0 or rest or number >= count:
        return None
    return Ballot(period * span, number), Phase(phase)


def is_ballot(ballot: Ballot, time: Time) -> bool:
    """Whether there is such a ballot."""
    span, count = rounds(time)
    return ballot.window >= 0 and ballot.window % span == 0 and 0 <= ballot.round < count
