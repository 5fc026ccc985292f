"""The inner learning rate: a pure function of where in the run a step lies."""

from __future__ import annotations

import math


def learning_rate(
    window: int,
    step: int,
    *,
    steps_per_window: int,
    peak: float,
    warmup_steps: int,
    decay_steps: int,
    final_fraction: float,
) -> float:
    """The rate of inner step `step` (0-based) of `window`, counted as global step window·H + step.

    It rises in equal parts and reaches `peak` at the last of `warmup_steps`, follows a half cosine down to
    `final_fraction · peak` over the next `decay_steps`, and stays there. A miner that missed windows, or
    stopped one early, takes the rate of everybody else.
    """
    at = window * steps_per_window + step
    if at < warmup_steps:
        return peak * (at + 1) / warmup_steps
    if at >= warmup_steps + decay_steps:
        return peak * final_fraction
    down = (1.0 + math.cos(math.pi * (at - warmup_steps) / decay_steps)) / 2.0
    return peak * (final_fraction + (1.0 - final_fraction) * down)
