"""Payloads from strangers: header, shards, digests, and the proof that θ was held."""

from __future__ import annotations

import struct
from collections.abc import Callable

import numpy as np
import pytest
from bittensor_core import Keypair
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import Reason, Rejected
from protocol.run import Run, SparseLoCo
from protocol.sparseloco.layout import Layout
from protocol.sparseloco.payload import (
    HEADER_BYTES,
    SHARD_BYTES,
    Header,
    Payload,
    read_payload,
    shard_sizes,
    split,
    sync_proof,
)
from protocol.sparseloco.plan import plan_of

Read = Callable[[bytes], Payload]


@pytest.fixture
def read(run: Run, layout: Layout, alice: Keypair) -> Read:
    return lambda data: read_payload(data, run, layout, alice.ss58_address, 3)


@pytest.fixture
def good(make_header: Callable[..., Header], make_body: Callable[[int], bytes]) -> bytes:
    return make_header().pack() + make_body(1)


def test_a_good_payload_is_read(read: Read, good: bytes, make_header: Callable[..., Header]) -> None:
    payload = read(good)
    assert payload.header == make_header()
    assert len(payload.update.indices) == 68
    assert payload.digest == blake3(good).hexdigest()
    assert payload.body_digest == blake3(good[192:]).hexdigest()


def test_the_header_lies_as_specified(
    run: Run, layout: Layout, alice: Keypair, make_header: Callable[..., Header]
) -> None:
    header = make_header(window=2**40 + 5, inner_steps=7, tokens=2**33)
    raw = header.pack()
    assert len(raw) == HEADER_BYTES == 192
    assert raw[:8] == b"WNDR\x01\x00\x00\x00"
    assert struct.unpack_from("<Q", raw, 8) == (2**40 + 5,)
    assert raw[16:48] == run.digest_bytes
    assert raw[48:80] == bytes(alice.public_key)
    assert raw[80:112].hex() == layout.digest
    assert raw[112:144].hex() == header.base_root
    assert raw[144:176].hex() == header.sync_proof
    assert struct.unpack_from("<QQ", raw, 176) == (7, 2**33)


@pytest.mark.parametrize(
    ("start", "new", "reason"),
    [
        (0, b"wNDR", Reason.NOT_CANONICAL),
        (4, b"\x02", Reason.NOT_CANONICAL),
        (5, b"\x01", Reason.NOT_CANONICAL),
        (6, b"\x01", Reason.NOT_CANONICAL),
        (8, b"\x02", Reason.WRONG_WINDOW),
        (8, b"\x04", Reason.WRONG_WINDOW),
        (15, b"\x80", Reason.WRONG_WINDOW),
        (16, b"\x00" * 32, Reason.WRONG_RUN),
        (48, b"\x01" * 32, Reason.BAD_SIGNATURE),
        (80, b"\x02" * 32, Reason.WRONG_LAYOUT),
    ],
)
def test_a_wrong_header_is_refused_with_its_reason(
    read: Read, good: bytes, start: int, new: bytes, reason: Reason
) -> None:
    with pytest.raises(Rejected) as caught:
        read(good[:start] + new + good[start + len(new) :])
    assert caught.value.reason is reason


def test_anothers_payload_is_not_ones_own(run: Run, layout: Layout, bob: Keypair, good: bytes) -> None:
    with pytest.raises(Rejected) as caught:
        read_payload(good, run, layout, bob.ss58_address, 3)
    assert caught.value.reason is Reason.BAD_SIGNATURE


@pytest.mark.parametrize("length", [0, 1, 191, 192, 193, 283])
def test_a_cut_payload_is_not_canonical(read: Read, good: bytes, length: int) -> None:
    with pytest.raises(Rejected) as caught:
        read(good[:length])
    assert caught.value.reason is Reason.NOT_CANONICAL


def test_trailing_bytes_are_not_canonical(read: Read, good: bytes) -> None:
    with pytest.raises(Rejected) as caught:
        read(good + b"\x00")
    assert caught.value.reason is Reason.NOT_CANONICAL


def test_a_payload_of_another_mode_is_not_canonical(
    make_run: Callable[..., Run], layout: Layout, alice: Keypair, make_header: Callable[..., Header], good: bytes
) -> None:
    other = make_run(sparseloco__value_bits=1)
    data = make_header(run_digest=other.digest()).pack() + good[192:]
    with pytest.raises(Rejected) as caught:
        read_payload(data, other, layout, alice.ss58_address, 3)
    assert caught.value.reason is Reason.NOT_CANONICAL


