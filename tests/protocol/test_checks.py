"""Each reason of protocol §11 that bytes alone can give, by a contribution with just that fault."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from bittensor_core import Keypair
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import Reason, Rejected
from protocol.gauntlet.checks import (
    MISSING_REASONS,
    StaleBase,
    check_base,
    check_payload_digest,
    check_reveal,
    check_seal,
    check_sync_proof,
    find_copies,
    find_outsized,
)
from protocol.ledger.state import state_root
from protocol.run import Run, SparseLoCo
from protocol.sealing import Reveal, Seal, SealedShard
from protocol.sparseloco.compress import SparseUpdate, compress, decompress
from protocol.sparseloco.layout import Layout
from protocol.sparseloco.payload import Header, Payload, read_payload, shard_sizes

KEY = bytes(range(32))
CIPHERTEXT = bytes(308)


@pytest.fixture(scope="module")
def sizes(layout: Layout, run: Run) -> list[int]:
    return [size + 16 for size in shard_sizes(layout, run)]


@pytest.fixture(scope="module")
def make_seal(run: Run, layout: Layout, theta: np.ndarray, sizes: list[int], alice: Keypair) -> Callable[..., Seal]:
    """A good seal of Alice's for window 3; keywords replace its fields before it is signed."""

    def make(key: Keypair = alice, **changes: Any) -> Seal:
        fields: dict[str, Any] = {
            "signer": key.ss58_address,
            "run_digest": run.digest(),
            "window": 3,
            "layout_digest": layout.digest,
            "base_root": state_root(theta),
            "shards": tuple(SealedShard(size_bytes=n, digest=blake3(CIPHERTEXT).hexdigest()) for n in sizes),
            "payload_digest": "ee" * 32,
            "key_digest": blake3(KEY).hexdigest(),
        }
        return Seal(**(fields | changes)).signed(key)

    return make


Check = Callable[[bytes], Seal]


@pytest.fixture
def check(run: Run, layout: Layout, sizes: list[int], alice: Keypair) -> Check:
    return lambda data: check_seal(data, alice.ss58_address, run, layout, 3, sizes)


def reason_of(call: Callable[[], object]) -> Reason:
    with pytest.raises(Rejected) as caught:
        call()
    assert caught.value.detail
    return caught.value.reason


# --- the seal ---------------------------------------------------------------------------------------------


def test_a_good_seal_passes(check: Check, make_seal: Callable[..., Seal]) -> None:
    seal = make_seal()
    assert check(seal.canonical()) == seal


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"run_digest": "00" * 32}, Reason.WRONG_RUN),
        ({"window": 2}, Reason.WRONG_WINDOW),
        ({"window": 4}, Reason.WRONG_WINDOW),
        ({"layout_digest": "00" * 32}, Reason.WRONG_LAYOUT),
        ({"shards": ()}, Reason.SHARD_SIZE),
        ({"shards": (SealedShard(size_bytes=2**47, digest="00" * 32),)}, Reason.SHARD_SIZE),
        ({"shards": (SealedShard(size_bytes=308, digest="00" * 32),) * 2}, Reason.SHARD_SIZE),
    ],
)
def test_a_well_signed_seal_of_the_wrong_kind_is_refused(
    check: Check, make_seal: Callable[..., Seal], change: dict[str, Any], reason: Reason
) -> None:
    assert reason_of(lambda: check(make_seal(**change).canonical())) is reason


def test_the_first_fault_in_the_order_of_the_protocol_is_named(check: Check, make_seal: Callable[..., Seal]) -> None:
    wrong: dict[str, Any] = {}
    expected = []
    for field, value, reason in (
        ("shards", (), Reason.SHARD_SIZE),
        ("layout_digest", "00" * 32, Reason.WRONG_LAYOUT),
        ("window", 9, Reason.WRONG_WINDOW),
        ("run_digest", "00" * 32, Reason.WRONG_RUN),
    ):
        wrong[field] = value
        expected.append(reason)
        assert reason_of(lambda: check(make_seal(**wrong).canonical())) is reason
    unsigned = make_seal(**wrong).model_copy(update={"signature": ""})
    assert reason_of(lambda: check(unsigned.canonical())) is Reason.BAD_SIGNATURE
    order = list(Reason)
    assert [order.index(r) for r in expected] == sorted((order.index(r) for r in expected), reverse=True)


