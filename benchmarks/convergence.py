"""How well the ways to train together learn from the same tokens, and what each peer sends for it.

    python -m benchmarks.convergence [--json] [--results FILE] [--model NAME] [--draw FOLDER] [--no-run] [--quick]

Four peers are trained in turn in one process on one thread. Within a model and a seed every row starts from the same
parameters and reads the same sequences in the same order: step t of peer p is the same batch in all of them. Rows
differ from the default row in one thing each. The text is the running Python's standard library; its tail is held out.

Every finished run is written to the results file at once, and what is there is not run again: a run that was stopped
goes on where it was. `--no-run` only sums up and draws what the file holds.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from neurons.corpus import standard_library_texts, tokenize, train_tokenizer
from neurons.training.inner import InnerResult, InnerTrainer
from neurons.training.model import (
    as_tokens,
    bind,
    bind_gradient,
    build_model,
    compute_in,
    empty_flat,
    initial_parameters,
    parameter_count,
    parameter_shapes,
    sequence_losses,
    token_losses,
)
from neurons.training.schedule import learning_rate
from protocol.run import Inner, SparseLoCo, preset_table
from protocol.sparseloco.aggregate import outer_step
from protocol.sparseloco.compress import compress, decompress
from protocol.sparseloco.layout import Layout
from protocol.sparseloco.payload import HEADER_BYTES

PEERS = 4
OUTER_MOMENTUM = 0.9
TILE = 64
DTYPE = torch.bfloat16
_EVALUATION_BATCH = 8


@dataclass(frozen=True, slots=True)
class Scale:
    """A model and its budget. `learning_rate` is the peak: `warmup_steps` up, then a half cosine down to a tenth over
    the rest of the steps. A peer reads `batch_sequences` of `sequence_tokens` in a step."""

    name: str
    model: dict[str, Any]
    steps: int
    learning_rate: float
    batch_sequences: int
    warmup_steps: int = 30
    sequence_tokens: int = 128
    evaluate_every: int = 60
    held_out_sequences: int = 128

    @property
    def tokens(self) -> int:
        """Tokens that all peers read together."""
        return self.steps * PEERS * self.batch_sequences * self.sequence_tokens

    def inner(self, window_steps: int) -> Inner:
        """The inner settings of a row whose windows have `window_steps`."""
        return Inner(
            steps=window_steps,
            pages_per_step=1,
            learning_rate=self.learning_rate,
            warmup_steps=self.warmup_steps,
            decay_steps=self.steps - self.warmup_steps,
            final_learning_rate_share=0.1,
        )


@dataclass(frozen=True, slots=True)
class Row:
    """A way to train. `method` is adamw (data-parallel: gradients averaged at every step), diloco, sparseloco, or
    average (parameters averaged after every window). `muon_rate` is the peak of Muon for the hidden matrices, 0 for
    AdamW everywhere; `outer_rate` is DiLoCo's alone."""

    name: str
    method: str = "sparseloco"
    scheme: SparseLoCo = field(default_factory=SparseLoCo)
    window_steps: int = 10
    tiles: bool = False
    muon_rate: float = 0.0
    outer_rate: float = 0.0


@dataclass(frozen=True, slots=True)
class Plan:
    """The rows of one model: `deciding` ones run with every seed, `others` with the first seed alone."""

    scale: Scale
    deciding: tuple[Row, ...]
    others: tuple[Row, ...] = ()
    seeds: int = 3

    def jobs(self) -> Iterator[tuple[int, Row]]:
        """(seed, row): the first seed of everything, then the further seeds of the deciding rows."""
        yield from ((0, row) for row in self.rows)
        yield from ((seed, row) for seed in range(1, self.seeds) for row in self.deciding)

    @property
    def rows(self) -> tuple[Row, ...]:
        """All rows, in the order of the table."""
        return (*self.deciding, *self.others)


def _sparse(name: str, *, window_steps: int = 10, **changes: Any) -> Row:
    return Row(name, scheme=SparseLoCo(**{"average": "contributors", **changes}), window_steps=window_steps)