def test_a_bad_level_is_named(read: Read, good: bytes) -> None:
    lower, upper = good[192 + 80], good[192 + 81]
    with pytest.raises(Rejected) as caught:
        read(good[: 192 + 80] + bytes([upper, lower]) + good[192 + 82 :])
    assert caught.value.reason is Reason.BAD_LEVEL


@given(st.binary(max_size=400))
def test_random_bytes_raise_nothing_but_rejected(run: Run, layout: Layout, alice: Keypair, data: bytes) -> None:
    with pytest.raises(Rejected):
        read_payload(data, run, layout, alice.ss58_address, 3)


def test_no_flipped_bit_passes_unnoticed(read: Read, good: bytes) -> None:
    original = read(good)
    for bit in range(8 * len(good)):
        flipped = bytearray(good)
        flipped[bit // 8] ^= 1 << bit % 8
        try:
            payload = read(bytes(flipped))
        except Rejected:
            continue
        assert payload.digest != original.digest
        same_header = payload.header == original.header
        same_update = (
            payload.update.indices.tobytes() == original.update.indices.tobytes()
            and payload.update.values.tobytes() == original.update.values.tobytes()
        )
        assert same_header == (bit >= 8 * 192)
        assert same_update == (bit < 8 * 192)
        assert (payload.body_digest == original.body_digest) == same_update


@pytest.mark.parametrize("limit", [1, 81, 82, 83, 100, 164, 165, 200, 1000, SHARD_BYTES])
@pytest.mark.parametrize("shapes", [[("a", (3, 1400)), ("b", (5,))], [("a", (8 * 4096,)), ("b", (4096 * 3 + 1,))]])
def test_shards_end_between_records_and_hold_everything(
    run: Run, shapes: list[tuple[str, tuple[int, ...]]], limit: int
) -> None:
    layout = Layout.from_shapes(shapes)
    sizes = shard_sizes(layout, run, limit)
    assert sum(sizes) == HEADER_BYTES + plan_of(layout, run.sparseloco).body_bytes
    ends = {0}
    for group in plan_of(layout, run.sparseloco).groups:
        ends |= {max(ends) + group.format.size_bytes * (i + 1) for i in range(group.count)}
    position = 0
    for number, size in enumerate(sizes):
        body = size - HEADER_BYTES if number == 0 else size
        position += body
        assert position in ends
        assert body > 0
        longest = max(group.format.size_bytes for group in plan_of(layout, run.sparseloco).groups)
        assert body <= max(limit, longest)
        if number < len(sizes) - 1:
            following = min(end for end in ends if end > position)
            assert body + following - position > limit


def test_shards_of_a_huge_model_are_counted_without_making_it() -> None:
    run_of_72b = SparseLoCo()
    layout = Layout.from_shapes([(f"layer.{i}", (29568, 8192)) for i in range(300)])

    class Stub:
        sparseloco = run_of_72b

    sizes = shard_sizes(layout, Stub())  # type: ignore[arg-type]
    assert layout.size > 7e10
    assert sum(sizes) == 192 + plan_of(layout, run_of_72b).body_bytes
    assert len(sizes) == 22
    assert all(SHARD_BYTES - 82 < size <= SHARD_BYTES + 192 for size in sizes[:-1])


def test_split_and_join_are_inverse(run: Run, layout: Layout, good: bytes) -> None:
    sizes = shard_sizes(layout, run, 83)
    parts = split(good, sizes)
    assert tuple(len(part) for part in parts) == sizes == (192 + 82, 7 + 6 + 5)
    assert b"".join(parts) == good


def test_the_sync_proof_is_blake3_of_drawn_values_keyed_with_the_hotkey(
    theta: np.ndarray, alice: Keypair, window_hash: bytes
) -> None:
    drawn = blake3(window_hash).digest(8 * 4096)
    values = b""
    for i in range(4096):
        place = int.from_bytes(drawn[8 * i : 8 * i + 8], "little") % len(theta)
        values += struct.pack("<f", theta[place])
    expected = blake3(values, key=bytes(alice.public_key)).hexdigest()
    assert sync_proof(theta, alice.ss58_address, window_hash) == expected


def test_a_sync_proof_fits_one_hotkey_one_window_and_one_state(
    theta: np.ndarray, alice: Keypair, bob: Keypair, window_hash: bytes
) -> None:
    other = theta.copy()
    other[int.from_bytes(blake3(window_hash).digest(8), "little") % len(theta)] += 1
    proofs = {
        sync_proof(theta, alice.ss58_address, window_hash),
        sync_proof(theta, bob.ss58_address, window_hash),
        sync_proof(theta, alice.ss58_address, bytes(32)),
        sync_proof(other, alice.ss58_address, window_hash),
    }
    assert len(proofs) == 4
