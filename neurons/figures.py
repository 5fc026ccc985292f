"""What a run asks of a machine and of its connection: arithmetic from its constants, nothing is allocated."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch._subclasses.fake_tensor import FakeTensorMode  # the one way to trace a CPU step without its memory
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from neurons.training.model import (
    build_model,
    compute_in,
    imagined,
    parameter_count,
    parameter_shapes,
    token_losses,
    vocabulary_size,
)
from protocol.run import Run
from protocol.sparseloco.layout import Layout
from protocol.sparseloco.payload import shard_sizes
from storage.dataset import token_bytes_for
from storage.seal import SEAL_OVERHEAD_BYTES

_MINER_FLOATS = 7
"""fp32 numbers a parameter at a miner's peak: θ_W, gradient, two moments and error feedback, and two more: where
training ended and the difference while it compresses, copies of the moments while it saves."""

_SAVED_FLOATS = 6
"""fp32 numbers a parameter that a miner keeps at the peak: moments and error feedback, the last ones and the next."""

_PROCESS_BYTES = 600 << 20
"""A process that has imported torch and transformers and holds no model."""


@dataclass(frozen=True, slots=True)
class Step:
    """One inner step, traced: `saved_bytes` is what its forward pass keeps for its backward pass, `flops` the
    arithmetic of both."""

    saved_bytes: int
    flops: int


@dataclass(frozen=True, slots=True)
class Figures:
    """What one miner of a run handles. A payload is counted as it is uploaded, encrypted, without its 1 kB of seal;
    `read_bytes` are its pages of one window, `gather_bytes` what the others on a full list have sent, `saved_bytes`
    what lies in its folder at the peak: its state, and what those on full lists, reserves too, have sealed."""

    parameters: int
    payload_bytes: int
    shards: int
    tokens_per_window: int
    read_bytes: int
    gather_bytes: int
    checkpoint_bytes: int
    saved_bytes: int


def figures_of(run: Run) -> Figures:
    """The figures of `run`; `ConfigError` when its model cannot be built."""
    model = imagined(run.model)
    layout = Layout.from_shapes(parameter_shapes(model))
    shards = shard_sizes(layout, run)
    payload = sum(shards) + SEAL_OVERHEAD_BYTES * len(shards)
    tokens = run.pages_per_window * run.dataset.page_sequences * run.dataset.sequence_tokens
    return Figures(
        parameters=layout.size,
        payload_bytes=payload,
        shards=len(shards),
        tokens_per_window=tokens,
        read_bytes=tokens * token_bytes_for(vocabulary_size(model)),
        gather_bytes=run.gauntlet.gather_size * payload,
        checkpoint_bytes=4 * layout.size,
        saved_bytes=4 * _SAVED_FLOATS * layout.size + (run.gauntlet.gather_size + run.gauntlet.reserve_size) * payload,
    )


def traced_step(run: Run, pages: int, dtype: torch.dtype) -> Step:
    """What a forward and backward pass over `pages` pages at once costs, from one that is only imagined."""
    storages: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        storages[id(storage)] = storage  # held, so that no other gets its identity
        return tensor

    sequences = pages * run.dataset.page_sequences
    with FakeTensorMode():
        model = build_model(run.model)
        own = [parameter.untyped_storage() for parameter in model.parameters()]
        batch = torch.zeros((sequences, run.dataset.sequence_tokens), dtype=torch.int64)
        with FlopCounterMode(display=False) as counter, compute_in(dtype):
            with saved_tensors_hooks(keep, lambda tensor: tensor):
                loss = token_losses(model, batch).mean()
            loss.backward()  # type: ignore[no-untyped-call]
    identities = {id(storage) for storage in own}
    saved = sum(storage.nbytes() for identity, storage in storages.items() if identity not in identities)
    return Step(saved, counter.get_total_flops())


def miner_memory_bytes(run: Run, dtype: torch.dtype) -> int:
    """What a miner of `run` needs at its peak, within about a tenth: its arrays, what a step keeps, and the logits
    three times more in fp32, which the cross entropy and its gradient make."""
    model = imagined(run.model)
    step_tokens = run.inner.pages_per_step * run.dataset.page_sequences * run.dataset.sequence_tokens
    logits = 4 * step_tokens * vocabulary_size(model)
    saved = traced_step(run, run.inner.pages_per_step, dtype).saved_bytes
    return _PROCESS_BYTES + 4 * _MINER_FLOATS * parameter_count(model) + saved + 3 * logits
