"""Which of fp32 and bf16 trains faster on this machine, found by a probe of about a second."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import numpy as np
import torch

from neurons.training.model import as_tokens, compute_in, token_losses, vocabulary_size

_DTYPES = (torch.float32, torch.bfloat16)


def fastest_dtype(
    model: torch.nn.Module,
    sequence_tokens: int,
    batch_sequences: int,
    budget_seconds: float = 1.0,
    timer: Callable[[], float] = time.thread_time,
) -> torch.dtype:
    """`torch.float32` or `torch.bfloat16`, whichever takes less time for a forward and backward pass over
    `batch_sequences` sequences of `sequence_tokens`; fp32 when they are equal.

    Which one wins depends on the CPU, the size and the length of a sequence, so nothing but a trial tells. The default
    `timer` is the CPU time of the calling thread, which other processes do not disturb; it sees all of the work
    because a neuron gives torch one thread. One pass of each warms up, then they alternate until
    `budget_seconds` are spent, at least once each; medians are compared. The model keeps no gradient.
    """
    drawn = np.random.default_rng(0).integers(vocabulary_size(model), size=(batch_sequences, sequence_tokens))
    batch = as_tokens(drawn.astype(np.int64))
    for dtype in _DTYPES:
        _pass(model, batch, dtype)
    seconds: dict[torch.dtype, list[float]] = {dtype: [] for dtype in _DTYPES}
    began = timer()
    while True:
        for dtype in _DTYPES:
            before = timer()
            _pass(model, batch, dtype)
            seconds[dtype].append(timer() - before)
        if timer() - began >= budget_seconds:
            return min(_DTYPES, key=lambda dtype: statistics.median(seconds[dtype]))


def _pass(model: torch.nn.Module, batch: torch.Tensor, dtype: torch.dtype) -> None:
    with compute_in(dtype):
        loss = token_losses(model, batch).mean()
    loss.backward()  # type: ignore[no-untyped-call]
    model.zero_grad(set_to_none=True)
