"""The ledger: what a manifest may say, and what applying it does."""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from bittensor_core import Keypair

from protocol.chain.port import Neuron
from protocol.errors import Divergence, DocumentError, LedgerError, Reason
from protocol.ledger.manifest import (
    FIRST_PREVIOUS,
    MANIFEST_LIMIT_BYTES,
    Contribution,
    Manifest,
    Refusal,
    Seat,
    check_contributions,
    check_manifest,
    leader_order,
    signed_twice,
)
from protocol.ledger.replay import apply_manifest
from protocol.ledger.state import State, state_root
from protocol.run import Run
from protocol.sealing import SealedShard
from protocol.sparseloco.aggregate import outer_step
from protocol.sparseloco.layout import Layout
from protocol.sparseloco.payload import Header, Payload, read_payload

Make = Callable[..., Manifest]


@pytest.fixture(scope="module")
def payloads(
    run: Run,
    layout: Layout,
    make_header: Callable[..., Header],
    make_body: Callable[[int], bytes],
    alice: Keypair,
    bob: Keypair,
) -> list[Payload]:
    """Of Alice and of Bob, for window 3."""
    return [
        read_payload(make_header(hotkey=k.ss58_address).pack() + make_body(i), run, layout, k.ss58_address, 3)
        for i, k in enumerate((alice, bob))
    ]


def listed(*uids: int) -> tuple[Seat, ...]:
    """Seats of uid 2, Alice's, of uid 5, Bob's, and of others', all Bob's."""
    names = {2: "//Alice"}
    keys = [Keypair.create_from_uri(names.get(uid, "//Bob")) for uid in uids]
    return tuple(Seat(uid=uid, hotkey=key.ss58_address) for uid, key in zip(uids, keys, strict=True))


def contribution(uid: int, payload: Payload) -> Contribution:
    return Contribution(
        uid=uid,
        hotkey=payload.header.hotkey,
        payload_digest=payload.digest,
        key="ab" * 32,
        shards=(SealedShard(size_bytes=308, digest="dd" * 32),),
        location="00" + b"alice".hex(),
    )


@pytest.fixture(scope="module")
def make(run: Run, theta: np.ndarray, payloads: list[Payload], alice: Keypair) -> Make:
    """A good manifest of window 3, signed by Alice; keywords replace its fields before."""

    def build(key: Keypair = alice, **changes: Any) -> Manifest:
        fields: dict[str, Any] = {
            "signer": key.ss58_address,
            "run_digest": run.digest(),
            "window": 3,
            "previous": "77" * 32,
            "root": state_root(theta),
            "alpha": 1.0,
            "contributions": tuple(contribution(uid, p) for uid, p in zip((2, 5), payloads, strict=True)),
            "rejected": (Refusal(uid=3, hotkey=key.ss58_address, reason=Reason.NO_REVEAL, detail="late"),),
            "gather": listed(5, 2),
            "reserve": (),
        }
        return Manifest(**(fields | changes)).signed(key)

    return build


@pytest.fixture
def check(run: Run, theta: np.ndarray, alice: Keypair) -> Callable[[Manifest], None]:
    return lambda manifest: check_manifest(manifest, run, 3, "77" * 32, state_root(theta), alice.ss58_address)


def test_a_good_manifest_passes_also_after_a_journey(make: Make, check: Callable[[Manifest], None]) -> None:
    check(make())
    check(Manifest.parse(make().canonical()))
    check(make(contributions=(), rejected=(), gather=()))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"run_digest": "00" * 32}, "run_digest is"),
        ({"window": 2}, "window is 2, this node has 3"),
        ({"window": 4}, "window is 4, this node has 3"),
        ({"previous": FIRST_PREVIOUS}, "previous is"),
        ({"root": "00" * 32}, "root is"),
        ({"alpha": 0.5}, "alpha is 0.5, this node has 1.0"),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused_by_field(
    make: Make, check: Callable[[Manifest], None], change: dict[str, Any], why: str
) -> None:
    with pytest.raises(LedgerError, match=why):
        check(make(**change))