def test_a_seal_that_another_signed_is_refused(check: Check, make_seal: Callable[..., Seal], bob: Keypair) -> None:
    assert reason_of(lambda: check(make_seal(bob).canonical())) is Reason.BAD_SIGNATURE


def test_a_seal_in_ones_name_signed_by_another_is_refused(
    check: Check, make_seal: Callable[..., Seal], alice: Keypair, bob: Keypair
) -> None:
    forged = make_seal(bob).model_copy(update={"signer": alice.ss58_address})
    assert reason_of(lambda: check(forged.canonical())) is Reason.BAD_SIGNATURE


def test_a_changed_seal_is_refused(check: Check, make_seal: Callable[..., Seal]) -> None:
    table = make_seal().model_dump(mode="json")
    table["payload_digest"] = "00" * 32
    assert reason_of(lambda: check(json.dumps(table).encode())) is Reason.BAD_SIGNATURE


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        b"\xff",
        b"[" * 60_000,
        b'{"window":' + b"9" * 60_000 + b"}",
        b'{"' + b"\\u001b" * 9_000 + b'":1}',
        b'{"window":NaN}',
    ],
    ids=["empty", "no fields", "not UTF-8", "deep nesting", "huge integer", "control characters", "NaN"],
)
def test_what_is_no_seal_is_refused(check: Check, data: bytes) -> None:
    assert reason_of(lambda: check(data)) is Reason.BAD_SIGNATURE


@given(st.binary(max_size=300))
def test_random_bytes_are_no_seal(run: Run, layout: Layout, alice: Keypair, data: bytes) -> None:
    assert reason_of(lambda: check_seal(data, alice.ss58_address, run, layout, 3, [1])) is Reason.BAD_SIGNATURE


def test_a_message_about_a_hostile_seal_is_short_and_printable(check: Check, make_seal: Callable[..., Seal]) -> None:
    table = make_seal().model_dump(mode="json") | {"\x1b[2J\n" * 5_000: 1}
    with pytest.raises(Rejected) as caught:
        check(json.dumps(table).encode())
    assert len(caught.value.detail) <= 200
    assert caught.value.detail.isprintable()


# --- reveal and shards ------------------------------------------------------------------------------------


def test_the_key_that_was_sealed_is_returned(make_seal: Callable[..., Seal]) -> None:
    assert check_reveal(Reveal(window=3, key=KEY.hex()).canonical(), make_seal()) == KEY


@pytest.mark.parametrize(
    "data",
    [
        Reveal(window=3, key="00" * 32).canonical(),
        Reveal(window=4, key=KEY.hex()).canonical(),
        b"",
        b"{}",
        b'{"key":"00","window":3}',
        b'{"key":"' + KEY.hex().encode() + b'","window":3.0}',
        b'{"key":"' + KEY.hex().encode() + b'","window":3,"x":1}',
    ],
)
def test_any_other_key_is_the_wrong_one(make_seal: Callable[..., Seal], data: bytes) -> None:
    assert reason_of(lambda: check_reveal(data, make_seal())) is Reason.WRONG_KEY


def test_the_opened_payload_is_the_sealed_one(make_seal: Callable[..., Seal]) -> None:
    seal = make_seal(payload_digest=blake3(b"payload").hexdigest())
    check_payload_digest(b"payload", seal.payload_digest)
    assert reason_of(lambda: check_payload_digest(b"other", seal.payload_digest)) is Reason.SHARD_DIGEST


# --- base and proof ---------------------------------------------------------------------------------------


def test_the_current_root_passes(make_header: Callable[..., Header], make_seal: Callable[..., Seal]) -> None:
    header, seal = make_header(), make_seal()
    check_base(header, seal, {header.base_root: 3}, 3, 3)


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_an_older_root_is_so_many_steps_behind(
    make_header: Callable[..., Header], make_seal: Callable[..., Seal], steps: int
) -> None:
    header, seal = make_header(), make_seal()
    with pytest.raises(StaleBase) as caught:
        check_base(header, seal, {header.base_root: 8 - steps, "00" * 32: 8}, 8, 3)
    assert (caught.value.reason, caught.value.steps) == (Reason.STALE_BASE, steps)


