from __future__ import annotations

import resource

import numpy as np
import pytest
import torch

from neurons.draft import changed, check_draft, read_constants
from neurons.figures import figures_of, miner_memory_bytes, traced_step
from neurons.training.model import build_model, parameter_count, token_losses
from protocol.run import PRESETS, preset_table


def test_a_run_of_72_billion_parameters_is_counted_without_allocating_them() -> None:
    _, run = read_constants("covenant-72b")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    figures = figures_of(run)
    assert figures.parameters == 72_748_376_064
    assert figures.payload_bytes / figures.parameters * 8 == pytest.approx(0.160, abs=0.001)
    assert miner_memory_bytes(run, torch.bfloat16) > 28 * figures.parameters
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2 << 20  # in KiB


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_has_figures(preset: str) -> None:
    _, run = read_constants(preset)
    figures = figures_of(run)
    assert figures.tokens_per_window == run.inner.steps * run.inner.pages_per_step * run.dataset.page_sequences * (
        run.dataset.sequence_tokens
    )
    assert figures.gather_bytes == run.gauntlet.gather_size * figures.payload_bytes
    assert figures.checkpoint_bytes == 4 * figures.parameters


def test_what_a_traced_step_keeps_is_what_a_real_one_keeps() -> None:
    _, run = read_constants("demo")
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    model = build_model(run.model)
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    batch = torch.zeros((2 * run.dataset.page_sequences, run.dataset.sequence_tokens), dtype=torch.int64)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        token_losses(model, batch).mean()
    real = sum(storage.nbytes() for pointer, storage in kept.items() if pointer not in own)
    traced = traced_step(run, 2, torch.float32)
    assert traced.saved_bytes == pytest.approx(real, rel=0.1)
    tokens = int(np.prod(batch.shape))
    assert traced.flops == pytest.approx(6 * parameter_count(model) * tokens, rel=0.1)


def test_memory_grows_with_the_batch_and_with_the_model() -> None:
    table = preset_table("demo")
    plain = miner_memory_bytes(check_draft(table), torch.float32)
    for change in ("inner.pages_per_step=8", "model.hidden_size=256", "model.vocab_size=4096"):
        assert miner_memory_bytes(check_draft(changed(table, [change])), torch.float32) > plain
