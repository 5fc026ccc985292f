"""What `benchmarks.codec` measures on: runs, layouts and pseudo-gradients, made up ones and real ones."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from bittensor_core import Keypair

from benchmarks import torch_chain
from neurons.corpus import standard_library_texts, tokenize, train_tokenizer
from neurons.training.inner import InnerTrainer
from neurons.training.model import initial_parameters, model_layout
from protocol.run import Run, SparseLoCo, preset_table, run_from_table
from protocol.sparseloco.aggregate import outer_step
from protocol.sparseloco.compress import compress, decompress
from protocol.sparseloco.layout import Layout, Parameter
from protocol.sparseloco.payload import Header
from protocol.sparseloco.plan import plan_of

PEERS = 20
ZERO = "0" * 64
"""Stands where a digest would that only a founded network has."""

_BETWEEN_PEERS = 7919
_TEXT_BYTES = 1_000_000
_WINDOWS_BEFORE = 3
"""Windows that the error buffer has seen: it is never empty but in the first."""


@dataclass(frozen=True, slots=True, eq=False)
class Case:
    """One layout with what both sides work on: flat fp32 arrays, 20 payloads as bytes, and the same 20
    pseudo-gradients as the chain packs them. `kept` is the error buffer before the window."""

    name: str
    run: Run
    layout: Layout
    theta: np.ndarray
    kept: np.ndarray
    delta: np.ndarray
    payloads: list[bytes]
    packed: list[list[torch_chain.Packed]]


def signer() -> Keypair:
    """The key of the one miner here."""
    return Keypair.create_from_uri("//Alice")


def run_of(preset: str) -> Run:
    """A preset with stand-ins for what only a founded network has."""
    table = preset_table(preset)
    table["genesis_root"] = table["dataset"]["index_digest"] = ZERO
    return run_from_table(table)


def layout_of(run: Run) -> Layout:
    """The layout of a run's model, of which nothing is allocated."""
    return model_layout(run.model)


