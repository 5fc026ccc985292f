"""Rules that look as if they would do, each one thought short of the real one. The search must break every one."""

from __future__ import annotations

from dataclasses import dataclass, replace

from protocol.ledger.attestation import Step, Vote
from protocol.ledger.ballot import Phase, due_at, due_block
from protocol.ledger.electorate import Electorate
from protocol.ledger.finality import Stance
from protocol.ledger.forkchoice import Quorum, View
from tests.model.search import TIME, Rule, Votes


def without(view: View, *votes: Vote) -> View:
    return replace(view, votes=view.votes - {*votes})


def nominations(view: View, leader: str, block: int) -> list[Vote]:
    """What the leader of the ballot in `block` nominated, by head."""
    due = due_at(block, TIME)
    assert due is not None
    return sorted(v for v in view.votes if (v.ballot, v.step, v.signer) == (due[0], Step.ATTEST, leader))


@dataclass(frozen=True, slots=True)
class Half(Electorate):
    """A quorum may be exactly a half."""

    def is_quorum(self, hotkeys: object) -> bool:
        return 2 * self.stake_of(set(hotkeys)) >= sum(stake for _, stake in self.members)  # type: ignore[call-overload]


class HalfIsEnough(Rule):
    def electorate(self, members: tuple[tuple[str, int], ...]) -> Electorate:
        return Half(members)


@dataclass(frozen=True, slots=True)
class Third(Electorate):
    """A quorum may be any third: what a plurality of the stake that was seen comes to."""

    def is_quorum(self, hotkeys: object) -> bool:
        return 3 * self.stake_of(set(hotkeys)) >= sum(stake for _, stake in self.members)  # type: ignore[call-overload]


class Plurality(Rule):
    """No quorum: what has most of the stake that was heard of may win with a third of all."""

    def electorate(self, members: tuple[tuple[str, int], ...]) -> Electorate:
        return Third(members)


class AttestedIsFinal(Rule):
    """One round: more than half of the stake has attested it, so it is final (the rule that §12 of the design had)."""

    final_step = Step.ATTEST


def _late(
    rule: Rule, me: str, leader: str, block: int, view: View, stance: Stance, *, again: bool
) -> tuple[Stance, Votes]:
    """Attest in the block of the confirmations a nomination that was not attested in time, blind to all others."""
    due = due_at(block, TIME)
    attested = stance.attested.head if stance.attested and due and stance.attested.ballot == due[0] else None
    if due is not None and due[1] is Phase.CONFIRM and (again or attested is None):
        seen = nominations(view, leader, block)
        for one in (v for v in seen if v.head != attested):
            rest = without(view, *(other for other in seen if other != one))
            before = due_block(due[0], Phase.ATTEST, TIME)
            after, signed = Rule.act(rule, me, leader, before, rest, replace(stance, attested=None))
            if signed:
                return after, signed
    return Rule.act(rule, me, leader, block, view, stance)


class TwoAttestations(Rule):
    """Attests a nomination that it comes to see while the others confirm, as if there was none before."""

    def act(self, me: str, leader: str, block: int, view: View, stance: Stance) -> tuple[Stance, Votes]:
        return _late(self, me, leader, block, view, stance, again=True)


class BlindToTwins(Rule):
    """Confirms a quorum though it has seen another nomination."""

    def act(self, me: str, leader: str, block: int, view: View, stance: Stance) -> tuple[Stance, Votes]:
        due, seen = due_at(block, TIME), nominations(view, leader, block)
        if due is None or due[1] is not Phase.CONFIRM:
            return super().act(me, leader, block, view, stance)
        for one in seen:
            rest = without(view, *(other for other in seen if other != one))
            after, signed = super().act(me, leader, block, rest, stance)
            if signed:
                return after, signed
        return stance, frozenset()


class NoLocks(Rule):
    """Attests what it likes in the next ballot."""

    def act(self, me: str, leader: str, block: int, view: View, stance: Stance) -> tuple[Stance, Votes]:
        return super().act(me, leader, block, view, replace(stance, lock=None))


class NoRelay(Rule):
    """Publishes nothing but its own votes."""

    def relay(self, view: View) -> Votes:
        return frozenset()


class LateAttestation(Rule):
    """Attests, when the others confirm, what it did not attest in time."""

    def act(self, me: str, leader: str, block: int, view: View, stance: Stance) -> tuple[Stance, Votes]:
        return _late(self, me, leader, block, view, stance, again=False)


class SleepWalker(Rule):
    """Goes on in the middle of a ballot whose locks it slept through."""

    def act(self, me: str, leader: str, block: int, view: View, stance: Stance) -> tuple[Stance, Votes]:
        due = due_at(block, TIME)
        assert due is not None
        return super().act(me, leader, block, view, replace(stance, awake=due[0]))


class Forgetful(Rule):
    """Loses its lock over a restart."""

    def act(self, me: str, leader: str, block: int, view: View, stance: Stance) -> tuple[Stance, Votes]:
        due = due_at(block, TIME)
        kept = replace(stance, lock=None) if due is not None and due[1] is Phase.LOCK else stance
        return super().act(me, leader, block, view, kept)


class LocksOnlyWhatItConfirms(Rule):
    """Takes no lock from a quorum that others saw."""

    def act(self, me: str, leader: str, block: int, view: View, stance: Stance) -> tuple[Stance, Votes]:
        after, signed = super().act(me, leader, block, view, stance)
        own: Quorum | None = after.confirmed if after.confirmed is not None else stance.lock
        return replace(after, lock=own), signed