def test_an_unknown_root_is_as_far_behind_as_can_be(
    make_header: Callable[..., Header], make_seal: Callable[..., Seal]
) -> None:
    with pytest.raises(StaleBase) as caught:
        check_base(make_header(), make_seal(), {"00" * 32: 3}, 3, 3)
    assert caught.value.steps == 3


def test_seal_and_payload_name_one_root(make_header: Callable[..., Header], make_seal: Callable[..., Seal]) -> None:
    header = make_header()
    seal = make_seal(base_root="00" * 32)
    roots = {header.base_root: 3, "00" * 32: 3}
    assert reason_of(lambda: check_base(header, seal, roots, 3, 3)) is Reason.STALE_BASE


def test_a_proof_from_another_state_or_hotkey_is_refused(
    make_header: Callable[..., Header], theta: np.ndarray, window_hash: bytes, bob: Keypair
) -> None:
    check_sync_proof(make_header(), theta, window_hash)
    stolen = make_header(hotkey=bob.ss58_address, sync_proof=make_header().sync_proof)
    for header, state, block_hash in (
        (make_header(sync_proof="00" * 32), theta, window_hash),
        (make_header(), -theta, window_hash),
        (make_header(), theta, bytes(32)),
        (stolen, theta, window_hash),
    ):
        assert reason_of(lambda h=header, t=state, b=block_hash: check_sync_proof(h, t, b)) is Reason.BAD_SYNC_PROOF


# --- copies -----------------------------------------------------------------------------------------------

Make = Callable[[int], Payload]


@pytest.fixture
def payload(
    run: Run, layout: Layout, make_header: Callable[..., Header], make_body: Callable[[int], bytes], alice: Keypair
) -> Make:
    return lambda seed: read_payload(make_header().pack() + make_body(seed), run, layout, alice.ss58_address, 3)


@pytest.fixture
def zeros(run: Run, layout: Layout, make_header: Callable[..., Header], alice: Keypair) -> Payload:
    nothing = np.zeros(layout.size, np.float32)
    body = compress(layout, run.sparseloco, nothing.copy(), nothing)
    return read_payload(make_header().pack() + body, run, layout, alice.ss58_address, 3)


def reasons(found: dict[int, Rejected]) -> dict[int, Reason]:
    return {uid: rejected.reason for uid, rejected in found.items()}


def with_values(payload: Payload, change: Callable[[SparseUpdate], SparseUpdate], body: str) -> Payload:
    changed = Payload(payload.header, change(payload.update), body)
    changed.__dict__["body_digest"] = body  # as if other records had been sent
    return changed


def test_honest_payloads_are_no_copies(payload: Make) -> None:
    assert find_copies({uid: payload(uid) for uid in range(8)}, frozenset(), [payload(99).update], 0.8) == {}


def test_of_equal_payloads_the_lowest_uid_counts(payload: Make) -> None:
    found = find_copies({7: payload(1), 2: payload(1), 5: payload(1), 3: payload(2)}, frozenset(), [], 0.8)
    assert reasons(found) == {5: Reason.DUPLICATE, 7: Reason.DUPLICATE}
    assert "uid 2" in found[5].detail


def test_a_payload_of_an_earlier_window_is_a_duplicate(payload: Make) -> None:
    past = frozenset({payload(1).body_digest})
    assert reasons(find_copies({4: payload(1), 5: payload(2)}, past, [], 0.8)) == {4: Reason.DUPLICATE}


def test_a_replayed_payload_does_not_shield_or_harm_a_second_one(payload: Make) -> None:
    past = frozenset({payload(1).body_digest})
    found = find_copies({1: payload(1), 2: payload(1), 3: payload(3)}, past, [], 0.8)
    assert reasons(found) == {1: Reason.DUPLICATE, 2: Reason.DUPLICATE}


def test_equal_positions_with_other_values_overlap(payload: Make) -> None:
    def noise(update: SparseUpdate) -> SparseUpdate:
        records = update.records.copy()
        records[80] += 1  # the lower level of the first chunk
        return replace(update, records=records)

    copy = with_values(payload(1), noise, "ff" * 32)
    assert reasons(find_copies({1: payload(1), 2: copy}, frozenset(), [], 0.8)) == {2: Reason.OVERLAP}
    assert "those of uid 1" in find_copies({1: payload(1), 2: copy}, frozenset(), [], 0.8)[2].detail
    found = find_copies({2: copy}, frozenset(), [payload(1).update], 0.8)
    assert reasons(found) == {2: Reason.OVERLAP}
    assert "of the window before" in found[2].detail


