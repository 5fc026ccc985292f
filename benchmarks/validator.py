"""What judging costs a validator, against the bare passes through the model that it needs and against other ways.

    python -m benchmarks.validator [--json] [--quick] [--model demo|5m]

64 payloads, 20 of them measured, the pages of the demo preset, on the demo model and one of 5 M parameters; one thread.
All ways take turns in one process; a ratio is taken turn by turn and printed as its median with its quartiles. Seconds
are the processor's, so that what else runs on the machine counts as little as may be.

- `measuring` is what the published systems do for a peer: losses on its own pages before, and on its own and the random
  ones with its payload applied in place; without gradients. Against the same forward passes in full batches.
- `copying` does the same on a deep copy of the model for each peer. Against `measuring`.
- `window` is all that a validator does here: gradients on the random pages, which rank all 64, and for each of the 20
  the gradients of its own pages and the losses after its step. Against the same backward and forward passes.
- `ranking` is the first-order part of it alone, for all 64: on the random pages and on the own pages of the 20, with
  which it has the cross-gain matrix and the unique work of these. Against `measuring` for 20.
- `window` against `measuring`, and against itself with only the 20 payloads there, says what all this costs in all.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from benchmarks.cases import run_of
from benchmarks.convergence import plans
from neurons.judge import Judge
from neurons.pace import Budget
from neurons.training.model import (
    bind,
    build_model,
    initial_parameters,
    model_layout,
    page_gradient,
    parameter_shapes,
    sequence_losses,
)
from neurons.training.precision import fastest_dtype
from protocol.run import Run
from protocol.sparseloco.aggregate import Trial
from protocol.sparseloco.compress import SparseUpdate, compress, decompress

MODELS = ("demo", "5m")
FULL_BATCH = 16
"""Sequences of a full batch: no size was faster, on either model."""

Pages = list[np.ndarray]


@dataclass(frozen=True, slots=True)
class Scale:
    """How much is judged, and how often everything is measured."""

    payloads: int
    measured: int
    rounds: int


FULL = Scale(64, 20, 5)
QUICK = Scale(6, 2, 2)


class Bench:
    """One model with what is judged on it."""

    def __init__(self, run: Run, scale: Scale) -> None:
        self.run, self.scale = run, scale
        self.model = build_model(run.model)
        self.theta = initial_parameters(run.model, seed=0)
        bind(self.model, self.theta)
        shape = run.dataset
        dtype = fastest_dtype(self.model, shape.sequence_tokens, shape.page_sequences)
        self.judge = Judge(self.model, self.theta, run, dtype)
        self.draw = np.random.default_rng(0)
        self.updates = {uid: self._payload() for uid in range(scale.payloads)}
        self.measured = range(scale.measured)
        self.random = self._pages(run.gauntlet.random_pages)
        self.own = {uid: self._pages(run.gauntlet.own_pages) for uid in self.measured}

    def _payload(self) -> SparseUpdate:
        layout = model_layout(self.run.model)
        delta = self.draw.standard_normal(layout.size, np.float32) * np.float32(1e-3)
        error = np.zeros(layout.size, np.float32)
        return decompress(layout, self.run.sparseloco, compress(layout, self.run.sparseloco, error, delta))

    def _pages(self, count: int) -> Pages:
        shape = (self.run.dataset.page_sequences, self.run.dataset.sequence_tokens)
        vocabulary = int(self.run.model["vocab_size"])
        return [self.draw.integers(vocabulary, size=shape).astype(np.int64) for _ in range(count)]

    # --- what a validator here does -----------------------------------------------------------------------

    def window(self, payloads: int) -> object:
        """Judge so many payloads, as many of them measured as there are to measure."""
        updates = {uid: self.updates[uid] for uid in range(payloads)}
        return self.judge.evaluate(
            0, updates, self.measured, self.random, self.own, Budget.unlimited(), at_once=len(self.random)
        )

    def ranking(self) -> object:
        """First-order gains of all payloads, on the random pages and on the own ones of those to be measured."""
        trials = self.judge.trials(0, self.updates)
        pages = [self.random, *self.own.values()]
        return [self.judge.slopes(each, trials, Budget.unlimited()) for each in pages]

    # --- other ways ---------------------------------------------------------------------------------------

    def measuring(self, of_one: Callable[[Trial, Pages], object]) -> object:
        """Losses before, of all in full batches, and then those of each peer as `of_one` finds them."""
        self._losses(self.random)
        self._losses([page for pages in self.own.values() for page in pages])
        trials = self.judge.trials(0, self.updates)
        return [of_one(trials[uid], [*pages, *self.random]) for uid, pages in self.own.items()]

    def in_place(self, trial: Trial, pages: Pages) -> object:
        """Losses with the payload applied to θ and taken back."""
        return self.judge.after(trial, pages, Budget.unlimited())

    def on_a_copy(self, trial: Trial, pages: Pages) -> object:
        """Losses of a deep copy of the model to which the payload was applied: every parameter is copied once."""
        step = self.theta.copy()
        trial.apply(step)
        old = list(self.model.parameters())
        parts = torch.from_numpy(step).split([parameter.numel() for parameter in old])
        new = {id(p): torch.nn.Parameter(part.view(p.shape)) for p, part in zip(old, parts, strict=True)}
        model = copy.deepcopy(self.model, new)
        return sequence_losses(model, np.concatenate(pages), dtype=self.judge.dtype, batch_sequences=FULL_BATCH)

    # --- bare passes --------------------------------------------------------------------------------------

    def forward_passes(self) -> object:
        """The forward passes of `measuring`."""
        self._losses(self.random)
        self._losses([page for pages in self.own.values() for page in pages])
        return [self._losses([*pages, *self.random]) for pages in self.own.values()]

    def all_passes(self) -> object:
        """The passes of `window`, with full batches for the forward ones. A gradient is one page's."""
        for page in [*self.random, *(page for pages in self.own.values() for page in pages)]:
            page_gradient(self.model, page, dtype=self.judge.dtype, batch_sequences=FULL_BATCH)
        return [self._losses([*pages, *self.random]) for pages in self.own.values()]

    def _losses(self, pages: Sequence[np.ndarray]) -> np.ndarray:
        sequences = np.concatenate(pages)
        return sequence_losses(self.model, sequences, dtype=self.judge.dtype, batch_sequences=FULL_BATCH)


