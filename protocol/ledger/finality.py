"""What an honest validator signs, and when: the rule that makes manifests final (protocol §12).

Two stretches of argument hold it up. *In one ballot*: who attests publishes the nomination it follows, so whoever then
sees a quorum for one head and only one nomination knows that no honest validator attested another. *Across ballots*:
it publishes that quorum f blocks before the next ballot's locks are taken, and a lock lets go only for a quorum that is
as new. tests/model searches for holes in both.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from protocol.ledger.attestation import Step, Vote
from protocol.ledger.ballot import Ballot, Phase, due_at
from protocol.ledger.forkchoice import Quorum, View, choose, newest_final, quorums
from protocol.run import Time


@dataclass(frozen=True, slots=True)
class Stance:
    """What a validator has bound itself to. It must be on disk before the vote that made it so is published.

    `lock` is the newest quorum it must not contradict, `awake` the last ballot whose locks it took, `attested` and
    `confirmed` what it signed last.
    """

    lock: Quorum | None = None
    awake: Ballot | None = None
    attested: Quorum | None = None
    confirmed: Quorum | None = None


def act(hotkey: str, leader: str, block: int, time: Time, view: View, stance: Stance) -> tuple[Stance, Vote | None]:
    """What the validator `hotkey` does in `block`: the stance to keep, and the vote to sign and publish with `relay`,
    if any. `leader` leads the ballot that is under way.

    A step that is not done in its block is not done at all, and who missed the locks sits the ballot out: late honesty
    looks like a lie to those who have gone on.
    """
    due = due_at(block, time)
    if due is None or due[0].window not in view.electorates:
        return stance, None
    ballot, phase = due
    if phase is Phase.LOCK:
        return replace(stance, lock=take_lock(stance.lock, view, ballot), awake=ballot), None
    if stance.awake != ballot or not view.electorates[ballot.window].stake_of({hotkey}):
        return stance, None
    if phase is Phase.CONFIRM:
        head = confirmable(view, ballot, leader, stance)
        if head is None:
            return stance, None
        bound = Quorum(ballot, head)
        return replace(stance, lock=bound, confirmed=bound), Vote(ballot, Step.CONFIRM, hotkey, head)
    if (phase is Phase.NOMINATE) != (hotkey == leader):
        return stance, None
    head = nomination(view, ballot) if hotkey == leader else nominated(view, ballot, leader)
    if head is None or not attestable(head, view, ballot, stance):
        return stance, None
    return replace(stance, attested=Quorum(ballot, head)), Vote(ballot, Step.ATTEST, hotkey, head)


def nomination(view: View, ballot: Ballot) -> str:
    """The head that a leader with this view nominates. A manifest of a later window is too new: it may not be due yet,
    and others may not have it."""
    known = {digest: link for digest, link in view.known.items() if link.window <= ballot.window}
    return choose(replace(view, known=known))


def take_lock(lock: Quorum | None, view: View, ballot: Ballot) -> Quorum | None:
    """The lock for `ballot`: the newest quorum of attestations of any ballot before it, a new one only if it is newer
    than the old lock."""
    seen = [q for q in quorums(view, Step.ATTEST) if q.ballot < ballot and (lock is None or q.ballot > lock.ballot)]
    return max(seen, default=lock)


def nominated(view: View, ballot: Ballot, leader: str) -> str | None:
    """What the leader attests in this ballot; None if nothing is to be seen, or more than one head."""
    heads = {v.head for v in view.votes if (v.ballot, v.step, v.signer) == (ballot, Step.ATTEST, leader)}
    return heads.pop() if len(heads) == 1 else None


def attestable(head: str, view: View, ballot: Ballot, stance: Stance) -> bool:
    """Whether a validator with this stance may attest `head`: once a ballot, and a manifest that it has verified, that
    comes after the final one, and that extends its lock or a quorum at least as new as the lock."""
    if stance.attested is not None and stance.attested.ballot >= ballot:
        return False
    if head not in view.known or view.known[head].window > ballot.window:
        return False
    final = newest_final(view)
    if head == final.head or not view.extends(head, final.head):
        return False
    lock = stance.lock
    if lock is None or lock.ballot <= final.ballot or view.extends(head, lock.head):
        return True
    seen = (q for q in quorums(view, Step.ATTEST) if lock.ballot <= q.ballot < ballot)
    return any(view.extends(head, quorum.head) for quorum in seen)


def confirmable(view: View, ballot: Ballot, leader: str, stance: Stance) -> str | None:
    """The head that may be confirmed: the only one nominated, with a quorum in this ballot, and none that this
    validator attested against."""
    head = nominated(view, ballot, leader)
    if head is None or head not in view.known or Quorum(ballot, head) not in quorums(view, Step.ATTEST):
        return None
    if stance.confirmed is not None and stance.confirmed.ballot >= ballot:
        return None
    attested = stance.attested
    return None if attested is not None and attested.ballot == ballot and attested.head != head else head
