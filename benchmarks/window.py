"""What the steps of a window cost on this machine, each as a ratio to one inner training step of the demo model.

    python -m benchmarks.window [--json] [--rounds N]

The baseline and the steps take turns in one process on one thread, so that a busy machine disturbs them alike;
medians are printed with the quartiles of the ratios.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch

from neurons.judge import Judge
from neurons.training.inner import InnerTrainer
from neurons.training.model import bind, build_model, initial_parameters, page_gradient, parameter_shapes
from neurons.training.precision import fastest_dtype
from protocol.ledger.state import state_root
from protocol.run import Run, preset_table, run_from_table
from protocol.sparseloco.aggregate import outer_step
from protocol.sparseloco.compress import compress, decompress
from protocol.sparseloco.layout import Layout
from protocol.sparseloco.plan import plan_of

PEERS = 5


def demo_run() -> Run:
    """The demo preset with stand-ins for what only a founded network has."""
    table = preset_table("demo")
    table["genesis_root"] = table["dataset"]["index_digest"] = "0" * 64
    return run_from_table(table)


def steps_of_a_window(run: Run) -> tuple[Callable[[], object], dict[str, Callable[[], object]]]:
    """The baseline, and what is measured against it, by name."""
    model = build_model(run.model)
    layout = Layout.from_shapes(parameter_shapes(model))
    theta = initial_parameters(run.model, seed=0)
    bind(model, theta)
    shape = run.dataset
    sequences = shape.page_sequences * run.inner.pages_per_step
    dtype = fastest_dtype(model, shape.sequence_tokens, sequences)
    draw = np.random.default_rng(0)
    page = draw.integers(run.model["vocab_size"], size=(sequences, shape.sequence_tokens)).astype(np.int64)
    trainer = InnerTrainer(run.model, run.inner, dtype)
    delta = theta - trainer.train(theta, [page] * run.inner.steps, 0, lambda: False).end
    error = np.zeros(layout.size, np.float32)
    body = compress(layout, run.sparseloco, error.copy(), delta)
    update = decompress(layout, run.sparseloco, body)
    judge = Judge(model, theta, run, dtype)
    applied = theta.copy()
    return lambda: trainer.train(theta, [page], 0, lambda: False), {
        "compress one pseudo-gradient": lambda: compress(layout, run.sparseloco, error.copy(), delta),
        f"open {PEERS} payloads": lambda: [decompress(layout, run.sparseloco, body) for _ in range(PEERS)],
        f"outer step of {PEERS} payloads": lambda: outer_step(applied, [update] * PEERS, run.sparseloco, 0),
        "state root": lambda: state_root(theta),
        "gradient of as many tokens": lambda: page_gradient(model, page, dtype=dtype),
        "loss of as many tokens": lambda: judge.losses(page),
    }


def measure(rounds: int) -> dict[str, object]:
    """Run everything `rounds` times, alternating, and sum it up."""
    torch.set_num_threads(1)
    run = demo_run()
    baseline, steps = steps_of_a_window(run)
    layout = Layout.from_shapes(parameter_shapes(build_model(run.model)))
    base: list[float] = []
    taken: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        base.append(_seconds(baseline))
        for name, step in steps.items():
            taken[name].append(_seconds(step))
    plan = plan_of(layout, run.sparseloco)
    return {
        "parameters": layout.size,
        "payload_bytes": plan.body_bytes,
        "bits_per_value": 8 * plan.body_bytes / plan.values,
        "ratio_fp32": 4 * layout.size / plan.body_bytes,
        "training_step_seconds": statistics.median(base),
        "ratios": {name: _quartiles(np.divide(times, base).tolist()) for name, times in taken.items()},
    }


def _seconds(step: Callable[[], object]) -> float:
    began = time.perf_counter()
    step()
    return time.perf_counter() - began


def _quartiles(values: list[float]) -> list[float]:
    return [round(value, 4) for value in statistics.quantiles(values, n=4)]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--rounds", type=int, default=15, help="times everything is measured (at least 2)")
    options = parser.parse_args()
    result = measure(max(2, options.rounds))
    if options.json:
        print(json.dumps(result))
        return
    print(f"{result['parameters']:,} parameters, payload {result['payload_bytes']:,} bytes: ", end="")
    print(f"{result['bits_per_value']:.2f} bits a value, {result['ratio_fp32']:.1f}x under fp32")
    print(f"one training step takes {1000 * result['training_step_seconds']:.1f} ms; in units of that:")
    for name, (low, middle, high) in result["ratios"].items():
        print(f"  {name:<30} {middle:7.3f}   ({low:.3f} to {high:.3f})")


if __name__ == "__main__":
    main()
