"""The baseline of benchmarks/codec.py does what it is compared with, and the benchmark gives what it promises."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks import cases, codec, torch_chain
from protocol.sparseloco.aggregate import outer_step
from protocol.sparseloco.compress import SparseUpdate, decompress
from protocol.sparseloco.payload import HEADER_BYTES
from protocol.sparseloco.plan import Group, plan_of

ELEMENTS = 300_000


@pytest.fixture(scope="module")
def case() -> cases.Case:
    torch.set_num_threads(1)
    return cases.made_up_case("150m", ELEMENTS, distinct=4)


def test_twelve_bits_hold_every_position_of_a_chunk() -> None:
    for k in (64, 5):
        positions = torch.randint(0, 4096, (7, k))
        packed = torch_chain.pack12(positions)
        assert packed.shape == (7, 3 * ((k + 1) // 2))
        assert torch.equal(torch_chain.unpack12(packed, k), positions)


def test_the_chain_sends_the_positions_that_the_protocol_sends(case: cases.Case) -> None:
    pieces = plan_of(case.layout, case.run.sparseloco).groups
    for payload, packed in zip(case.payloads[:4], case.packed, strict=False):
        sent = []
        for piece, part in zip(pieces, packed, strict=True):
            positions = torch_chain.unpack12(part.positions, piece.format.k)
            starts = piece.offset + piece.format.length * torch.arange(piece.count)[:, None]
            sent.append((positions + starts).sort(dim=1).values.flatten())
        update = decompress(case.layout, case.run.sparseloco, payload[HEADER_BYTES:])
        np.testing.assert_array_equal(torch.cat(sent).numpy(), update.indices)


def test_what_the_chain_sends_and_what_it_keeps_add_up(case: cases.Case) -> None:
    pieces = plan_of(case.layout, case.run.sparseloco).groups
    error = torch.from_numpy(case.kept.copy())
    whole = 0.95 * error + torch.from_numpy(case.delta)
    packed = torch_chain.encode(pieces, error, torch.from_numpy(case.delta), 0.95)
    for piece, part in zip(pieces, packed, strict=True):
        positions, values = torch_chain.decode(piece.format.k, part)
        kept = piece.chunks(error).scatter_add(1, positions, values)
        torch.testing.assert_close(kept, piece.chunks(whole), rtol=1e-5, atol=1e-5)
        sent = piece.chunks(whole).gather(1, positions)
        assert float((sent - values).norm() / sent.norm()) < 0.5
        assert torch.equal(values.sign(), sent.sign())


@pytest.mark.parametrize("average", ["all", "contributors"])
def test_both_sides_take_the_same_step_for_the_same_values(case: cases.Case, average: str) -> None:
    scheme = case.run.sparseloco.model_copy(update={"average": average})
    pieces = plan_of(case.layout, scheme).groups
    updates = [decompress(case.layout, scheme, payload[HEADER_BYTES:]) for payload in case.payloads[:3]]
    updates[1] = decompress(case.layout, scheme, _louder(case, pieces))
    packed = [[_as_packed(piece, update) for piece in pieces] for update in updates]
    ours, chain, told = case.theta.copy(), torch.from_numpy(case.theta.copy()), torch.from_numpy(case.theta.copy())
    outer_step(ours, updates, scheme, 0)
    torch_chain.aggregate(pieces, chain, packed, scheme.alpha(0), average == "contributors")
    torch_chain.aggregate(
        pieces, told, packed, scheme.alpha(0), average == "contributors", torch_chain.norms_of(pieces, packed)
    )
    assert np.abs(ours - case.theta).max() > 0.1
    np.testing.assert_allclose(chain.numpy(), ours, rtol=1e-5, atol=1e-5)
    assert torch.equal(told, chain)


def _louder(case: cases.Case, pieces: tuple[Group, ...]) -> bytes:
    """A payload whose levels are higher by four octaves, so that it is clipped."""
    records = np.frombuffer(case.payloads[1][HEADER_BYTES:], np.uint8).copy()
    for piece in pieces:
        piece.records(records)[:, -2:] += 32
    return records.tobytes()


def _as_packed(piece: Group, update: SparseUpdate) -> torch_chain.Packed:
    """One piece of a protocol update as the chain would hold it if it had a bin for every value there is."""
    indices, values = update.entries()
    inside = (indices >= piece.offset) & (indices < piece.offset + piece.elements)
    shape = (piece.count, piece.format.k)
    positions = torch.from_numpy((indices[inside] - piece.offset) % piece.format.length).view(shape)
    table, codes = np.unique(values[inside], return_inverse=True)
    assert len(table) <= 256
    return torch_chain.Packed(
        torch_chain.pack12(positions), torch.from_numpy(codes.astype(np.uint8)).view(shape), torch.from_numpy(table)
    )


def test_pairwise_lists_and_bitmaps_count_the_same_overlap(case: cases.Case) -> None:
    duels = dict(codec.duels(case))
    ours = duels["overlap"].ours()
    assert 0 < ours[0, 1] < ours[0, 0]
    for name in ("overlap", "overlap sorted"):
        np.testing.assert_array_equal(ours, duels[name].torch())


def test_every_duel_is_fought_and_trials_leave_no_trace(case: cases.Case) -> None:
    fought = []
    for name, duel in codec.duels(replace(case, theta=case.theta.copy())):
        chain, ours = codec.compare(duel, codec.Scale(ELEMENTS, seconds=0.0, rounds=2, windows=0))
        assert len(chain) == len(ours) == 2
        assert min(chain + ours) > 0
        fought.append(name)
    assert fought == [
        "encode",
        "aggregate",
        "aggregate validated",
        "aggregate all",
        "aggregate all validated",
        "revert",
        "overlap",
        "overlap sorted",
    ]


def test_a_payload_costs_its_records_and_little_more() -> None:
    cost = codec.payload_cost("demo")
    run = cases.run_of("demo")
    assert cost["records_bytes"] == plan_of(cases.layout_of(run), run.sparseloco).body_bytes
    assert cost["records_bytes"] < cost["payload_bytes"] < cost["records_bytes"] + 2000
    assert cost["ratio_fp32"] == pytest.approx(4 * cost["parameters"] / cost["payload_bytes"], abs=0.01)


@pytest.mark.skipif(not codec._CLEAR_REFS.exists(), reason="needs Linux's /proc")
def test_extra_memory_is_what_a_call_takes_beyond_what_it_returns() -> None:
    size = 128 * 2**20  # even half of it is too much for memory that the allocator kept from before

    def work() -> np.ndarray:
        scratch = np.ones(size, np.uint8)
        return scratch[: size // 2].copy()

    assert codec.extra_bytes(work, lambda: None, size // 2) == pytest.approx(size, rel=0.05)
