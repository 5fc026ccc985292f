"""The H inner steps of one window: AdamW from θ_W, with moments that persist over windows (protocol §8)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from neurons.errors import ModelError
from neurons.training.model import (
    as_tokens,
    bind,
    bind_gradient,
    build_model,
    check_flat,
    compute_in,
    empty_flat,
    parameter_count,
    token_losses,
)
from neurons.training.schedule import learning_rate
from protocol.run import Inner

_MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True, slots=True)
class InnerResult:
    """What one window of training gave: θ_end (fp32, shape [P], the receiver's own), the steps done, the
    tokens read, and the loss before each step in nats."""

    end: np.ndarray
    steps: int
    tokens: int
    losses: tuple[float, ...]


class InnerTrainer:
    """One miner's model and optimizer. Blocks its thread while it trains; used by one thread at a time.

    Memory: parameters, gradient and two moments in fp32, each one flat array that the model's tensors view, so
    that one fused AdamW step covers all parameters and the state is saved as it lies.
    """

    def __init__(self, model_config: Mapping[str, object], inner: Inner, dtype: torch.dtype) -> None:
        """Build the model of `model_config`; `dtype` (fp32 or bf16) is what it computes in, never what it stores.
        Raises `ConfigError`."""
        self._inner = inner
        self._dtype = dtype
        self._model = build_model(model_config).train()
        count = parameter_count(self._model)
        self._gradient = empty_flat(count)
        self._flat = torch.nn.Parameter(torch.empty(count))
        self._optimizer = torch.optim.AdamW(
            [self._flat],
            betas=(inner.beta1, inner.beta2),
            eps=inner.epsilon,
            weight_decay=inner.weight_decay,
            fused=True,  # 0.9 ms a step for 0.75 M parameters on one thread; foreach per parameter took 2.6 ms
        )
        self._moments = {"step": torch.zeros(())} | {name: torch.zeros(count) for name in _MOMENTS}
        self._optimizer.state[self._flat] = self._moments

    def reset(self) -> None:
        """Forget the moments: what led to NaN would lead there again."""
        for moment in self._moments.values():
            moment.zero_()

    def train(
        self,
        start: np.ndarray,
        batches: Sequence[np.ndarray],
        window: int,
        should_stop: Callable[[], bool],
    ) -> InnerResult:
        """Train from `start` (fp32, shape [P], not modified) on `batches` (each int64, shape [B, L]) of `window`,
        counted from the first window of the run.

        Does one step a batch and at most H. Before every step but the first it asks `should_stop`: a miner whose
        window closes submits what it has (§3). The same inputs give the same bits on one thread of one machine.
        Raises `ModelError` for arrays that do not fit the model.
        """
        check_flat(start, self._flat.numel())
        end = empty_flat(self._flat.numel())
        np.copyto(end, start)
        bind(self._model, end)
        self._flat.data = torch.from_numpy(end)
        losses: list[float] = []
        tokens = 0
        with _denormals_flushed():
            for step, batch in enumerate(batches[: self._inner.steps]):
                if step and should_stop():
                    break
                losses.append(self._step(as_tokens(batch), window, step))
                tokens += batch.size
        return InnerResult(end, len(losses), tokens, tuple(losses))

    def state(self) -> dict[str, np.ndarray]:
        """Copies of what must survive a restart: `step` (shape []) and the moments `exp_avg` and `exp_avg_sq`
        (shape [P]), all fp32. With θ_W from the ledger they continue the training to the bit."""
        return {name: tensor.numpy().copy() for name, tensor in self._moments.items()}

    def load_state(self, state: Mapping[str, np.ndarray]) -> None:
        """Continue from what `state` returned. Raises `ModelError`, and changes nothing, when it does not fit."""
        for name, tensor in self._moments.items():
            saved = state.get(name)
            if saved is None or saved.dtype != np.float32 or saved.shape != tuple(tensor.shape):
                raise ModelError(f"the saved optimizer state has no {name} that fits this model: remove it to go on")
        for name, tensor in self._moments.items():
            tensor.copy_(torch.tensor(state[name]))

    def _step(self, batch: torch.Tensor, window: int, step: int) -> float:
        inner = self._inner
        bind_gradient(self._model, self._gradient)
        with compute_in(self._dtype):
            loss = token_losses(self._model, batch).mean()
        loss.backward()  # type: ignore[no-untyped-call]
        self._flat.grad = torch.from_numpy(self._gradient)
        norm = torch.nn.utils.clip_grad_norm_(self._flat, inner.gradient_clip).item()
        if math.isfinite(norm):  # else one overflow would stay in the moments for the rest of the run
            self._optimizer.param_groups[0]["lr"] = learning_rate(
                window,
                step,
                steps_per_window=inner.steps,
                peak=inner.learning_rate,
                warmup_steps=inner.warmup_steps,
                decay_steps=inner.decay_steps,
                final_fraction=inner.final_learning_rate_share,
            )
            self._optimizer.step()
        return loss.item()


@contextmanager
def _denormals_flushed() -> Iterator[None]:
    """Denormals count as zero on this thread inside the block: fp32 training is up to 7 times slower with them.
    Off again in any case, because aggregation is exact only with IEEE arithmetic (§13)."""
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)
