"""What a node makes of the attestations it has read: quorums, what is final, which head to follow (protocol §12).

Everything here is a function of a `View`, so two nodes that have read the same come to the same.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from protocol.ledger.attestation import Step, Vote
from protocol.ledger.ballot import NO_BALLOT, Ballot
from protocol.ledger.electorate import Electorate
from protocol.ledger.manifest import FIRST_PREVIOUS


@dataclass(frozen=True, slots=True, order=True)
class Quorum:
    """More than half of the stake, in one ballot, for `head`: the digest of a manifest, and so all before it."""

    ballot: Ballot
    head: str


NOTHING_FINAL = Quorum(NO_BALLOT, FIRST_PREVIOUS)
"""Where a run begins."""


@dataclass(frozen=True, slots=True)
class Link:
    """A manifest in its chain: its window, the digest of the one before, and the rank of its signer."""

    window: int
    previous: str
    rank: int


@dataclass(frozen=True, slots=True)
class View:
    """What one node knows. `known` are the manifests it has verified, by digest, each with all between it and the final
    one; `votes` are those whose signatures hold, of ballots since the one that made `final` so; `electorates` are by
    the window of the ballot, and a ballot without one counts for nothing."""

    final: Quorum
    known: Mapping[str, Link]
    votes: frozenset[Vote]
    electorates: Mapping[int, Electorate]

    def extends(self, head: str, ancestor: str) -> bool:
        """Whether `ancestor` is `head` or lies before it, as far as this node knows the chain."""
        while head != ancestor:
            if head not in self.known:
                return False
            head = self.known[head].previous
        return True


def quorums(view: View, step: Step) -> list[Quorum]:
    """Every quorum of this step in the view, oldest ballot first. With an honest majority of the stake a ballot has at
    most one for each honest validator."""
    signers: dict[Quorum, set[str]] = defaultdict(set)
    for vote in view.votes:
        if vote.step is step and vote.ballot.window in view.electorates:
            signers[Quorum(vote.ballot, vote.head)].add(vote.signer)
    return sorted(q for q, who in signers.items() if view.electorates[q.ballot.window].is_quorum(who))


def newest_final(view: View) -> Quorum:
    """The newest manifest that a quorum confirms, if this node knows it and it extends what was final; else that."""
    confirmed = quorums(view, Step.CONFIRM)
    return max([view.final, *(q for q in confirmed if q.head in view.known and view.extends(q.head, view.final.head))])


def contradictions(view: View) -> list[tuple[Quorum, Quorum]]:
    """Pairs of quorums that make rivals final. If there is one, half of the stake is faulty, or what an honest
    validator published took longer than f blocks: a node must stop and say so, for no rule says who is right."""
    known = [view.final, *(q for q in quorums(view, Step.CONFIRM) if q.head in view.known)]
    return [
        (a, b)
        for place, a in enumerate(known)
        for b in known[place + 1 :]
        if not view.extends(a.head, b.head) and not view.extends(b.head, a.head)
    ]


def choose(view: View) -> str:
    """The head to follow: from the final manifest on, the newest quorum of attestations decides; from there on, at each
    fork the stake of the newest attestations, then the lower rank of the signer, then the lower digest."""
    final = newest_final(view)
    attested = (q for q in quorums(view, Step.ATTEST) if q.head in view.known and view.extends(q.head, final.head))
    head = max([final, *attested]).head
    weights = _weights(view)
    while children := [digest for digest, link in view.known.items() if link.previous == head]:
        head = min(children, key=lambda digest: (-weights[digest], view.known[digest].rank, digest))
    return head


def relay(view: View) -> frozenset[Vote]:
    """The votes a validator publishes beside its own, so that what one honest validator has seen, all see f blocks
    later: those that make a quorum, and of what else a member signs for one step of one ballot, two at most. They
    prove that it signed twice; more would let it fill everybody's bucket."""
    counted = {(step, q) for step in Step for q in quorums(view, step)}
    kept: set[Vote] = set()
    others: dict[tuple[Ballot, Step, str], int] = defaultdict(int)
    for vote in sorted(view.votes):
        electorate = view.electorates.get(vote.ballot.window)
        if electorate is None or not electorate.stake_of({vote.signer}):
            continue
        if (vote.step, Quorum(vote.ballot, vote.head)) in counted:
            kept.add(vote)
        elif others[vote.ballot, vote.step, vote.signer] < 2:
            others[vote.ballot, vote.step, vote.signer] += 1
            kept.add(vote)
    return frozenset(kept)


def remembered(view: View) -> frozenset[Vote]:
    """The votes that still matter, so that what a node holds and publishes does not grow while nothing becomes final:
    all of the two newest ballots; the newest two quorums of each step and the one that made `final` so; and what each
    validator attested in the last ballot in which it did."""
    counted = [v for v in view.votes if v.ballot >= view.final.ballot]
    recent = set(sorted({vote.ballot for vote in counted})[-2:])
    kept = {(Step.CONFIRM, view.final)} | {(step, q) for step in Step for q in quorums(view, step)[-2:]}
    last: dict[str, Ballot] = defaultdict(lambda: NO_BALLOT)
    for vote in counted:
        if vote.step is Step.ATTEST:
            last[vote.signer] = max(last[vote.signer], vote.ballot)
    return frozenset(
        vote
        for vote in counted
        if vote.ballot in recent
        or (vote.step, Quorum(vote.ballot, vote.head)) in kept
        or (vote.step is Step.ATTEST and vote.ballot == last[vote.signer])
    )


def support(view: View, head: str) -> float:
    """Share of all stake, in [0, 1], whose newest attestations are for `head` or what comes after it; by the newest
    electorate in the view. For the screen: nothing is decided by it."""
    if not view.electorates:
        return 0.0
    total = sum(stake for _, stake in view.electorates[max(view.electorates)].members)
    return min(1.0, _weights(view)[head] / total) if total else 0.0


def _weights(view: View) -> defaultdict[str, int]:
    """Stake behind each known manifest and all after it, in rao: each validator stands for what it attested in the last
    ballot in which it did, and for nothing if it attested two heads there."""
    newest: dict[str, tuple[Ballot, set[str]]] = {}
    for vote in view.votes:
        if vote.step is Step.ATTEST and vote.ballot.window in view.electorates:
            ballot, heads = newest.get(vote.signer, (NO_BALLOT, set()))
            if vote.ballot > ballot:
                newest[vote.signer] = vote.ballot, {vote.head}
            elif vote.ballot == ballot:
                heads.add(vote.head)
    weights: defaultdict[str, int] = defaultdict(int)
    for signer, (ballot, heads) in newest.items():
        if len(heads) == 1:
            for digest in _upwards(view, *heads):
                weights[digest] += view.electorates[ballot.window].stake_of({signer})
    return weights


def _upwards(view: View, head: str) -> Iterator[str]:
    while head in view.known:
        yield head
        head = view.known[head].previous