def _diloco(rate: float, window_steps: int = 10) -> Row:
    name = f"DiLoCo, rate {rate}" if window_steps == 10 else f"DiLoCo, rate {rate}, H = {window_steps}"
    return Row(name, "diloco", outer_rate=rate, window_steps=window_steps)


DEFAULT = _sparse("SparseLoCo")
ADAMW = Row("AdamW data-parallel", "adamw")
DILOCO = _diloco(0.7)
K32, K128, ONE_BIT = _sparse("k = 32", k=32), _sparse("k = 128", k=128), _sparse("1 bit", value_bits=1)
ALL = _sparse("mean of all", average="all")
MUON = replace(DEFAULT, name="Muon inside", muon_rate=3e-3)
LONG, LONG_K128 = _sparse("H = 30", window_steps=30), _sparse("H = 30, k = 128", window_steps=30, k=128)
LONG_DILOCO = _diloco(0.4, window_steps=30)


def plans() -> tuple[Plan, ...]:
    """What is run: the whole grid on the demo model, the main rows on a model of 5 M parameters, and long windows."""
    demo = preset_table("demo")["model"]
    larger = demo | {
        "hidden_size": 256,
        "intermediate_size": 704,
        "num_hidden_layers": 6,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
    }
    return (
        Plan(
            Scale("demo", demo, steps=360, batch_sequences=4, learning_rate=3e-3),
            deciding=(
                ADAMW,
                DILOCO,
                DEFAULT,
                ALL,
                K32,
                K128,
                ONE_BIT,
                _sparse("β = 0.9", error_feedback=0.9),
                _sparse("β = 0.999", error_feedback=0.999),
            ),
            others=(
                _diloco(0.2),
                _diloco(0.4),
                _diloco(1.0),
                # Neither outer momentum nor compression: k = 4096, 32 bits and β = 0, without the codec's work.
                Row("dense, plain averaging", "average"),
                _sparse("mean of all, α = 2", average="all", outer_learning_rate=((0, 2.0),)),
                replace(DEFAULT, name="64×64 tiles", tiles=True),
                LONG,
                _diloco(0.7, window_steps=30),
                MUON,
            ),
        ),
        Plan(
            Scale("5m", larger, steps=300, batch_sequences=2, learning_rate=2e-3),
            deciding=(ADAMW, DILOCO, DEFAULT, ALL, K32, K128, ONE_BIT, MUON),
            seeds=1,
        ),
        # Three times the budget: as many windows of 30 steps as the first plan has of 10.
        Plan(
            Scale("demo-long", demo, steps=1080, batch_sequences=4, learning_rate=3e-3, evaluate_every=180),
            deciding=(ADAMW, DEFAULT, LONG, LONG_K128, _diloco(0.7, window_steps=30), LONG_DILOCO),
            seeds=1,
        ),
    )


def quick(plan: Plan) -> Plan:
    """The same rows with a budget of seconds, to see that everything runs; the losses say nothing."""
    model = plan.scale.model | {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1}
    scale = replace(
        plan.scale, model=model, steps=30, warmup_steps=5, evaluate_every=30, held_out_sequences=8, batch_sequences=1
    )
    return replace(plan, scale=scale, seeds=1)


# --- text


@dataclass(frozen=True, slots=True, eq=False)
class Text:
    """Sequences to train on and held-out ones, int64 [n, sequence tokens]."""

    training: np.ndarray
    held_out: np.ndarray

    @classmethod
    def of(cls, stream: np.ndarray, scale: Scale) -> Text:
        """Cut a stream of token ids; the tail is held out."""
        count = len(stream) // scale.sequence_tokens
        rows = stream[: count * scale.sequence_tokens].astype(np.int64).reshape(count, scale.sequence_tokens)
        return cls(rows[: -scale.held_out_sequences], rows[-scale.held_out_sequences :])

    def batches(self, scale: Scale, seed: int) -> np.ndarray:
        """int64 [steps, peers, batch sequences, sequence tokens]: drawn without replacement, by the seed alone."""
        shape = (scale.steps, PEERS, scale.batch_sequences)
        drawn = np.random.default_rng(seed).permutation(len(self.training))[: math.prod(shape)]
        return self.training[drawn.reshape(shape)]