def shifted(layout: Layout, count: int) -> Callable[[SparseUpdate], SparseUpdate]:
    """Move the first `count` positions to places of the same chunk that nobody uses."""

    def change(update: SparseUpdate) -> SparseUpdate:
        unused = np.setdiff1d(np.arange(4096), update.indices)
        indices = np.concatenate([unused[:count], update.indices[count:]])
        delta = np.zeros(layout.size, np.float32)
        delta[indices] = 1
        return decompress(layout, SparseLoCo(), compress(layout, SparseLoCo(), np.zeros_like(delta), delta))

    return change


def test_the_limit_is_the_largest_share_that_passes(payload: Make, layout: Layout) -> None:
    whole = len(payload(1).update.indices)
    for moved in (0, 1, whole // 2):
        copy = with_values(payload(1), shifted(layout, moved), "ff" * 32)
        share = (whole - moved) / whole
        assert find_copies({1: payload(1), 2: copy}, frozenset(), [], share) == {}
        assert set(find_copies({1: payload(1), 2: copy}, frozenset(), [], share - 1e-9)) == {2}


def test_zeros_tie_everywhere_so_their_overlap_proves_nothing(zeros: Payload, payload: Make) -> None:
    again = with_values(zeros, lambda update: update, "ff" * 32)
    assert find_copies({1: payload(1), 2: zeros, 3: again}, frozenset(), [zeros.update], 0.8) == {}


def test_a_dense_honest_peer_is_no_copy_at_limit_one(payload: Make) -> None:
    copy = with_values(payload(1), lambda update: update, "ff" * 32)
    assert find_copies({1: payload(1), 2: copy}, frozenset(), [], 1.0) == {}


# --- norms ------------------------------------------------------------------------------------------------


def sized(payload: Payload, norm: float) -> SparseUpdate:
    return replace(payload.update, norms=(norm * 0.6, norm * 0.8))


def test_an_update_far_larger_than_the_others_is_refused(payload: Make) -> None:
    norms = {1: 1.0, 2: 2.0, 3: 3.0, 4: 20.0, 5: 20.1, 6: float("inf")}
    updates = {uid: sized(payload(uid), norm) for uid, norm in norms.items()}
    found = find_outsized(updates, 10.0)  # the median is 11.5
    assert reasons(found) == {6: Reason.NORM}
    found = find_outsized({uid: updates[uid] for uid in (1, 2, 3, 4, 5)}, 6.68)  # the median is 3
    assert reasons(found) == {5: Reason.NORM}
    assert "above 20, 6.68 times the median" in found[5].detail


def test_those_who_send_nothing_make_nobody_outsized(payload: Make, zeros: Payload) -> None:
    updates = {1: sized(payload(1), 1.0), 2: zeros.update, 3: zeros.update, 4: zeros.update}
    assert find_outsized(updates, 10.0) == {}
    assert find_outsized({1: zeros.update}, 10.0) == find_outsized({}, 10.0) == {}


def test_of_two_nobody_is_outsized(payload: Make) -> None:
    assert find_outsized({1: sized(payload(1), 1.0), 2: sized(payload(2), 1e30)}, 10.0) == {}


def test_every_reason_is_either_of_the_slow_or_of_the_wrong() -> None:
    wrong = {
        Reason.BAD_SIGNATURE,
        Reason.WRONG_RUN,
        Reason.WRONG_WINDOW,
        Reason.WRONG_LAYOUT,
        Reason.WRONG_KEY,
        Reason.SHARD_SIZE,
        Reason.SHARD_DIGEST,
        Reason.NOT_CANONICAL,
        Reason.BAD_LEVEL,
        Reason.STALE_BASE,
        Reason.BAD_SYNC_PROOF,
        Reason.NORM,
        Reason.DUPLICATE,
        Reason.OVERLAP,
    }
    assert wrong | MISSING_REASONS == set(Reason)
    assert not wrong & MISSING_REASONS