def test_two_manifests_of_one_key_after_one_predecessor_are_evidence(make: Make, bob: Keypair) -> None:
    assert signed_twice(make(), make(gather=()))
    assert not signed_twice(make(), make())  # signed twice, with another random signature
    assert not signed_twice(make(), make(gather=(), previous="78" * 32))
    assert not signed_twice(make(), make(gather=(), window=4))
    assert not signed_twice(make(), make(key=bob))


def test_a_manifest_that_differs_in_the_root_alone_is_a_divergence(
    make: Make, check: Callable[[Manifest], None], payloads: list[Payload]
) -> None:
    with pytest.raises(Divergence):
        check(make(root="00" * 32))
    descending = tuple(contribution(uid, p) for uid, p in zip((5, 2), payloads, strict=True))
    others: list[dict[str, Any]] = [
        {"run_digest": "00" * 32},
        {"window": 2},
        {"previous": "00" * 32},
        {"alpha": 0.5},
        {"contributions": descending},
    ]
    for other in others:  # else anyone could make a node doubt its state with a manifest that is wrong anyway
        with pytest.raises(LedgerError) as caught:
            check(make(root="00" * 32, **other))
        assert not isinstance(caught.value, Divergence)


def test_the_alpha_of_the_schedule_is_demanded(make_run: Callable[..., Run], make: Make, alice: Keypair) -> None:
    run = make_run(sparseloco__outer_learning_rate=[[0, 1.0], [3, 0.5]])
    manifest = make(run_digest=run.digest(), alpha=0.5)
    check_manifest(manifest, run, 3, "77" * 32, manifest.root, alice.ss58_address)
    manifest = make(run_digest=run.digest(), alpha=1.0)
    with pytest.raises(LedgerError, match="alpha"):
        check_manifest(manifest, run, 3, "77" * 32, manifest.root, alice.ss58_address)


def test_the_signer_must_be_the_one_whose_turn_it_is(
    make: Make, check: Callable[[Manifest], None], bob: Keypair
) -> None:
    with pytest.raises(LedgerError, match="expected"):
        check(make(bob))


def test_a_changed_manifest_is_refused(make: Make, check: Callable[[Manifest], None]) -> None:
    for change in ({"gather": listed(2, 5)}, {"contributions": ()}, {"signature": ""}, {"signature": "00" * 64}):
        with pytest.raises(LedgerError, match="does not verify"):
            check(make().model_copy(update=change))


@pytest.mark.parametrize("uids", [(5, 2), (2, 2)])
def test_contributions_ascend_strictly_by_uid(
    make: Make, check: Callable[[Manifest], None], payloads: list[Payload], uids: tuple[int, int]
) -> None:
    with pytest.raises(LedgerError, match="ascending uid"):
        check(make(contributions=tuple(contribution(uid, p) for uid, p in zip(uids, payloads, strict=True))))


def test_there_are_no_more_contributions_than_the_run_allows(
    make: Make, make_run: Callable[..., Run], alice: Keypair
) -> None:
    run = make_run(gauntlet__gather_size=1)
    manifest = make(run_digest=run.digest())
    with pytest.raises(LedgerError, match="2 contributions, the run allows 1"):
        check_manifest(manifest, run, 3, "77" * 32, manifest.root, alice.ss58_address)


@pytest.mark.parametrize(
    "change",
    [
        {"window": 10**8},
        {"window": -1},
        {"alpha": "1.0"},
        {"alpha": None},
        {"gather": [{"uid": 65536, "hotkey": "5" * 48}]},
        {"gather": [{"uid": -1, "hotkey": "5" * 48}]},
        {"gather": [{"uid": 1, "hotkey": "x"}]},
        {"gather": [{"uid": 1}]},
        {"gather": [1]},
        {"reserve": "12"},
        {"rejected": [{"uid": 1, "hotkey": "x", "reason": "no_seal", "detail": ""}]},
        {"extra": 1},
    ],
    ids=str,
)
def test_an_impossible_field_is_refused(make: Make, change: dict[str, Any]) -> None:
    with pytest.raises(DocumentError):
        Manifest.parse(json.dumps(make().model_dump(mode="json") | change).encode())


