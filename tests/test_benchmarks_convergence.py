"""The convergence benchmark: what its rows compute, and that a stopped run goes on. No loss is asserted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import convergence
from benchmarks.convergence import DEFAULT, DILOCO, MUON, DiLoCo, Plan, Results, Scale, Text, run_all, run_row
from neurons.training.model import initial_parameters, parameter_shapes
from protocol.run import SparseLoCo, preset_table
from protocol.sparseloco.layout import CHUNK, Layout
from protocol.sparseloco.payload import HEADER_BYTES
from protocol.sparseloco.plan import plan_of

_MODEL = preset_table("demo")["model"] | {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1}
_SCALE = Scale(
    "demo",
    _MODEL,
    steps=4,
    learning_rate=1e-3,
    batch_sequences=1,
    warmup_steps=1,
    sequence_tokens=16,
    evaluate_every=2,
    held_out_sequences=2,
)
_STREAM = np.arange(16 * 40, dtype=np.uint32) % 2048


def test_each_tile_of_a_matrix_becomes_one_chunk() -> None:
    layout = Layout.from_shapes([("vector", (100,)), ("matrix", (128, 192)), ("uneven", (64, 65))])
    order = convergence.tiled_order(layout)
    assert np.array_equal(np.sort(order), np.arange(layout.size))
    matrix = layout.parameters[1]
    for number in range(matrix.chunks):
        start = matrix.offset + number * CHUNK
        rows, columns = np.divmod(order[start : start + CHUNK] - matrix.offset, 192)
        assert set(rows // 64) == {number // 3}
        assert set(columns // 64) == {number % 3}
    kept = np.r_[0 : matrix.offset, matrix.offset + matrix.size : layout.size]
    assert np.array_equal(order[kept], kept)


def test_diloco_steps_as_sgd_with_nesterov_momentum_does() -> None:
    draw = np.random.default_rng(0)
    theta = draw.standard_normal(50).astype(np.float32)
    ours, theirs = theta.copy(), torch.nn.Parameter(torch.tensor(theta))
    outer = DiLoCo(len(theta), 0.7)
    sgd = torch.optim.SGD([theirs], lr=0.7, momentum=convergence.OUTER_MOMENTUM, nesterov=True)
    for window in range(4):
        deltas = draw.standard_normal((convergence.PEERS, len(theta))).astype(np.float32)
        assert outer.step(ours, list(deltas), window) == 4 * len(theta)
        theirs.grad = torch.tensor(deltas.mean(axis=0))
        sgd.step()
    np.testing.assert_allclose(ours, theirs.detach().numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("muon_rate", [0.0, 1e-3])
def test_a_sparse_row_counts_whole_payloads_and_changes_what_it_sends(muon_rate: float) -> None:
    row = replace(DEFAULT, window_steps=2, muon_rate=muon_rate)
    run = run_row(_SCALE, row, Text.of(_STREAM, _SCALE), 0)
    layout = Layout.from_shapes(parameter_shapes(convergence.build_model(_MODEL)))
    payload = HEADER_BYTES + plan_of(layout, SparseLoCo()).body_bytes
    assert run["bytes"] == [0, payload, 2 * payload]
    assert run["tokens"] == [0, 128, 256]
    assert len(set(run["loss"])) == 3


def test_muon_moves_hidden_matrices_and_leaves_the_rest_to_adamw() -> None:
    start = initial_parameters(_MODEL, 0)
    layout = Layout.from_shapes(parameter_shapes(convergence.build_model(_MODEL)))
    batches = list(Text.of(_STREAM, _SCALE).training[:2, None])
    rates = (1e-12, 1e-3)
    ends = [convergence.MuonTrainer(_MODEL, _SCALE.inner(2), r).train(start, batches, 0, lambda: False) for r in rates]
    slow, fast = (layout.tensors(result.end) for result in ends)
    moved = {name for name in slow if not np.array_equal(slow[name], fast[name])}
    assert {name for name in slow if "proj" in name} <= moved
    before = layout.tensors(start)
    assert all(np.allclose(slow[name], before[name], atol=1e-8) for name in slow if "proj" in name)
    assert not np.allclose(slow["model.embed_tokens.weight"], before["model.embed_tokens.weight"], atol=1e-5)


def test_a_seed_gives_every_row_the_same_batches_and_never_a_sequence_twice() -> None:
    text = Text.of(_STREAM, _SCALE)
    first, again, other = (text.batches(_SCALE, seed) for seed in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert len({row.tobytes() for row in first.reshape(-1, 16)}) == 4 * convergence.PEERS
    assert not {row.tobytes() for row in text.held_out} & {row.tobytes() for row in text.training}


def test_what_the_file_holds_is_not_run_again_unless_its_settings_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[tuple[str, int]] = []

    def pretend(scale: Scale, row: convergence.Row, text: Text, seed: int) -> dict[str, object]:
        done.append((row.name, seed))
        return {"model": scale.name, "row": row.name, "seed": seed, "seconds": 1.0, "bytes": [0, 5], "loss": [9.0, 8.0]}

    monkeypatch.setattr(convergence, "run_row", pretend)
    monkeypatch.setattr(convergence, "read_text", lambda vocabulary: _STREAM)
    plan = Plan(_SCALE, deciding=(DEFAULT, DILOCO), others=(MUON,), seeds=2)
    file = tmp_path / "results.json"

    def run(plan: Plan) -> list[tuple[str, int]]:
        done.clear()
        run_all([plan], Results(file, [plan]), lambda line: None)
        return list(done)

    first = [(DEFAULT.name, 0), (DILOCO.name, 0), (MUON.name, 0), (DEFAULT.name, 1), (DILOCO.name, 1)]
    assert run(replace(plan, seeds=1)) == first[:3]
    assert run(plan) == first[3:]
    assert run(plan) == []
    changed = replace(plan, deciding=(DEFAULT, replace(DILOCO, outer_rate=0.1)))
    assert run(changed) == [(DILOCO.name, 0), (DILOCO.name, 1)]
    assert len(run(replace(plan, scale=replace(_SCALE, steps=8)))) == 5