def layers_layout(run: Run, elements: int) -> Layout:
    """The parameters of as many decoder layers of the model as fit into `elements`, in their order; of a layer that
    does not fit alone, as much as does."""
    layer = sum(p.size for p in _layers(run, 1))
    chosen, left = [], elements
    for p in _layers(run, min(int(run.model["num_hidden_layers"]), max(1, elements // layer))):
        if p.size <= left:
            chosen.append((p.name, p.shape))
            left -= p.size
    return Layout.from_shapes(chosen)


def _layers(run: Run, count: int) -> list[Parameter]:
    some = run.model_copy(update={"model": dict(run.model) | {"num_hidden_layers": count}})
    return [p for p in layout_of(some).parameters if ".layers." in p.name]


def make_case(
    name: str, run: Run, layout: Layout, theta: np.ndarray, common: np.ndarray, own: np.ndarray, distinct: int = PEERS
) -> Case:
    """Peers send half of `common` and each another shift of `own`: they agree a little, as peers do. Only the first
    `distinct` are made, then they repeat."""
    header = Header(
        run_digest=run.digest(),
        window=0,
        hotkey=signer().ss58_address,
        layout_digest=layout.digest,
        base_root=ZERO,
        sync_proof=ZERO,
        inner_steps=run.inner.steps,
        tokens=0,
    ).pack()
    pieces, beta = plan_of(layout, run.sparseloco).groups, run.sparseloco.error_feedback
    payloads, packed, kept = [], [], np.zeros(layout.size, np.float32)
    common = common * np.float32(0.5)
    for peer in range(distinct):
        delta = np.roll(own, _BETWEEN_PEERS * peer)
        delta += common
        packed.append(torch_chain.encode(pieces, torch.zeros(layout.size), torch.from_numpy(delta), beta))
        payloads.append(header + compress(layout, run.sparseloco, np.zeros(layout.size, np.float32), delta))
        if peer < _WINDOWS_BEFORE:
            compress(layout, run.sparseloco, kept, delta)
    repeats = PEERS // distinct
    return Case(name, run, layout, theta, kept, delta, payloads * repeats, packed * repeats)


def real_case(windows: int) -> tuple[Case, list[dict[str, float]]]:
    """The demo model after some windows of training on the standard library, alone; and for each window how far from
    the values of its pseudo-gradient what would be sent is: ‖v − v̂‖ / ‖v‖ over the positions sent. Trains on one
    thread, as miners of the demo do, so that the same machine finds the same errors again."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    run = run_of("demo")
    layout, scheme = layout_of(run), run.sparseloco
    theta = initial_parameters(run.model, seed=0)
    pages, trainer = _pages(run), InnerTrainer(run.model, run.inner, torch.float32)
    kept, errors, deltas = np.zeros(layout.size, np.float32), [], []
    for window in range(windows):
        batches = [next(pages) for _ in range(run.inner.steps)]
        delta = theta - trainer.train(theta, batches, window, lambda: False).end
        errors.append(_errors(layout, scheme, kept, delta))
        deltas.append(delta)
        update = decompress(layout, scheme, compress(layout, scheme, kept, delta))
        outer_step(theta, [update], scheme, window)
    torch.set_num_threads(threads)
    return make_case("demo (real)", run, layout, theta, deltas[-1], deltas[-2]), errors


def _pages(run: Run) -> Iterator[np.ndarray]:
    """Batches of one inner step, int64 [sequences, tokens], from random places of the text."""
    files, size = [], 0
    for path in standard_library_texts():
        files.append(path)
        size += path.stat().st_size
        if size > _TEXT_BYTES:
            break
    stream = tokenize(files, train_tokenizer(files, int(run.model["vocab_size"]))).astype(np.int64)
    draw, tokens = np.random.default_rng(0), run.dataset.sequence_tokens
    while True:
        starts = draw.integers(len(stream) - tokens, size=run.inner.pages_per_step * run.dataset.page_sequences)
        yield stream[starts[:, None] + np.arange(tokens)]


def _errors(layout: Layout, scheme: SparseLoCo, kept: np.ndarray, delta: np.ndarray) -> dict[str, float]:
    whole = np.float32(scheme.error_feedback) * kept + delta
    found, values = {}, np.empty(0)
    for name, bits in (("two_bits", 2), ("one_bit", 1)):
        mode = scheme.model_copy(update={"value_bits": bits})
        update = decompress(layout, mode, compress(layout, mode, kept.copy(), delta))
        values = whole[update.indices].astype(np.float64)  # the same in both modes
        found[name] = float(np.linalg.norm(values - update.values) / np.linalg.norm(values))
    found["energy_sent"] = float(values @ values / (whole.astype(np.float64) @ whole))
    pieces, rest = plan_of(layout, scheme).groups, torch.from_numpy(whole)
    packed = torch_chain.encode(pieces, rest, torch.zeros(layout.size), 1.0)
    lost = []  # what the chain left of the values that it sent
    for piece, part in zip(pieces, packed, strict=True):
        positions = torch_chain.unpack12(part.positions, piece.format.k)
        lost.append(piece.chunks(rest).gather(1, positions).flatten().double())
    found["torch_chain"] = float(torch.cat(lost).norm()) / float(np.linalg.norm(values))
    return found


def made_up_case(preset: str, elements: int, distinct: int = PEERS) -> Case:
    """Decoder layers with products of normal numbers, which have heavier tails than they."""
    run = run_of(preset)
    layout, draw = layers_layout(run, elements), np.random.default_rng(0)

    def numbers() -> np.ndarray:
        made = draw.standard_normal(layout.size, np.float32)
        made *= draw.standard_normal(layout.size, np.float32)
        return made

    return make_case(preset, run, layout, numbers(), numbers(), numbers(), distinct)