@pytest.mark.parametrize(
    "change",
    [
        {"reason": "bored"},
        {"reason": "NO_SEAL"},
        {"detail": "x" * 201},
        {"uid": 70_000},
    ],
)
def test_an_impossible_refusal_is_refused(make: Make, change: dict[str, Any]) -> None:
    table = make().model_dump(mode="json")
    table["rejected"][0] |= change
    with pytest.raises(DocumentError, match=r"rejected\.0"):
        Manifest.parse(json.dumps(table).encode())


@pytest.mark.parametrize(
    "change",
    [{"location": ""}, {"location": "0"}, {"location": "00" * 129}, {"location": "../x"}, {"key": "ab"}, {"uid": -1}],
)
def test_an_impossible_contribution_is_refused(make: Make, change: dict[str, Any]) -> None:
    table = make().model_dump(mode="json")
    table["contributions"][0] |= change
    with pytest.raises(DocumentError, match=r"contributions\.0"):
        Manifest.parse(json.dumps(table).encode())


def test_the_fullest_manifest_fits_its_limit(make: Make, payloads: list[Payload]) -> None:
    shard = SealedShard(size_bytes=2**48 - 1, digest="dd" * 32)
    one = contribution(0, payloads[0]).model_copy(update={"shards": (shard,) * 22, "location": "00" * 128})
    refusal = Refusal(uid=0, hotkey=payloads[0].header.hotkey, reason=Reason.NO_SEAL, detail="x" * 200)
    manifest = make().model_copy(
        update={
            "contributions": tuple(one.model_copy(update={"uid": uid}) for uid in range(256)),
            "rejected": (refusal,) * 256,
        }
    )
    assert len(manifest.canonical()) <= MANIFEST_LIMIT_BYTES


def test_a_second_signature_of_the_same_manifest_is_the_same_manifest(make: Make, alice: Keypair) -> None:
    first, second = make(), make()
    assert first.signature != second.signature
    assert first.digest() == second.digest()


# --- leaders ----------------------------------------------------------------------------------------------


def neuron(uid: int, stake: float, permit: bool = True) -> Neuron:
    return Neuron(uid, f"hotkey-{uid}", "coldkey", stake, permit, 0.0, 0.0, 0.0, 0, 0)


def test_the_leader_has_a_permit_the_most_stake_and_then_the_lowest_uid() -> None:
    neurons = [neuron(0, 5), neuron(1, 9, permit=False), neuron(2, 7), neuron(3, 7), neuron(4, 0)]
    assert [n.uid for n in leader_order(neurons)] == [2, 3, 0, 4]
    assert [n.uid for n in leader_order(neurons[::-1])] == [2, 3, 0, 4]
    assert leader_order([neuron(0, 5, permit=False)]) == ()


# --- replay -----------------------------------------------------------------------------------------------


@pytest.fixture
def state(layout: Layout, theta: np.ndarray) -> State:
    return State(layout, theta.copy(), 3, "77" * 32)


def test_applying_a_manifest_takes_the_state_one_window_on(
    state: State, run: Run, make: Make, payloads: list[Payload], theta: np.ndarray
) -> None:
    expected = theta.copy()
    outer_step(expected, [p.update for p in payloads], run.sparseloco, 3)
    apply_manifest(state, run, make(), payloads)
    assert state.theta.tobytes() == expected.tobytes()
    assert (state.window, state.previous) == (4, make().digest())


def test_an_empty_manifest_moves_the_window_and_not_the_parameters(
    state: State, run: Run, make: Make, theta: np.ndarray
) -> None:
    apply_manifest(state, run, make(contributions=()), [])
    assert state.theta.tobytes() == theta.tobytes()
    assert state.window == 4


@pytest.mark.parametrize("fault", ["order", "missing", "more", "other digest", "other hotkey", "window"])
def test_what_was_not_named_is_not_applied_and_nothing_is_changed(
    state: State, run: Run, make: Make, payloads: list[Payload], theta: np.ndarray, bob: Keypair, fault: str
) -> None:
    first, second = payloads
    given = {
        "order": [second, first],
        "missing": [first],
        "more": [first, second, second],
        "other digest": [first, replace(second, digest="00" * 32)],
        "other hotkey": [replace(first, header=replace(first.header, hotkey=bob.ss58_address)), second],
        "window": [first, second],
    }[fault]
    if fault == "window":
        state.window = 2
    window = state.window
    with pytest.raises(LedgerError):
        apply_manifest(state, run, make(), given)
    assert state.theta.tobytes() == theta.tobytes()
    assert (state.window, state.previous) == (window, "77" * 32)


