"""Ballots, attestations, fork choice and finality, function by function. tests/model searches what they do together."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from bittensor_core import Keypair
from hypothesis import assume, given
from hypothesis import strategies as st

from protocol.chain.port import Neuron
from protocol.errors import DocumentError, LedgerError
from protocol.ledger.attestation import Attestation, Step, Vote, check_attestation, contradict
from protocol.ledger.ballot import Ballot, Phase, due_at, due_block, is_ballot, rounds
from protocol.ledger.electorate import Electorate, ballot_leader, electorate_of
from protocol.ledger.finality import Stance, act, take_lock
from protocol.ledger.forkchoice import (
    NOTHING_FINAL,
    Link,
    Quorum,
    View,
    choose,
    contradictions,
    newest_final,
    quorums,
    relay,
    remembered,
    support,
)
from protocol.ledger.manifest import FIRST_PREVIOUS
from protocol.run import Run, Time
from protocol.window import deadlines

TIME = Time(window_blocks=20, seal_blocks=1, reveal_blocks=4, manifest_blocks=6, failover_blocks=2)
FIRST, SECOND = Ballot(0, 0), Ballot(0, 1)
ELECTORATE = Electorate((("A", 4), ("B", 3), ("C", 2)))
# a0 ← a1 ← a2, a0 ← c1, and a rival b0.
KNOWN = {
    "a0": Link(0, FIRST_PREVIOUS, 0),
    "a1": Link(1, "a0", 0),
    "a2": Link(2, "a1", 0),
    "c1": Link(1, "a0", 2),
    "b0": Link(0, FIRST_PREVIOUS, 1),
}


def attest(ballot: Ballot, head: str, *signers: str, step: Step = Step.ATTEST) -> frozenset[Vote]:
    return frozenset(Vote(ballot, step, signer, head) for signer in signers)


def confirm(ballot: Ballot, head: str, *signers: str) -> frozenset[Vote]:
    return attest(ballot, head, *signers, step=Step.CONFIRM)


def view_of(*votes: frozenset[Vote], final: Quorum = NOTHING_FINAL) -> View:
    return View(final, KNOWN, frozenset().union(*votes), {window: ELECTORATE for window in range(4)})


def neuron(uid: int, stake: float, permit: bool = True) -> Neuron:
    return Neuron(uid, f"hotkey-{uid}", "cold", stake, permit, 0.0, 0.0, 0.0, 0, 0)


# --- ballots ------------------------------------------------------------------------------------------------


@st.composite
def times(draw: st.DrawFn) -> Time:
    seal = draw(st.integers(1, 3))
    reveal = draw(st.integers(seal + 2, seal + 5))
    manifest, failover = draw(st.integers(reveal, reveal + 4)), draw(st.integers(1, 5))
    window = draw(st.integers(manifest + failover + 1, manifest + failover + 60))
    return Time(
        window_blocks=window,
        seal_blocks=seal,
        reveal_blocks=reveal,
        manifest_blocks=manifest,
        failover_blocks=failover,
    )


def test_the_first_ballot_of_a_window_nominates_when_its_manifest_is_due() -> None:
    assert due_block(Ballot(7, 0), Phase.NOMINATE, TIME) == deadlines(7, TIME).manifest_block
    assert [due_at(block, TIME) for block in range(24, 33)] == [
        (FIRST, Phase.LOCK),
        None,
        (FIRST, Phase.NOMINATE),
        None,
        (FIRST, Phase.ATTEST),
        None,
        (FIRST, Phase.CONFIRM),
        None,
        (SECOND, Phase.LOCK),
    ]
    assert rounds(TIME) == (1, 2)


def test_a_window_shorter_than_a_ballot_shares_one_with_the_next() -> None:
    time = Time(window_blocks=10)
    assert rounds(time) == (2, 1)
    assert is_ballot(Ballot(4, 0), time)
    assert not is_ballot(Ballot(5, 0), time)
    assert not is_ballot(Ballot(4, 1), time)


@given(times(), st.integers(0, 3000))
def test_a_block_has_at_most_one_step_and_a_ballot_is_over_before_the_next_locks(time: Time, block: int) -> None:
    due = due_at(block, time)
    if due is None:
        return
    ballot, phase = due
    assert due_block(ballot, phase, time) == block
    assert is_ballot(ballot, time)
    span, count = rounds(time)
    ahead = Ballot(ballot.window, ballot.round + 1) if ballot.round + 1 < count else Ballot(ballot.window + span, 0)
    confirmed = due_block(ballot, Phase.CONFIRM, time)
    assert due_block(ahead, Phase.LOCK, time) >= confirmed + time.failover_blocks


# --- stake --------------------------------------------------------------------------------------------------


def test_only_stake_with_a_permit_counts_and_half_of_it_is_no_quorum() -> None:
    electorate = electorate_of(
        [neuron(0, 1.0), neuron(1, 2.5), neuron(2, 9.0, permit=False), neuron(3, 0.0), neuron(4, 1.5)]
    )
    assert electorate.members == (("hotkey-1", 2_500_000_000), ("hotkey-4", 1_500_000_000), ("hotkey-0", 1_000_000_000))
    assert not electorate.is_quorum({"hotkey-1"})
    assert electorate.is_quorum({"hotkey-1", "hotkey-0"})
    assert electorate.is_quorum(["hotkey-4", "hotkey-4", "hotkey-0"]) is False


@given(st.lists(st.integers(1, 10**17), min_size=1, max_size=8), st.data())
def test_two_groups_without_a_common_member_are_never_both_a_quorum(stakes: list[int], data: st.DataObject) -> None:
    electorate = Electorate(tuple((str(i), stake) for i, stake in enumerate(stakes)))
    group = data.draw(st.sets(st.sampled_from([name for name, _ in electorate.members])))
    rest = {name for name, _ in electorate.members} - group
    assert not (electorate.is_quorum(group) and electorate.is_quorum(rest))


def test_leaders_are_drawn_by_stake(run: Run) -> None:
    drawn = [ballot_leader(ELECTORATE, run, bytes([n % 256] * 32), Ballot(0, n // 256)) for n in range(1800)]
    assert [round(drawn.count(name) / 200) for name in "ABC"] == [4, 3, 2]
    with pytest.raises(ValueError, match="no stake"):
        ballot_leader(Electorate(()), run, bytes(32), FIRST)


# --- the document -------------------------------------------------------------------------------------------


def attestation(run: Run, key: Keypair, **changes: object) -> Attestation:
    fields: dict[str, Any] = {"run_digest": run.digest(), "window": 2, "round": 0, "step": Step.ATTEST}
    fields |= {"head": "aa" * 32, "head_window": 2}
    return Attestation(signer=key.ss58_address, **fields | changes).signed(key)


def test_an_attestation_says_which_ballot_it_is_a_vote_in(run: Run, alice: Keypair) -> None:
    made = Attestation.parse(attestation(run, alice).canonical())
    check_attestation(made, run)
    assert made.vote() == Vote(Ballot(2, 0), Step.ATTEST, alice.ss58_address, "aa" * 32)


def test_an_attestation_of_another_run_in_no_ballot_or_of_somebody_else_is_refused(
    run: Run, alice: Keypair, bob: Keypair
) -> None:
    with pytest.raises(LedgerError, match="is for run"):
        check_attestation(attestation(run, alice, run_digest="00" * 32), run)
    with pytest.raises(LedgerError, match=r"a ballot that is none: 3\.0"):
        check_attestation(attestation(run, alice, window=3), run)
    with pytest.raises(DocumentError, match="does not verify"):
        check_attestation(attestation(run, alice).model_copy(update={"signer": bob.ss58_address}), run)


def test_two_heads_in_one_step_of_one_ballot_are_evidence_and_nothing_else_is(
    run: Run, alice: Keypair, bob: Keypair
) -> None:
    one = attestation(run, alice)
    assert contradict(one, attestation(run, alice, head="bb" * 32))
    assert not contradict(one, attestation(run, alice))  # signed twice, with another random signature
    assert not contradict(one, attestation(run, alice, head_window=1))
    assert not contradict(one, attestation(run, bob, head="bb" * 32))
    assert not contradict(one, attestation(run, alice, head="bb" * 32, step=Step.CONFIRM))
    assert not contradict(one, attestation(run, alice, head="bb" * 32, window=4))


# --- what a view comes to -----------------------------------------------------------------------------------

votes_strategy = st.frozensets(
    st.builds(
        Vote,
        ballot=st.builds(Ballot, window=st.integers(0, 2), round=st.integers(0, 1)),
        step=st.sampled_from(Step),
        signer=st.sampled_from("ABCX"),
        head=st.sampled_from([*KNOWN, "unknown"]),
    ),
    max_size=30,
)


def test_more_than_half_of_the_stake_in_one_ballot_is_a_quorum() -> None:
    assert quorums(view_of(attest(FIRST, "a0", "A")), Step.ATTEST) == []
    assert quorums(view_of(attest(FIRST, "a0", "A"), attest(SECOND, "a0", "B")), Step.ATTEST) == []
    assert quorums(view_of(attest(FIRST, "a0", "A", "stranger")), Step.ATTEST) == []
    assert quorums(view_of(attest(FIRST, "a0", "B", "C")), Step.ATTEST) == [Quorum(FIRST, "a0")]
    assert quorums(view_of(attest(Ballot(9, 0), "a0", "A", "B", "C")), Step.ATTEST) == []


def test_a_confirmed_manifest_makes_all_before_it_final_once_it_is_known() -> None:
    votes = confirm(FIRST, "a0", "A", "B") | confirm(Ballot(2, 0), "a2", "A", "C")
    final = newest_final(view_of(votes))
    assert final == Quorum(Ballot(2, 0), "a2")
    assert view_of().extends(final.head, "a0")
    ahead = view_of(votes | confirm(Ballot(3, 0), "unknown", "A", "B"))
    assert newest_final(ahead) == final


def test_what_is_final_stays_final_whatever_is_confirmed() -> None:
    view = view_of(confirm(Ballot(3, 0), "b0", "A", "B"), final=Quorum(FIRST, "a0"))
    assert newest_final(view) == Quorum(FIRST, "a0")
    assert contradictions(view) == [(Quorum(FIRST, "a0"), Quorum(Ballot(3, 0), "b0"))]
    assert contradictions(view_of(confirm(FIRST, "a0", "A", "B"), confirm(SECOND, "a1", "A", "B"))) == []


def test_the_head_follows_finality_then_quorums_then_stake_then_rank() -> None:
    assert choose(view_of()) == "a2"  # the leader's, the leader's, the only one
    assert choose(view_of(attest(FIRST, "b0", "C"))) == "b0"
    assert choose(view_of(attest(FIRST, "b0", "C"), attest(FIRST, "a1", "B"))) == "a2"
    assert choose(view_of(attest(FIRST, "c1", "C"))) == "c1"
    assert choose(view_of(attest(FIRST, "b0", "A", "B"), attest(SECOND, "a0", "A"))) == "b0"
    assert choose(view_of(attest(FIRST, "b0", "A", "B"), attest(SECOND, "a0", "A", "C"))) == "a2"
    assert choose(view_of(confirm(FIRST, "b0", "A", "B"), attest(SECOND, "a0", "A", "C"))) == "b0"


def test_only_the_last_attestation_of_a_validator_has_weight_and_two_have_none() -> None:
    assert choose(view_of(attest(FIRST, "a0", "C"), attest(SECOND, "b0", "C"))) == "b0"
    assert choose(view_of(attest(FIRST, "b0", "A"), attest(FIRST, "c1", "A"))) == "a2"


@given(votes_strategy)
def test_the_head_extends_what_is_final(votes: frozenset[Vote]) -> None:
    view = view_of(votes)
    assert view.extends(choose(view), newest_final(view).head)


@given(votes_strategy)
def test_what_is_relayed_shows_every_quorum_and_every_twin_and_no_stranger(votes: frozenset[Vote]) -> None:
    view = view_of(votes)
    told = replace(view, votes=relay(view))
    for step in Step:
        assert quorums(told, step) == quorums(view, step)
    for vote in votes:
        same = [v for v in votes if (v.ballot, v.step, v.signer) == (vote.ballot, vote.step, vote.signer)]
        heads = {v.head for v in told.votes if (v.ballot, v.step, v.signer) == (vote.ballot, vote.step, vote.signer)}
        assert len(heads) >= min(2, len(same)) or vote.signer == "X"
    assert all(vote.signer != "X" for vote in told.votes)


def test_a_member_that_signs_everything_fills_no_bucket() -> None:
    flood = frozenset(Vote(FIRST, Step.ATTEST, "A", f"{n:064x}") for n in range(1000))
    assert len(relay(view_of(flood))) == 2


# --- what a validator does ----------------------------------------------------------------------------------


def do(
    me: str, phase: Phase, view: View, stance: Stance, ballot: Ballot = FIRST, leader: str = "A"
) -> tuple[Stance, Vote | None]:
    return act(me, leader, due_block(ballot, phase, TIME), TIME, view, stance)


def test_a_ballot_makes_the_leaders_head_final() -> None:
    votes: frozenset[Vote] = frozenset()
    stances = dict.fromkeys("ABC", Stance())
    for phase in Phase:
        done = {me: do(me, phase, view_of(votes), stances[me]) for me in "ABC"}
        stances = {me: stance for me, (stance, _) in done.items()}
        votes |= {vote for _, vote in done.values() if vote is not None}
    assert votes == attest(FIRST, "a0", *"ABC") | confirm(FIRST, "a0", *"ABC")
    assert newest_final(view_of(votes)) == Quorum(FIRST, "a0")
    assert {stance.lock for stance in stances.values()} == {Quorum(FIRST, "a0")}


AWAKE = Stance(awake=FIRST)


def test_two_nominations_are_followed_by_nobody_and_confirmed_by_nobody() -> None:
    twins = attest(FIRST, "a0", "A") | attest(FIRST, "b0", "A")
    assert do("B", Phase.ATTEST, view_of(twins), AWAKE) == (AWAKE, None)
    assert do("B", Phase.CONFIRM, view_of(twins, attest(FIRST, "a0", "B", "C")), AWAKE) == (AWAKE, None)


def test_who_attested_a_rival_does_not_confirm() -> None:
    votes = view_of(attest(FIRST, "a0", "A", "C"))
    assert do("B", Phase.CONFIRM, votes, replace(AWAKE, attested=Quorum(FIRST, "b0")))[1] is None
    assert do("B", Phase.CONFIRM, votes, AWAKE)[1] == Vote(FIRST, Step.CONFIRM, "B", "a0")


def test_a_step_out_of_its_block_or_after_missed_locks_is_not_done() -> None:
    view, block = view_of(attest(FIRST, "a0", "A")), due_block(FIRST, Phase.ATTEST, TIME)
    assert act("B", "A", block + 1, TIME, view, AWAKE) == (AWAKE, None)
    assert act("B", "A", block, TIME, view, Stance()) == (Stance(), None)
    assert act("stranger", "A", block, TIME, view, AWAKE) == (AWAKE, None)
    assert act("B", "A", block, TIME, replace(view, electorates={}), AWAKE) == (AWAKE, None)
    assert act("B", "A", block, TIME, view, AWAKE)[1] is not None


def test_a_manifest_that_was_not_verified_is_old_or_rivals_what_is_final_is_not_attested() -> None:
    for head, final in (("unknown", NOTHING_FINAL), ("a0", Quorum(FIRST, "a0")), ("b0", Quorum(FIRST, "a0"))):
        ballot = Ballot(1, 0)
        view = view_of(attest(ballot, head, "A"), final=final)
        assert do("B", Phase.ATTEST, view, Stance(awake=ballot), ballot)[1] is None, head
    too_new = view_of(attest(FIRST, "a1", "A"))
    assert do("B", Phase.ATTEST, too_new, AWAKE)[1] is None


def test_a_leader_does_not_nominate_a_manifest_of_a_later_window() -> None:
    assert do("A", Phase.NOMINATE, view_of(), AWAKE)[1] == Vote(FIRST, Step.ATTEST, "A", "a0")


def test_a_lock_gives_way_only_to_a_quorum_that_is_as_new() -> None:
    ballot = Ballot(1, 0)
    bound = Stance(awake=ballot, lock=Quorum(SECOND, "b0"))
    wanted = attest(ballot, "a0", "A")
    older = attest(FIRST, "a0", "A", "B")
    as_new = attest(SECOND, "a0", "A", "B")
    assert do("C", Phase.ATTEST, view_of(wanted), bound, ballot)[1] is None
    assert do("C", Phase.ATTEST, view_of(wanted, older), bound, ballot)[1] is None
    assert do("C", Phase.ATTEST, view_of(wanted, as_new), bound, ballot)[1] is not None
    assert do("C", Phase.ATTEST, view_of(wanted, final=Quorum(SECOND, FIRST_PREVIOUS)), bound, ballot)[1] is not None
    assert do("C", Phase.ATTEST, view_of(attest(ballot, "b0", "A")), bound, ballot)[1] is not None


def test_locks_come_from_ballots_before_and_only_get_newer() -> None:
    view = view_of(attest(FIRST, "a0", "A", "B"), attest(SECOND, "b0", "A", "B"))
    assert take_lock(None, view, SECOND) == Quorum(FIRST, "a0")
    assert take_lock(None, view, Ballot(1, 0)) == Quorum(SECOND, "b0")
    assert take_lock(Quorum(SECOND, "a1"), view, Ballot(1, 0)) == Quorum(SECOND, "a1")


@given(
    st.lists(
        st.tuples(st.sampled_from(Phase), st.sampled_from([FIRST, SECOND]), votes_strategy, st.sampled_from("AB")),
        max_size=12,
    )
)
def test_whatever_it_is_shown_a_validator_never_signs_two_heads_in_one_step(
    moves: list[tuple[Phase, Ballot, frozenset[Vote], str]],
) -> None:
    stance, signed = Stance(), set[Vote]()
    for phase, ballot, votes, leader in moves:
        stance, vote = do("B", phase, view_of(votes), stance, ballot, leader)
        assert vote is None or vote.signer == "B"
        signed |= {vote} if vote else set()
    steps = [(vote.ballot, vote.step) for vote in signed]
    assert len(steps) == len({*steps})


@given(votes_strategy, votes_strategy)
def test_who_has_confirmed_attests_no_rival_without_a_quorum_as_new(
    votes: frozenset[Vote], later: frozenset[Vote]
) -> None:
    view = view_of(votes, attest(FIRST, "a0", "A", "C"))
    stance, vote = do("B", Phase.CONFIRM, view, AWAKE)
    assume(vote is not None and vote.head == "a0")
    stance, _ = do("B", Phase.LOCK, view_of(later), stance, SECOND)
    _, vote = do("B", Phase.ATTEST, view_of(later), stance, SECOND)
    if vote is not None and not view.extends(vote.head, "a0"):
        assert any(q.ballot == FIRST and not view.extends(q.head, "a0") for q in quorums(view_of(later), Step.ATTEST))


# --- what is remembered -------------------------------------------------------------------------------------

_HEADS = ("a0", "a1", "a2", "c1", "b0")


@given(
    st.frozensets(
        st.builds(
            Vote,
            st.builds(Ballot, st.integers(0, 3), st.integers(0, 1)),
            st.sampled_from(Step),
            st.sampled_from(("A", "B", "C")),
            st.sampled_from(_HEADS),
        ),
        max_size=24,
    )
)
def test_nothing_that_is_decided_depends_on_what_is_not_remembered(votes: frozenset[Vote]) -> None:
    view = view_of(votes)
    heads = [quorum.head for step in Step for quorum in quorums(view, step)]
    # Only if half of the stake is faulty are there quorums for rivals.
    assume(all(view.extends(a, b) or view.extends(b, a) for a in heads for b in heads))
    final = newest_final(view)
    view = replace(view, final=final, votes=frozenset(vote for vote in votes if vote.ballot >= final.ballot))
    less = replace(view, votes=remembered(view))
    assert newest_final(less) == final
    assert choose(less) == choose(view)
    assert take_lock(None, less, Ballot(9, 0)) == take_lock(None, view, Ballot(9, 0))


def test_what_is_remembered_does_not_grow_while_nothing_becomes_final() -> None:
    electorates = dict.fromkeys(range(100), ELECTORATE)
    votes = frozenset().union(
        *(attest(Ballot(window, 0), head, "B") for window in range(100) for head in ("a0", "a1")),
        attest(Ballot(3, 0), "a2", "C"),
    )
    kept = remembered(View(NOTHING_FINAL, KNOWN, votes, electorates))
    assert kept == attest(Ballot(99, 0), "a0", "B") | attest(Ballot(99, 0), "a1", "B") | attest(
        Ballot(98, 0), "a0", "B"
    ) | attest(Ballot(98, 0), "a1", "B") | attest(Ballot(3, 0), "a2", "C")


def test_the_certificate_of_what_is_final_is_remembered() -> None:
    final = Quorum(FIRST, "a0")
    certificate = confirm(FIRST, "a0", "A", "B")
    later = frozenset().union(*(confirm(Ballot(window, 0), "b0", "C") for window in (1, 2, 3)))
    assert remembered(view_of(certificate, later, final=final)) >= certificate


def test_the_support_of_a_head_is_the_share_of_stake_that_attested_it_or_what_comes_after() -> None:
    view = view_of(attest(FIRST, "a1", "A"), attest(FIRST, "b0", "C"))
    assert (support(view, "a0"), support(view, "a2")) == (4 / 9, 0.0)
    assert support(replace(view, electorates={}), "a0") == 0.0


def test_a_rank_is_a_place_in_leader_order() -> None:
    assert [ELECTORATE.rank_of(hotkey) for hotkey in ("A", "C", "stranger")] == [0, 2, None]