def measure(name: str, scale: Scale) -> dict[str, Any]:
    """Everything on one model."""
    run = run_of("demo")
    if name == "5m":
        larger = next(plan.scale.model for plan in plans() if plan.scale.name == name)
        run = run.model_copy(update={"model": larger})
    return measure_run(name, run, scale)


def measure_run(name: str, run: Run, scale: Scale) -> dict[str, Any]:
    """As `measure`, on the model of any run with the pages of the demo."""
    torch.set_num_threads(1)
    bench = Bench(run, scale)
    ways: dict[str, Callable[[], object]] = {
        "forward": bench.forward_passes,
        "passes": bench.all_passes,
        "measuring": partial(bench.measuring, bench.in_place),
        "copying": partial(bench.measuring, bench.on_a_copy),
        "ranking": bench.ranking,
        "window": partial(bench.window, scale.payloads),
        "few": partial(bench.window, scale.measured),
    }
    taken: dict[str, list[float]] = {way: [] for way in ways}
    for number in range(scale.rounds + 1):
        for way, step in ways.items():
            began = time.process_time()
            step()
            if number:  # the first round warms everything up
                taken[way].append(time.process_time() - began)

    def ratio(way: str, baseline: str) -> list[float]:
        quotients = np.divide(taken[way], taken[baseline]).tolist()
        return [round(value, 4) for value in statistics.quantiles(quotients, n=4)]

    seconds = {way: statistics.median(times) for way, times in taken.items()}
    return {
        "model": name,
        "parameters": sum(int(np.prod(shape)) for _, shape in parameter_shapes(bench.model)),
        "dtype": str(bench.judge.dtype).removeprefix("torch."),
        "payloads": scale.payloads,
        "measured": scale.measured,
        "seconds": {way: round(value, 4) for way, value in seconds.items()},
        "peers_per_second": {
            way: round(scale.measured / seconds[way], 3) for way in ("measuring", "copying", "window")
        },
        "ratios": {
            "measuring / bare forward passes": ratio("measuring", "forward"),
            "copying / measuring": ratio("copying", "measuring"),
            "window / bare passes": ratio("window", "passes"),
            "ranking / measuring": ratio("ranking", "measuring"),
            "window / measuring": ratio("window", "measuring"),
            "window / window of the measured alone": ratio("window", "few"),
        },
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object a model")
    parser.add_argument("--quick", action="store_true", help="a few payloads: says nothing about the figures")
    parser.add_argument("--model", choices=MODELS, help="only this one")
    options = parser.parse_args()
    for name in (options.model,) if options.model else MODELS:
        result = measure(name, QUICK if options.quick else FULL)
        if options.json:
            print(json.dumps(result), flush=True)
            continue
        print(f"{name}: {result['parameters']:,} parameters, {result['dtype']}; ", end="")
        print(f"{result['payloads']} payloads, {result['measured']} measured")
        for way, seconds in result["seconds"].items():
            print(f"  {way:<40} {seconds:8.3f} s")
        for way, rate in result["peers_per_second"].items():
            print(f"  {way:<40} {rate:8.2f} measured peers a second")
        for title, (low, middle, high) in result["ratios"].items():
            print(f"  {title:<40} {middle:8.3f}   ({low:.3f} to {high:.3f})", flush=True)


if __name__ == "__main__":
    main()