def test_two_nodes_that_replay_the_same_manifests_hold_the_same_root(
    layout: Layout, run: Run, make: Make, payloads: list[Payload], theta: np.ndarray
) -> None:
    roots = set()
    for _ in range(2):
        replica = State(layout, theta.copy(), 3, "77" * 32)
        apply_manifest(replica, run, make(), payloads)
        roots.add(replica.root())
    assert len(roots) == 1


@pytest.fixture
def allow(run: Run, make: Make) -> Callable[..., None]:
    """Check what a manifest applies against lists in effect; the sizes are those of its own first contribution."""
    sizes = [shard.size_bytes for shard in make().contributions[0].shards]

    def check(manifest: Manifest, gather: tuple[Seat, ...] = (), reserve: tuple[Seat, ...] = ()) -> None:
        check_contributions(manifest, run, gather, reserve, sizes)

    return check


def test_contributors_come_from_the_lists_in_effect_or_from_anywhere_when_there_are_none(
    make: Make, allow: Callable[..., None]
) -> None:
    allow(make())
    allow(make(), gather=listed(5, 2))
    allow(make(), gather=listed(2, 9), reserve=listed(5))
    with pytest.raises(LedgerError, match=r"uids \[5\] contribute but are on no list"):
        allow(make(), gather=listed(2, 9))


def test_who_takes_over_a_slot_is_not_on_the_list_that_names_it(make: Make, allow: Callable[..., None]) -> None:
    first, second = listed(2, 5)
    with pytest.raises(LedgerError, match=r"uids \[5\] contribute but are on no list with these hotkeys"):
        allow(make(), gather=(first, second.model_copy(update={"hotkey": first.hotkey})))
    with pytest.raises(LedgerError, match=r"uids \[5\] contribute"):  # nor is who moves to another one
        allow(make(), gather=(first, second.model_copy(update={"uid": 6})))


def test_nobody_is_both_applied_and_rejected(make: Make, allow: Callable[..., None], alice: Keypair) -> None:
    refusal = Refusal(uid=5, hotkey=alice.ss58_address, reason=Reason.NO_REVEAL, detail="")
    with pytest.raises(LedgerError, match="both applied and rejected"):
        allow(make(rejected=(refusal,)))


def test_a_leader_cannot_choose_how_much_others_download(make: Make, allow: Callable[..., None]) -> None:
    first, second = make().contributions
    huge = first.model_copy(update={"shards": (first.shards[0].model_copy(update={"size_bytes": 2**40}),)})
    with pytest.raises(LedgerError, match="not of the run's sizes"):
        allow(make(contributions=(huge, second)))
    with pytest.raises(LedgerError, match="not of the run's sizes"):
        allow(make(contributions=(first.model_copy(update={"shards": first.shards * 2}), second)))


def test_lists_name_each_uid_once_and_stay_within_the_run(make: Make, allow: Callable[..., None], run: Run) -> None:
    with pytest.raises(LedgerError, match="twice"):
        allow(make(gather=listed(1, 2), reserve=listed(2)))
    with pytest.raises(LedgerError, match="longer"):
        allow(make(gather=listed(*range(run.gauntlet.gather_size + 1))))
    with pytest.raises(LedgerError, match="longer"):
        allow(make(gather=(), reserve=listed(*range(run.gauntlet.reserve_size + 1))))


def test_where_a_contribution_is_read_is_in_no_log_and_no_report_of_an_error(
    make: Make, payloads: list[Payload]
) -> None:
    """It may hold a read key: the manifest says it to those who fetch, and nobody else needs it."""
    location = "03" + b"a read key".hex()
    one = contribution(0, payloads[0]).model_copy(update={"location": location})
    manifest = make(contributions=(one,))
    assert location not in f"{one!r} {one} {manifest!r}"
    assert location.encode() in manifest.canonical()
    broken = manifest.canonical().replace(b'"uid":0', b'"uid":-1').replace(location.encode(), b"zz" + location.encode())
    with pytest.raises(DocumentError) as caught:
        Manifest.parse(broken)
    assert location not in "".join(traceback.format_exception(caught.value))
