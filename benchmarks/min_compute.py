"""What a machine must have for each preset: `python -m benchmarks.min_compute > min_compute.yml`

All of it follows from the constants of the presets, but for MEASURED. tests/test_min_compute.py compares the file with
what this prints, so neither can change alone.
"""

from __future__ import annotations

import math
import sys

import torch
import yaml

from benchmarks.cases import run_of
from benchmarks.codec import payload_cost
from neurons.figures import Figures, figures_of, miner_memory_bytes, traced_step
from protocol.run import PRESETS, Run

ONE_MACHINE = ("demo", "150m", "1b")
"""Presets whose arrays one machine can hold."""

MEASURED = {
    "demo_miner_memory_gib": 0.8,
    "demo_validator_memory_gib": 0.6,
    "demo_network_memory_gib": 2.4,
    "install_disk_gib": 1.3,
}

_BLOCK_SECONDS = 12.0
_DEMO_BLOCK_SECONDS = 1.0
_VALIDATOR_FLOATS = 3

HEAD = """\
# What miners and validators need, for each preset. Written by `python -m benchmarks.min_compute`; do not edit.
#
# MEASURED, on two cores without a GPU: the peak of a miner and of a validator of the demo (VmHWM in /proc/PID/status),
# the memory of its whole network (docs/performance.md), and `du -s .venv` after `make setup` with a CPU build of torch;
# the ordinary build brings CUDA along and takes several times more.
#
# ESTIMATED: everything else. It is arithmetic on the constants of a preset, rounded up, and nobody has measured it at
# any size above the demo's.
# - memory: a miner holds seven fp32 numbers a parameter: θ, gradient, two moments and error feedback, and two more
#   while it compresses or saves. On top comes what a step keeps for its backward pass, in bf16, and its logits. This
#   version takes the batch of a step at once and computes on the CPU: that is why 150m asks for so much. A validator
#   holds three numbers a parameter while it loads a checkpoint, one page, and the payloads of a full list twice.
#   null: no machine holds it, and this version spreads no model over several.
# - tflop_s: sustained, in matrix products, with which a window is just long enough for all inner steps, or to measure
#   all sampled peers. It is no condition: who has less sends fewer steps, or measures fewer peers.
# - upload: a miner's payload between the close and the snapshot of the seals; with less, it stops training earlier.
#   A validator copies the payloads of a full gather list and a share of a checkpoint in a window.
# - download: a full gather and reserve list between the snapshot and the reveal, and pages over the window.
# - disk: a miner's moments and error feedback, the last ones and the next, and what those on full lists have sealed in
#   a window; a validator's, what all slots may have sealed. bucket: what retention keeps in it.
# A block takes 12 s, in the demo 1 s. 1 GiB is 2^30 bytes, 1 Mbit 10^6 bits.
"""


def document() -> str:
    """The whole file."""
    runs = {preset: run_of(preset) for preset in PRESETS}
    table = {
        "version": "1.0",
        "measured": MEASURED,
        "compute_spec": {
            "miner": {preset: miner(run) for preset, run in runs.items()},
            "validator": {preset: validator(run) for preset, run in runs.items()},
        },
    }
    return HEAD + yaml.safe_dump(table, sort_keys=False)


def miner(run: Run) -> dict[str, float | None]:
    """What a miner of `run` needs."""
    figures, payload = figures_of(run), _uploaded_bytes(run)
    memory = speed = None
    if run.name in ONE_MACHINE:
        memory = _gib(miner_memory_bytes(run, torch.bfloat16))
        speed = _tflop_s(run, run.pages_per_window)
    return {
        "memory_gib": memory,
        "tflop_s": speed,
        "disk_gib": _gib(figures.saved_bytes),
        "upload_mbit_s": _mbit_s(payload, run.time.seal_blocks * _block_seconds(run)),
        "download_mbit_s": _up(_list_mbit_s(run) + _pages_mbit_s(run, figures, run.pages_per_window)),
        "bucket_gib": _gib(payload * _windows_kept(run)),
    }


def validator(run: Run) -> dict[str, float | None]:
    """What a validator of `run` needs."""
    figures, judging, kept = figures_of(run), run.gauntlet, run.checkpoints
    gathered = judging.gather_size * _uploaded_bytes(run)
    # The gradient of a page takes three times what its loss takes. Gradients: the random pages, and those of each
    # sampled peer. Losses: what the step of each sampled peer does on both, and the held-out pages.
    gradients = judging.random_pages + judging.sample * judging.own_pages
    losses = judging.sample * (judging.random_pages + judging.own_pages) + judging.held_out_pages
    pages = judging.random_pages_most + judging.sample * judging.own_pages + judging.held_out_pages
    memory = speed = None
    if run.name in ONE_MACHINE:
        page_tokens = run.dataset.page_sequences * run.dataset.sequence_tokens
        page = traced_step(run, 1, torch.bfloat16).saved_bytes + 3 * 4 * page_tokens * int(run.model["vocab_size"])
        arrays = 4 * _VALIDATOR_FLOATS * figures.parameters
        memory = _up(MEASURED["demo_validator_memory_gib"] + (arrays + page + 2 * gathered) / 2**30)
        speed = _tflop_s(run, gradients + losses / 3)
    written = gathered + figures.checkpoint_bytes / kept.every_windows
    return {
        "memory_gib": memory,
        "tflop_s": speed,
        "disk_gib": _gib(run.dataset.slots * _uploaded_bytes(run)),
        "upload_mbit_s": _mbit_s(written, _window_seconds(run)),
        "download_mbit_s": _up(_list_mbit_s(run) + _pages_mbit_s(run, figures, pages)),
        "bucket_gib": _gib(gathered * _windows_kept(run) + figures.checkpoint_bytes * kept.keep),
    }


def _uploaded_bytes(run: Run) -> float:
    """One payload with its seal. A full gather list has as many of them from the same number of peers."""
    return payload_cost(run.name)["payload_bytes"]


def _list_mbit_s(run: Run) -> float:
    listed = run.gauntlet.gather_size + run.gauntlet.reserve_size
    blocks = run.time.reveal_blocks - run.time.seal_blocks
    return _mbit_s(listed * _uploaded_bytes(run), blocks * _block_seconds(run))


def _pages_mbit_s(run: Run, figures: Figures, pages: int) -> float:
    return _mbit_s(figures.read_bytes / run.pages_per_window * pages, _window_seconds(run))


def _tflop_s(run: Run, pages: float) -> float:
    return _up(traced_step(run, 1, torch.bfloat16).flops * pages / _window_seconds(run) / 1e12)


def _windows_kept(run: Run) -> int:
    return run.checkpoints.every_windows * run.checkpoints.keep + 1


def _window_seconds(run: Run) -> float:
    return run.time.window_blocks * _block_seconds(run)


def _block_seconds(run: Run) -> float:
    return _DEMO_BLOCK_SECONDS if run.name == "demo" else _BLOCK_SECONDS


def _gib(size_bytes: float) -> float:
    return _up(size_bytes / 2**30)


def _mbit_s(size_bytes: float, seconds: float) -> float:
    return _up(8 * size_bytes / seconds / 1e6)


def _up(value: float) -> float:
    """Two significant digits, never less than the value."""
    step = 10.0 ** (math.floor(math.log10(value)) - 1)
    rounded = float(f"{math.ceil(value / step * (1 - 1e-12)) * step:.6g}")
    return int(rounded) if rounded >= 10 else rounded


if __name__ == "__main__":
    sys.stdout.write(document())