def read_text(vocabulary: int) -> np.ndarray:
    """The standard library as one stream of token ids."""
    files = standard_library_texts()
    return tokenize(files, train_tokenizer(files, vocabulary))


# --- one peer's inner optimizer


class Trainer(Protocol):
    """What `InnerTrainer` and `MuonTrainer` have in common: H steps from θ, with moments that persist."""

    def train(
        self, start: np.ndarray, batches: Sequence[np.ndarray], window: int, should_stop: Callable[[], bool]
    ) -> InnerResult:
        """Train one window from `start`, which stays as it is."""


class MuonTrainer:
    """`InnerTrainer` with Muon for the hidden matrices; embeddings and norms keep AdamW and its rate."""

    def __init__(self, model: dict[str, Any], inner: Inner, rate: float) -> None:
        self._inner = inner
        self._peaks = (rate, inner.learning_rate)
        self._model = build_model(model).train()
        self._gradient = empty_flat(parameter_count(self._model))
        named = list(self._model.named_parameters())
        hidden = [p for name, p in named if p.ndim == 2 and "embed" not in name and "lm_head" not in name]
        chosen = {id(p) for p in hidden}
        self._optimizers = (
            # This adjustment gives a step the size of AdamW's, so that both take rates of one magnitude.
            torch.optim.Muon(hidden, weight_decay=inner.weight_decay, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(
                [p for _, p in named if id(p) not in chosen],
                betas=(inner.beta1, inner.beta2),
                eps=inner.epsilon,
                weight_decay=inner.weight_decay,
            ),
        )

    def train(
        self, start: np.ndarray, batches: Sequence[np.ndarray], window: int, should_stop: Callable[[], bool]
    ) -> InnerResult:
        """As `InnerTrainer.train`, but for all of `batches`."""
        end = empty_flat(len(start))
        np.copyto(end, start)
        bind(self._model, end)
        with _denormals_flushed():
            losses = [self._step(as_tokens(batch), window, step) for step, batch in enumerate(batches)]
        return InnerResult(end, len(losses), sum(batch.size for batch in batches), tuple(losses))

    def _step(self, batch: torch.Tensor, window: int, step: int) -> float:
        inner = self._inner
        bind_gradient(self._model, self._gradient)
        with compute_in(DTYPE):
            loss = token_losses(self._model, batch).mean()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self._model.parameters(), inner.gradient_clip)
        for optimizer, peak in zip(self._optimizers, self._peaks, strict=True):
            optimizer.param_groups[0]["lr"] = learning_rate(
                window,
                step,
                steps_per_window=inner.steps,
                peak=peak,
                warmup_steps=inner.warmup_steps,
                decay_steps=inner.decay_steps,
                final_fraction=inner.final_learning_rate_share,
            )
            optimizer.step()
        return loss.item()


@contextmanager
def _denormals_flushed() -> Iterator[None]:
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


# --- from the peers' results to the next θ


class Outer(Protocol):
    """Changes θ in place by the peers' pseudo-gradients and returns the bytes that one peer sent."""

    def step(self, theta: np.ndarray, deltas: Sequence[np.ndarray], window: int) -> int:
        """`deltas[p]` is θ − θ_end of peer p, fp32 [P]."""


class DiLoCo:
    """SGD with Nesterov momentum on the mean pseudo-gradient, as torch.optim.SGD defines it; fp32 is sent."""

    def __init__(self, size: int, rate: float, share: float = OUTER_MOMENTUM) -> None:
        self._momentum = np.zeros(size, np.float32)
        self._rate, self._share = np.float32(rate), np.float32(share)

    def step(self, theta: np.ndarray, deltas: Sequence[np.ndarray], window: int) -> int:
        """See `Outer`."""
        mean = np.mean(deltas, axis=0)
        self._momentum *= self._share
        self._momentum += mean
        theta -= self._rate * (mean + self._share * self._momentum)
        return 4 * len(theta)


