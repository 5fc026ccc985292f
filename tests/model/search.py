"""An exhaustive search for ways to break fail-over, attestations and finality (protocol §12).

A few honest validators decide with the real functions of `protocol/ledger`; everything else is the adversary's: which
manifests there are, who leads a ballot, what faulty validators sign and to whom they show it, who sleeps through a
step, and, in a `late` network, which buckets each validator gets to read. `search` visits every state that it can bring
about.

What keeps that small, and loses nothing:

- Faulty validators act as one. What they sign can only help to make a quorum or be a nomination, so they show one
  honest validator all their signatures for a head or none, or the leader's alone; and only when it can change what that
  one does: a nomination while nominations count, the rest if with what honest validators signed it makes a quorum.
- An honest leader may have missed any manifests but those that quorums it has seen are for, so it may nominate whatever
  they leave to choose from. Everybody has a manifest when it is nominated; not to have it is to sleep.
- Of signatures of a ballot that is over only quorums are kept, and what could still become one. The rest could only
  shift weights in the choice of a head, and all its outcomes are there already.
- In a late network a validator remembers what it is bound to and signed in this ballot, and of the rest sees what the
  adversary shows it at that moment. To remember more would only leave the adversary less to choose.

What it looks for after each step: two certificates (signatures of honest validators, and all that faulty ones could
add) that make rivals final, so two honest nodes of any kind could be shown them; and, in a network that is not late, a
ballot with an honest leader in which no honest validator slept and after which what it nominated is not final.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import NamedTuple

from protocol.ledger import finality, forkchoice
from protocol.ledger.attestation import Step, Vote
from protocol.ledger.ballot import Ballot, Phase, due_block, rounds
from protocol.ledger.electorate import Electorate
from protocol.ledger.finality import Stance
from protocol.ledger.forkchoice import NOTHING_FINAL, Link, View
from protocol.ledger.manifest import FIRST_PREVIOUS
from protocol.run import Time

Votes = frozenset[Vote]
TIME = Time(window_blocks=8, seal_blocks=1, reveal_blocks=3, manifest_blocks=3, failover_blocks=1)


def fork(windows: int, *, width: int = 2) -> dict[str, Link]:
    """`width` rival chains of manifests over this many windows: a0 a1 …, b0 b1 …"""
    return {
        f"{name}{window}": Link(window, f"{name}{window - 1}" if window else FIRST_PREVIOUS, rank)
        for rank, name in enumerate("abcd"[:width])
        for window in range(windows)
    }


@dataclass(frozen=True)
class Network:
    """What is searched. Stakes by name; a validator that is not in a window's `moved` electorate has its usual stake.
    `late` lets reads fail; `sleepy` lets honest validators miss steps."""

    honest: Mapping[str, int]
    faulty: Mapping[str, int]
    ballots: int
    tree: Mapping[str, Link] = field(default_factory=lambda: fork(1))
    moved: Mapping[int, Mapping[str, int]] = field(default_factory=dict)
    leaders: tuple[str, ...] | None = None
    """Who leads each ballot; None: anyone, in any order."""
    late: bool = False
    sleepy: bool = False
    strong: bool = False
    """Only certificates count that must have more than a half of the stake without the faulty."""

    @cached_property
    def stakes(self) -> dict[str, int]:
        return {**self.honest, **self.faulty}

    def members(self, window: int) -> tuple[tuple[str, int], ...]:
        stakes = {**self.stakes, **self.moved.get(window, {})}
        return tuple(sorted(stakes.items(), key=lambda item: (-item[1], item[0])))

    @cached_property
    def schedule(self) -> list[Ballot]:
        span, count = rounds(TIME)
        every = (Ballot(window, number) for window in itertools.count(step=span) for number in range(count))
        return list(itertools.islice(every, self.ballots))


class Rule:
    """The rule under test: the real one. Weaker ones override what they get wrong."""

    final_step = Step.CONFIRM

    def electorate(self, members: tuple[tuple[str, int], ...]) -> Electorate:
        return Electorate(members)

    def act(self, me: str, leader: str, block: int, view: View, stance: Stance) -> tuple[Stance, Votes]:
        stance, vote = finality.act(me, leader, block, TIME, view, stance)
        return stance, frozenset({vote} if vote else ())

    def relay(self, view: View) -> Votes:
        return forkchoice.relay(view)


class State(NamedTuple):
    """Between two steps. `place` counts steps; what each honest validator has read is a set of bits, one a signature,
    and what it is bound to a number; the `Search` knows which. `good` says that the ballot has an honest leader
    with something to nominate and nobody has slept in it, `nominee` what that leader nominated."""

    place: int
    leader: str
    seen: tuple[int, ...]
    stances: tuple[int, ...]
    good: bool
    nominee: str | None


class Move(NamedTuple):
    """One honest validator after a step: what it has read, what it is bound to, what others read in its bucket, and
    what it signed; `good` unless it slept, or leads and knows of nothing that is not final."""

    seen: int
    stance: int
    bucket: int
    signed: int
    good: bool


@dataclass
class Result:
    """How many states there are and how many steps lead to them, and the way to the first bad one, if any."""

    states: int = 1
    steps: int = 0
    broken: str | None = None
    trace: list[str] = field(default_factory=list)


class Search:
    """One search. `run` may be called once."""

    def __init__(self, network: Network, rule: Rule) -> None:
        self.network, self.rule = network, rule
        self.names = tuple(network.honest)
        windows = {ballot.window for ballot in network.schedule}
        self.electorates = {w: rule.electorate(network.members(w)) for w in windows}
        self.stances = [Stance()]
        self.stance_ids = {Stance(): 0}
        places = [(b, step, head) for b in network.schedule for step in Step for head in self.heads(b)]
        self.universe = [Vote(b, step, who, head) for b, step, head in places for who in network.stakes]
        self.bits = {vote: 1 << place for place, vote in enumerate(self.universe)}
        self.honest_bits = self.pack(v for v in self.universe if v.signer in network.honest)
        self.own_bits = [self.pack(v for v in self.universe if v.signer == name) for name in self.names]
        self.final_bits = self.pack(v for v in self.universe if v.step is rule.final_step)
        self.ballot_bits = {b: self.pack(v for v in self.universe if v.ballot == b) for b in network.schedule}
        self.place_bits = {
            (b, step, head): self.pack(Vote(b, step, who, head) for who in network.stakes) for b, step, head in places
        }
        self.unpack = cache(self._unpack)
        self.decide = cache(self._decide)
        self.may_idle = cache(self._may_idle)
        self.bucket = cache(self._bucket)
        self.wins = cache(self._wins)
        self.kept = cache(self._kept)
        self.settled = cache(self._settled)
        self.final = cache(self._final)
        self.rounded = cache(self._rounded)
        self.whole = cache(self._whole)
        self.almost = cache(self._almost)
        self.is_quorum = cache(self._is_quorum)
        self.certified = cache(self._certified)
        self.shows = cache(self._shows)
        self.manifests = cache(self._manifests)

    def run(self, limit: int) -> Result:
        """Breadth first, so that a counterexample is a shortest one."""
        n = len(self.names)
        start = State(0, "", (0,) * n, (0,) * n, True, None)
        layers: list[dict[State, State | None]] = [{start: None}]
        result = Result()
        for _ in range(len(Phase) * self.network.ballots):
            following: dict[State, State | None] = {}
            for state in layers[-1]:
                for successor in self.successors(state):
                    result.steps += 1
                    if successor in following:
                        continue
                    following[successor] = state
                    result.states += 1
                    result.broken = self.judge(successor)
                    if result.broken:
                        result.trace = self.tell([*layers, following], successor)
                        return result
                    if result.states > limit:
                        raise RuntimeError(f"more than {limit} states")
            layers.append({self.next_ballot(state): before for state, before in following.items()})
        return result

    # --- one step -----------------------------------------------------------------------------------------------

    def successors(self, state: State) -> Iterator[State]:
        number, phase = divmod(state.place, len(Phase))
        ballot = self.network.schedule[number]
        for leader in self.leaders(number) if phase == Phase.LOCK else (state.leader,):
            good = leader in self.names if phase == Phase.LOCK else state.good
            moves = [self.moves(state, i, ballot, Phase(phase), leader) for i in range(len(self.names))]
            for chosen in itertools.product(*moves):
                nominee = state.nominee
                if phase == Phase.NOMINATE:
                    nominee = next((v.head for move in chosen for v in self.unpack(move.signed)), None)
                seen = [move.seen for move in chosen]
                if not self.network.late:  # what lies in a bucket now is read before the next step
                    published = 0
                    for move in chosen:
                        published |= move.bucket
                    seen = [votes | published for votes in seen]
                stances = tuple(move.stance for move in chosen)
                good_now = good and all(move.good for move in chosen)
                yield self.slim(State(state.place + 1, leader, tuple(seen), stances, good_now, nominee))

    def leaders(self, number: int) -> tuple[str, ...]:
        leaders = self.network.leaders
        # All faulty validators are one, so one of them leading is as bad as another.
        return leaders[number : number + 1] if leaders else (*self.names, *list(self.network.faulty)[:1])

    def moves(self, state: State, i: int, ballot: Ballot, phase: Phase, leader: str) -> set[Move]:
        """All that may become of honest validator i in this step."""
        me, before, stance = self.names[i], state.seen[i], state.stances[i]
        if phase is Phase.NOMINATE and me != leader:  # what it could read now it can read at the next step
            return {Move(before, stance, 0, 0, good=True)}
        found = {Move(before, stance, 0, 0, good=False)} if self.network.sleepy else set()
        read = before & self.ballot_bits[ballot] if self.network.late else before
        for shown in self.shows(self.signed(state), read, ballot, phase, leader):
            seen = read | shown
            for known in self.manifests(seen, ballot, phase):
                after, votes = self.decide(me, leader, ballot, phase, seen, known, stance)
                kept = before if self.network.late else seen
                good = bool(votes) or phase is not Phase.NOMINATE or not self.may_idle(seen, known, ballot)
                found.add(Move(kept | votes, after, self.bucket(i, seen | votes), votes, good))
        return found

    def _shows(self, signed: int, seen: int, ballot: Ballot, phase: Phase, leader: str) -> tuple[int, ...]:
        """Every choice of signatures that may be shown now to one validator that has seen these: of faulty ones, and in
        a network that is late of all."""
        bundles = []
        for old, head in ((b, head) for b in self.network.schedule if b <= ballot for head in self.heads(b)):
            if old == ballot and phase >= Phase.ATTEST:
                bundles.append(self.showable(signed, old, Step.ATTEST, head) & self.leader_bits(leader))
            counts = phase is Phase.CONFIRM if old == ballot else phase is not Phase.CONFIRM
            if counts and self.could_win(signed, old, Step.ATTEST, head):
                bundles.append(self.showable(signed, old, Step.ATTEST, head))
            decides = old < ballot and phase in (Phase.NOMINATE, Phase.ATTEST)
            if decides and self.could_win(signed, old, Step.CONFIRM, head):
                bundles.append(self.showable(signed, old, Step.CONFIRM, head))
        choices = {0}
        for bundle in bundles:
            if bundle & ~seen:
                choices |= {choice | bundle for choice in choices}
        return tuple(choices)

    def _manifests(self, seen: int, ballot: Ballot, phase: Phase) -> tuple[frozenset[str], ...]:
        """The sets of manifests that a validator may have now. Only a leader's choice depends on what it lacks."""
        full = frozenset(self.network.tree)
        if phase is not Phase.NOMINATE:
            return (full,)
        view = self.view(self.unpack(seen))
        quorums = (quorum for step in Step for quorum in forkchoice.quorums(view, step))
        named = frozenset(itertools.chain.from_iterable(self.path(quorum.head) for quorum in quorums))
        return tuple({named | self.path(head) for head in self.heads(ballot)} | {full})

    def _may_idle(self, seen: int, known: frozenset[str], ballot: Ballot) -> bool:
        """Whether a leader that has read this has nothing to nominate."""
        view = self.view(self.unpack(seen), known)
        return finality.nomination(view, ballot) == forkchoice.newest_final(view).head

    def _decide(
        self, me: str, leader: str, ballot: Ballot, phase: Phase, seen: int, known: frozenset[str], stance: int
    ) -> tuple[int, int]:
        view, block = self.view(self.unpack(seen), known), due_block(ballot, phase, TIME)
        after, votes = self.rule.act(me, leader, block, view, self.stances[stance])
        return self.number(after), self.pack(votes)

    def _bucket(self, i: int, seen: int) -> int:
        return seen & self.own_bits[i] | self.pack(self.rule.relay(self.view(self.unpack(seen))))

    # --- what is forgotten --------------------------------------------------------------------------------------

    def slim(self, state: State) -> State:
        """The same state without signatures that nothing can depend on any more."""
        number, phase = divmod(state.place, len(Phase))
        kept = self.kept(self.signed(state), self.network.schedule[number] if phase else None)
        return state._replace(seen=tuple(votes & kept for votes in state.seen))

    def _kept(self, signed: int, now: Ballot | None) -> int:
        kept = 0
        for place, bits in self.place_bits.items():
            if place[0] == now or self.could_win(signed, *place):
                kept |= bits
        return kept

    def next_ballot(self, state: State) -> State:
        """Between ballots: what a validator signed or slept through in the last one binds it no more, its lock does.
        Of old signatures only quorums count, so all that make one are as good."""
        if state.place % len(Phase):
            return state
        signed = self.signed(state)
        if self.network.late:
            seen = tuple(self.whole(signed) & own for own in self.own_bits)
        else:
            seen = tuple(self.rounded(votes, signed) for votes in state.seen)
        stances = tuple(self.settled(stance) for stance in state.stances)
        return self.slim(state._replace(leader="", seen=seen, stances=stances, good=True, nominee=None))

    def _rounded(self, seen: int, signed: int) -> int:
        rounded = 0
        for (ballot, step, head), bits in self.place_bits.items():
            if self.is_quorum(seen & bits, ballot.window):
                rounded |= bits
            elif self.could_win(signed, ballot, step, head):
                rounded |= self.pack(Vote(ballot, step, who, head) for who in self.almost(ballot.window))
        return rounded

    def _whole(self, signed: int) -> int:
        """In a late network: everybody's signature where there may be a quorum of attestations."""
        whole = 0
        for (ballot, step, head), bits in self.place_bits.items():
            if self.could_win(signed, ballot, step, head):
                whole |= bits if step is Step.ATTEST else bits & signed
        return whole

    def _almost(self, window: int) -> tuple[str, ...]:
        """The first honest validators that are no quorum without the faulty, but with them."""
        groups = (who for k in range(len(self.names) + 1) for who in itertools.combinations(self.names, k))
        electorate, faulty = self.electorates[window], set(self.network.faulty)
        return next(g for g in groups if g and electorate.is_quorum({*g} | faulty) and not electorate.is_quorum(g))

    def _settled(self, stance: int) -> int:
        return self.number(Stance(lock=self.stances[stance].lock))

    # --- what is promised ---------------------------------------------------------------------------------------

    def judge(self, state: State) -> str | None:
        """Which promise this state breaks."""
        finals = {self.final(votes) for votes in state.seen}
        certified = self.certified(self.signed(state) & self.final_bits)
        final = {head for head, firm in certified.items() if firm} if self.network.strong else {*certified} | finals
        for one, other in itertools.combinations(sorted(final - {FIRST_PREVIOUS}), 2):
            if not self.extends(one, other) and not self.extends(other, one):
                return f"{one} and {other} are both final"
        if state.place % len(Phase) or not state.good or self.network.late:
            return None
        if state.nominee is None or not any(self.extends(head, state.nominee) for head in finals):
            return f"a ballot with an honest leader, who nominated {state.nominee}, makes nothing final"
        return None

    def _final(self, seen: int) -> str:
        """What a validator that has read this takes for final."""
        return forkchoice.newest_final(self.view(self.unpack(seen))).head

    def _certified(self, signed: int) -> dict[str, bool]:
        """Heads that somebody could be shown a certificate of, and whether its honest part alone is a majority."""
        return {
            head: self.is_quorum(signed & bits, ballot.window)
            for (ballot, step, head), bits in self.place_bits.items()
            if step is self.rule.final_step and self.could_win(signed, ballot, step, head)
        }

    def could_win(self, signed: int, ballot: Ballot, step: Step, head: str) -> bool:
        """Whether these signatures of honest validators and all faulty ones together are a quorum."""
        return self.wins(signed & self.place_bits[ballot, step, head], ballot.window)

    def _wins(self, signed: int, window: int) -> bool:
        who = {vote.signer for vote in self.unpack(signed)}
        return bool(who) and self.electorates[window].is_quorum(who | set(self.network.faulty))

    def _is_quorum(self, votes: int, window: int) -> bool:
        return self.electorates[window].is_quorum({vote.signer for vote in self.unpack(votes)})

    # --- helpers ------------------------------------------------------------------------------------------------

    def signed(self, state: State) -> int:
        """All that honest validators have signed."""
        votes = 0
        for seen in state.seen:
            votes |= seen
        return votes & self.honest_bits

    def showable(self, signed: int, ballot: Ballot, step: Step, head: str) -> int:
        """The signatures for this head that the adversary may show or not."""
        bits = self.place_bits[ballot, step, head]
        return bits & ~self.honest_bits | (bits & signed if self.network.late else 0)

    def leader_bits(self, leader: str) -> int:
        return self.pack(vote for vote in self.universe if vote.signer == leader)

    def pack(self, votes: Iterable[Vote]) -> int:
        return sum(self.bits[vote] for vote in votes)

    def _unpack(self, bits: int) -> Votes:
        return frozenset(vote for place, vote in enumerate(self.universe) if bits >> place & 1)

    def number(self, stance: Stance) -> int:
        if stance not in self.stance_ids:
            self.stance_ids[stance] = len(self.stances)
            self.stances.append(stance)
        return self.stance_ids[stance]

    def heads(self, ballot: Ballot) -> list[str]:
        return [head for head, link in self.network.tree.items() if link.window <= ballot.window]

    def path(self, head: str) -> frozenset[str]:
        found = set()
        while head in self.network.tree:
            found.add(head)
            head = self.network.tree[head].previous
        return frozenset(found)

    def extends(self, head: str, ancestor: str) -> bool:
        return ancestor == FIRST_PREVIOUS or ancestor in self.path(head)

    def view(self, votes: Votes, known: frozenset[str] | None = None) -> View:
        tree = self.network.tree
        links = tree if known is None else {head: link for head, link in tree.items() if head in known}
        return View(NOTHING_FINAL, links, votes, self.electorates)

    def tell(self, layers: list[dict[State, State | None]], state: State) -> list[str]:
        """The way to a state, a line a step, with all that each honest validator had read by then."""
        lines: list[str] = []
        for layer in reversed(layers):
            before = layer[state]
            if before is None:
                break
            number, phase = divmod(state.place - 1, len(Phase))
            shown = [f"{n} has {self.show(votes)}" for n, votes in zip(self.names, state.seen, strict=True)]
            leader = state.leader or before.leader
            lines.append(f"ballot {number} led by {leader}, {Phase(phase).name}: {'; '.join(shown)}")
            state = before
        return lines[::-1]

    def show(self, votes: int) -> str:
        names = [
            f"{v.signer}.{v.step}({v.ballot.window}.{v.ballot.round} {v.head})" for v in sorted(self.unpack(votes))
        ]
        return ", ".join(names) or "nothing"


def search(network: Network, rule: Rule | None = None, limit: int = 10**8) -> Result:
    """Every state that can come about in `network` if honest validators follow `rule`, up to the first bad one.
    `RuntimeError` if there are more than `limit`."""
    return Search(network, rule or Rule()).run(limit)
