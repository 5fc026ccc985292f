"""Whose word weighs what: the stake of the validators in one window (protocol §12)."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from protocol.assignment import drawing_key
from protocol.chain.port import Neuron
from protocol.ledger.ballot import Ballot
from protocol.ledger.manifest import leader_order
from protocol.run import Run

_RAO = 10**9


@dataclass(frozen=True, slots=True)
class Electorate:
    """Hotkeys and stakes in rao (10⁻⁹ TAO) of the validators in leader order. Whole numbers: a majority must not
    depend on the order in which floats are added."""

    members: tuple[tuple[str, int], ...]

    def stake_of(self, hotkeys: Collection[str]) -> int:
        """Stake of those of `hotkeys` that are members, each counted once, in rao."""
        return sum(stake for hotkey, stake in self.members if hotkey in hotkeys)

    def rank_of(self, hotkey: str) -> int | None:
        """Place in leader order, from 0; None for who is no member."""
        return next((rank for rank, (member, _) in enumerate(self.members) if member == hotkey), None)

    def is_quorum(self, hotkeys: Collection[str]) -> bool:
        """Whether they have more than half of all stake, the absent included. A half is none: two halves can agree on
        different things."""
        return 2 * self.stake_of(hotkeys) > sum(stake for _, stake in self.members)

    def draw(self, key: bytes) -> str:
        """One member, with a probability proportional to its stake, from a key of 32 random bytes; `ValueError` if
        there is none."""
        total = sum(stake for _, stake in self.members)
        point = int.from_bytes(key[:16], "little") * total >> 128
        for hotkey, stake in self.members:
            if point < stake:
                return hotkey
            point -= stake
        raise ValueError("there is no stake to draw from")


def electorate_of(neurons: Sequence[Neuron]) -> Electorate:
    """The validators with a permit and stake among all neurons of a block."""
    members = ((neuron.hotkey, round(neuron.stake * _RAO)) for neuron in leader_order(neurons))
    return Electorate(tuple((hotkey, stake) for hotkey, stake in members if stake > 0))


def ballot_leader(electorate: Electorate, run: Run, judge_hash: bytes, ballot: Ballot) -> str:
    """Who leads a ballot: drawn by stake from the judge hash of its window, so that with an honest majority more than
    every other ballot has an honest leader, however many validators are gone. `ValueError` if there is no stake."""
    return electorate.draw(drawing_key(run, judge_hash, f"ballot {ballot.round}"))