class Sparse:
    """The protocol's own codec and outer step, with an error buffer for each peer. With tiles, the elements are
    brought into another order before and back after it, in which each 64×64 tile of a matrix is one chunk."""

    def __init__(self, layout: Layout, scheme: SparseLoCo, tiles: bool) -> None:
        self._layout, self._scheme = layout, scheme
        self._errors = [np.zeros(layout.size, np.float32) for _ in range(PEERS)]
        self._order = tiled_order(layout) if tiles else None

    def step(self, theta: np.ndarray, deltas: Sequence[np.ndarray], window: int) -> int:
        """See `Outer`; a payload's header is counted."""
        order = self._order
        sent = [delta if order is None else delta[order] for delta in deltas]
        bodies = [
            compress(self._layout, self._scheme, error, delta) for error, delta in zip(self._errors, sent, strict=True)
        ]
        updates = [decompress(self._layout, self._scheme, body) for body in bodies]
        if order is None:
            outer_step(theta, updates, self._scheme, window)
        else:
            ordered = theta[order]
            outer_step(ordered, updates, self._scheme, window)
            theta[order] = ordered
        return HEADER_BYTES + len(bodies[0])


def tiled_order(layout: Layout) -> np.ndarray:
    """int64 [P]: where each element of the tiled order lies in the flat array. Matrices whose sides are not multiples
    of 64, and vectors, keep their order."""
    parts = []
    for p in layout.parameters:
        places = np.arange(p.offset, p.offset + p.size)
        if len(p.shape) == 2 and p.shape[0] % TILE == 0 and p.shape[1] % TILE == 0:
            rows, columns = p.shape
            places = places.reshape(rows // TILE, TILE, columns // TILE, TILE).transpose(0, 2, 1, 3).reshape(-1)
        parts.append(places)
    return np.concatenate(parts)


# --- one run


def run_row(scale: Scale, row: Row, text: Text, seed: int) -> dict[str, Any]:
    """Train `row` and return its curve: `tokens` of all peers, `bytes` sent by each, held-out `loss` in nats."""
    began = time.perf_counter()
    model = build_model(scale.model).eval()
    theta = initial_parameters(scale.model, seed)
    bind(model, theta)
    batches = text.batches(scale, seed)
    curve: dict[str, list[float]] = {"steps": [], "tokens": [], "bytes": [], "loss": []}
    tokens_of_a_step = batches[0].size

    def record(steps: int, sent: int) -> None:
        losses = sequence_losses(model, text.held_out, dtype=DTYPE, batch_sequences=_EVALUATION_BATCH)
        for name, value in zip(curve, (steps, steps * tokens_of_a_step, sent, losses.mean().item()), strict=True):
            curve[name].append(value)

    record(0, 0)
    for steps, sent in _steps(scale, row, theta, batches):
        if steps % scale.evaluate_every == 0 or steps == scale.steps:
            record(steps, sent)
    return {"model": scale.name, "row": row.name, "seed": seed, "seconds": time.perf_counter() - began, **curve}


def _steps(scale: Scale, row: Row, theta: np.ndarray, batches: np.ndarray) -> Iterator[tuple[int, int]]:
    """Train θ in place; after each exchange (for data-parallel: whenever θ is to be measured), the steps done and the
    bytes sent by one peer so far."""
    if row.method == "adamw":
        window_steps = scale.evaluate_every
        trainer = InnerTrainer(scale.model, scale.inner(window_steps), DTYPE)
        # The gradient of the mean over all peers' sequences is the mean of the peers' gradients.
        together = batches.reshape(scale.steps, -1, scale.sequence_tokens)
        for window, start in enumerate(range(0, scale.steps, window_steps)):
            steps = min(start + window_steps, scale.steps)
            theta[:] = trainer.train(theta, list(together[start:steps]), window, _never).end
            yield steps, steps * 4 * len(theta)
        return
    inner = scale.inner(row.window_steps)
    trainers: list[Trainer] = [
        MuonTrainer(scale.model, inner, row.muon_rate) if row.muon_rate else InnerTrainer(scale.model, inner, DTYPE)
        for _ in range(PEERS)
    ]
    outer = _outer(scale, row)
    sent = 0
    for window, start in enumerate(range(0, scale.steps, row.window_steps)):
        part = batches[start : start + row.window_steps]
        deltas = [theta - trainers[p].train(theta, list(part[:, p]), window, _never).end for p in range(PEERS)]
        sent += outer.step(theta, deltas, window)
        yield start + len(part), sent


def _outer(scale: Scale, row: Row) -> Outer:
    layout = Layout.from_shapes(parameter_shapes(build_model(scale.model)))
    if row.method == "diloco":
        return DiLoCo(layout.size, row.outer_rate)
    if row.method == "average":
        return DiLoCo(layout.size, rate=1.0, share=0.0)
    return Sparse(layout, row.scheme, row.tiles)


def _never() -> bool:
    return False


# --- the results file


def settings(plan: Plan) -> dict[str, Any]:
    """What must be equal for two runs to stand in one table."""
    rows = {row.name: {**asdict(row), "scheme": row.scheme.model_dump(mode="json")} for row in plan.rows}
    parameters = parameter_count(build_model(plan.scale.model))
    fixed = {"parameters": parameters, "peers": PEERS, "dtype": str(DTYPE), "outer_momentum": OUTER_MOMENTUM}
    return {"scale": {**asdict(plan.scale), **fixed}, "rows": rows}


class Results:
    """Runs by (model, row, seed), kept in a JSON file that is replaced whole after each of them."""

    def __init__(self, path: Path | None, plans: Sequence[Plan]) -> None:
        """Read `path` if it is there; runs made with other settings of their row or model are left out."""
        self._path = path
        self.settings = {plan.scale.name: settings(plan) for plan in plans}
        self.runs: list[dict[str, Any]] = []
        if path and path.exists():
            saved = json.loads(path.read_text(encoding="utf-8"))
            self.runs = [run for run in saved["runs"] if self._is_current(run, saved["settings"])]

    def find(self, model: str, row: str, seed: int | None = None) -> list[dict[str, Any]]:
        """The runs of a row, in the order of their seeds."""
        found = [run for run in self.runs if (run["model"], run["row"]) == (model, row)]
        return sorted((run for run in found if seed in (None, run["seed"])), key=lambda run: run["seed"])

    def add(self, run: dict[str, Any]) -> None:
        """Keep a run."""
        self.runs.append(run)
        if self._path:
            beside = self._path.with_name(self._path.name + ".part")
            beside.write_text(json.dumps(self.as_table(), ensure_ascii=False), encoding="utf-8")
            os.replace(beside, self._path)

    def as_table(self) -> dict[str, Any]:
        """What is in the file."""
        return {"settings": self.settings, "runs": self.runs}

    def _is_current(self, run: dict[str, Any], saved: dict[str, Any]) -> bool:
        now, then = self.settings.get(run["model"]), saved.get(run["model"])
        if now is None or then is None or now["scale"] != then["scale"] or run["row"] not in now["rows"]:
            return False
        return bool(now["rows"][run["row"]] == then["rows"].get(run["row"]))


def run_all(plans: Sequence[Plan], results: Results, say: Callable[[str], None]) -> None:
    """Run what is missing: the first seed of all plans, then the further ones."""
    torch.set_num_threads(1)
    missing = [
        (plan, seed, row)
        for plan in plans
        for seed, row in plan.jobs()
        if not results.find(plan.scale.name, row.name, seed)
    ]
    missing.sort(key=lambda job: job[1])
    if not missing:
        return
    stream = read_text(plans[0].scale.model["vocab_size"])
    for number, (plan, seed, row) in enumerate(missing, 1):
        run = run_row(plan.scale, row, Text.of(stream, plan.scale), seed)
        results.add(run)
        say(
            f"{number}/{len(missing)} {plan.scale.name}, {row.name}, seed {seed}: loss {run['loss'][-1]:.4f}, "
            f"{run['bytes'][-1]:,} bytes a peer, {run['seconds']:.0f} s"
        )


# --- summing up


def summary(plan: Plan, results: Results) -> list[dict[str, Any]]:
    """One entry a row, in the order of the plan: final held-out loss (mean and standard deviation over seeds), its
    difference to the default row and to AdamW at equal seeds (mean, lowest, highest), and the bytes a peer sent."""
    name = plan.scale.name
    finals = {
        row: {run["seed"]: run["loss"][-1] for run in results.find(name, row)}
        for row in (row.name for row in plan.rows)
    }
    entries = []
    for row, losses in finals.items():
        if not losses:
            continue
        run = results.find(name, row)[0]
        entries.append(
            {
                "model": name,
                "row": row,
                "seeds": len(losses),
                "loss": statistics.fmean(losses.values()),
                "loss_stdev": statistics.stdev(losses.values()) if len(losses) > 1 else None,
                "to_default": _differences(losses, finals[DEFAULT.name]),
                "to_adamw": _differences(losses, finals[ADAMW.name]),
                "tokens": run["tokens"][-1],
                "bytes_per_peer": run["bytes"][-1],
            }
        )
    return entries


def _differences(losses: dict[int, float], others: dict[int, float]) -> list[float] | None:
    """Mean, lowest and highest difference at equal seeds."""
    found = [losses[seed] - others[seed] for seed in losses if seed in others]
    return [statistics.fmean(found), min(found), max(found)] if found else None


def print_table(plan: Plan, entries: Sequence[dict[str, Any]], parameters: int) -> None:
    """The summary as text."""
    scale = plan.scale
    print(
        f"\n{scale.name}: {parameters:,} parameters, {PEERS} peers, {scale.steps} steps of "
        f"{scale.batch_sequences * scale.sequence_tokens} tokens each: {scale.tokens:,} tokens"
    )
    print(f"{'row':<30}{'seeds':>6}{'loss':>9}{'± sd':>8}{'to default (range)':>30}{'to AdamW':>10}{'MB sent':>10}")
    for entry in entries:
        sd = "" if entry["loss_stdev"] is None else f"{entry['loss_stdev']:.4f}"
        print(
            f"{entry['row']:<30}{entry['seeds']:>6}{entry['loss']:>9.4f}{sd:>8}{_range(entry['to_default']):>30}"
            f"{_mean(entry['to_adamw']):>10}{entry['bytes_per_peer'] / 1e6:>10.3f}"
        )


def _mean(difference: list[float] | None) -> str:
    return "" if difference is None else f"{difference[0]:+.4f}"


def _range(difference: list[float] | None) -> str:
    if difference is None:
        return ""
    mean, low, high = difference
    return f"{mean:+.4f} ({low:+.4f} to {high:+.4f})" if low < high else f"{mean:+.4f}"


# --- drawing

COLOURS = {
    ADAMW.name: "#444444",
    DILOCO.name: "#c8553d",
    DEFAULT.name: "#1f6fb2",
    ALL.name: "#e0a526",
    K32.name: "#7fb3dd",
    K128.name: "#0b3c66",
    ONE_BIT.name: "#2a9d76",
    MUON.name: "#b07aa1",
    LONG.name: "#7a8b99",
    LONG_K128.name: "#17becf",
    LONG_DILOCO.name: "#8c564b",
}
"""The rows whose curves are drawn."""


def draw(plan: Plan, results: Results, file: Path) -> None:
    """Held-out loss against tokens and against bytes, and where every row ended; SVG or PNG by the file's ending."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    scale = plan.scale
    parameters = results.settings[scale.name]["scale"]["parameters"]
    entries = summary(plan, results)
    style: Any = {"svg.hashsalt": "convergence", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
    with pyplot.rc_context(style):
        figure, (by_tokens, by_bytes, ends) = pyplot.subplots(
            1, 3, figsize=(13.5, 4.6), layout="constrained", width_ratios=(1, 1, 1.05)
        )
        for row, colour in COLOURS.items():
            _draw_curve(by_tokens, by_bytes, results.find(scale.name, row), row, colour)
        by_tokens.set(xlabel="tokens read by all peers together, thousands", ylabel="held-out loss, nats a token")
        by_bytes.set(xlabel="MB sent by each peer (log)", xscale="log")
        by_bytes.sharey(by_tokens)
        by_bytes.tick_params(labelleft=False)
        by_tokens.legend(frameon=False, loc="upper right")
        for axes in (by_tokens, by_bytes):
            axes.grid(alpha=0.25, linewidth=0.6)
        _draw_ends(ends, entries)
        figure.suptitle(
            f"{parameters / 1e6:.2f} M parameters, {PEERS} peers, "
            f"the same {scale.tokens / 1e3:,.0f} k tokens in the same order"
        )
        metadata = {"Date": None} if file.suffix == ".svg" else None
        figure.savefig(file, dpi=110, metadata=metadata)
        pyplot.close(figure)


def _draw_curve(by_tokens: Any, by_bytes: Any, runs: list[dict[str, Any]], row: str, colour: str) -> None:
    if not runs:
        return
    losses = np.array([run["loss"] for run in runs])
    mean, low, high = losses.mean(axis=0), losses.min(axis=0), losses.max(axis=0)
    width = 2.2 if row == DEFAULT.name else 1.3
    order = 3 if row == DEFAULT.name else 2
    tokens, sent = np.array(runs[0]["tokens"]) / 1e3, np.array(runs[0]["bytes"]) / 1e6
    # Nothing is sent before the first point, and a logarithm has no zero.
    for axes, at, start in ((by_tokens, tokens, 0), (by_bytes, sent, 1)):
        axes.plot(at[start:], mean[start:], color=colour, linewidth=width, label=row, zorder=order)
        if len(runs) > 1:
            axes.fill_between(at[start:], low[start:], high[start:], color=colour, alpha=0.15, linewidth=0)


def _draw_ends(axes: Any, entries: Sequence[dict[str, Any]]) -> None:
    """Difference of the final loss to the default row, at equal seeds: mean and range."""
    shown = [entry for entry in entries if entry["to_default"] is not None]
    for place, entry in enumerate(shown):
        mean, low, high = entry["to_default"]
        colour = COLOURS.get(entry["row"], "#888888")
        axes.plot([low, high], [place, place], color=colour, linewidth=2)
        axes.plot([mean], [place], "o", color=colour, markersize=5)
    axes.axvline(0, color=COLOURS[DEFAULT.name], linewidth=0.8, linestyle=":")
    axes.set_yticks(range(len(shown)), [f"{entry['row']}  ({entry['seeds']})" for entry in shown])
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.25, linewidth=0.6)
    axes.set_xlabel("final loss minus the default row's, nats (less is better)\nin brackets: seeds; bar: their range")


# --- the command


def main() -> None:
    """Run what is missing, sum up, print and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--results", type=Path, help="file that keeps every finished run")
    parser.add_argument("--model", choices=("demo", "5m", "demo-long"), help="only this plan")
    parser.add_argument("--draw", type=Path, help="folder for a convergence-*.svg of each plan")
    parser.add_argument("--no-run", action="store_true", help="only show what the results file holds")
    parser.add_argument("--quick", action="store_true", help="a budget of seconds, to see that everything runs")
    options = parser.parse_args()
    chosen = [plan for plan in plans() if options.model in (None, plan.scale.name)]
    if options.quick:
        chosen = [quick(plan) for plan in chosen]
    results = Results(options.results, chosen)
    if not options.no_run:
        run_all(chosen, results, lambda line: print(line, file=sys.stderr, flush=True))
    rows = {plan.scale.name: summary(plan, results) for plan in chosen}
    if options.draw:
        for plan in chosen:
            draw(plan, results, options.draw / f"convergence-{plan.scale.name}.svg")
    if options.json:
        entries = [entry for entries in rows.values() for entry in entries]
        print(json.dumps({"settings": results.settings, "rows": entries}, ensure_ascii=False))
        return
    for plan in chosen:
        print_table(plan, rows[plan.scale.name], results.settings[plan.scale.name]["scale"]["parameters"])


if __name__ == "__main__":
    main()
