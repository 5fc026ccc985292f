"""Checks of this machine against what the run asks: GPU, memory, disk, and seconds of work a window."""

from __future__ import annotations

import asyncio
import os
import shutil
import statistics
import time
from pathlib import Path

import numpy as np
import torch

from neurons.doctor.finding import Finding, fail, ok, warn
from neurons.doctor.patient import Patient
from neurons.doctor.words import duration, size
from neurons.figures import figures_of, miner_memory_bytes, traced_step
from neurons.process import DTYPES, probe_dtype
from neurons.training.model import as_tokens, build_model, compute_in, token_losses, vocabulary_size
from protocol.run import Run
from protocol.sparseloco.compress import compress
from protocol.sparseloco.layout import CHUNK, Layout

_GPU_QUERY = ("--query-gpu=name,driver_version,memory.total", "--format=csv,noheader,nounits")
_TRIAL_SECONDS = 3.0
_MATRIX = 1024
_MODEL_SHARE = 0.86
"""What training reaches of the speed of a large matrix product, at best; the rest is softmax, norms, AdamW."""

_COMPRESS_ELEMENTS = 1024 * CHUNK


async def gpu(patient: Patient) -> Finding:
    """Which GPUs there are."""
    try:
        process = await asyncio.create_subprocess_exec(
            "nvidia-smi", *_GPU_QUERY, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
        )
    except OSError:
        return ok("none that nvidia-smi shows; nodes of this version train on the CPU", gpus=0)
    try:
        out, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    found = [[cell.strip() for cell in line.split(",")] for line in out.decode(errors="replace").splitlines() if line]
    if process.returncode or not found or any(len(row) != 3 for row in found):
        return warn("nvidia-smi is there and does not answer: load the driver again (`nvidia-smi` shows why)", gpus=0)
    names = ", ".join(
        f"{name} ({int(mib) / 1024:.0f} GiB)" if mib.isdecimal() else f"{name} (memory {mib})" for name, _, mib in found
    )
    seen = torch.cuda.is_available()
    sentence = f"{names}, driver {found[0][1]}; nodes of this version train on the CPU"
    return ok(sentence, gpus=len(found), driver=found[0][1], torch_sees_it=int(seen))


async def memory(patient: Patient) -> Finding:
    """Whether a miner of this run fits into the memory that is free."""
    run = (await patient.published.need()).run
    needed = await asyncio.to_thread(miner_memory_bytes, run, torch.float32)
    free, total = _memory()
    figures = {"needed_bytes": needed, "free_bytes": free, "total_bytes": total}
    sentence = f"a miner of {run.name} needs {size(needed)}, {size(free)} of {size(total)} are free"
    if needed > total:
        return fail(f"{sentence}: take a machine with more memory, or a smaller run", **figures)
    if needed > free:
        return warn(f"{sentence}: end other programs first", **figures)
    return ok(sentence, **figures)


async def disk(patient: Patient) -> Finding:
    """Whether what a miner saves fits on the disk of its local state."""
    run = (await patient.published.need()).run
    needed = (await asyncio.to_thread(figures_of, run)).saved_bytes
    place = patient.settings.state.absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    sentence = f"a miner keeps {size(needed)} below {patient.settings.state}, {size(free)} are free"
    figures = {"needed_bytes": needed, "free_bytes": free}
    if not os.access(place, os.W_OK):
        return fail(f"{place} may not be written by this user: choose another --state", **figures)
    if needed > free:
        return fail(f"{sentence}: make room, or choose another --state", **figures)
    return ok(sentence, **figures)


async def compute(patient: Patient) -> Finding:
    """Seconds for the H inner steps of a window: measured on steps or on a page, if that takes seconds; else from the
    speed of a matrix product and the arithmetic that a step needs."""
    run = (await patient.published.need()).run
    free, _ = _memory()
    return await asyncio.to_thread(_compute, run, patient.settings.dtype, patient.settings.threads, free)


async def compression(patient: Patient) -> Finding:
    """Seconds to compress a pseudo-gradient of the run's model."""
    run = (await patient.published.need()).run
    return await asyncio.to_thread(_compression, run)


def _compute(run: Run, dtype_name: str, threads: int, free_bytes: int) -> Finding:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        speed = {dtype: _flops_per_second(dtype) for dtype in DTYPES.values()}
        page = traced_step(run, 1, torch.float32)
        wanted = DTYPES[dtype_name] if dtype_name != "auto" else max(speed, key=lambda dtype: speed[dtype])
        page_seconds = page.flops / (speed[wanted] * _MODEL_SHARE)
        fits = 2 * page.saved_bytes + 8 * figures_of(run).parameters < free_bytes
        how = "estimated from a matrix product"
        if page_seconds < _TRIAL_SECONDS and fits:
            if dtype_name == "auto":
                wanted = DTYPES[probe_dtype(run)]
            page_seconds, how = _page_seconds(run, wanted), "measured"
    finally:
        torch.set_num_threads(before)
    name = next(name for name, dtype in DTYPES.items() if dtype == wanted)
    seconds = run.pages_per_window * page_seconds
    cores = f"{threads} thread" if threads == 1 else f"{threads} threads"
    return ok(
        f"{run.inner.steps} steps take {duration(seconds)} in {name} on {cores} ({how})",
        compute_seconds=seconds,
        measured=int(how == "measured"),
        dtype=name,
    )


def _page_seconds(run: Run, dtype: torch.dtype) -> float:
    """Forward and backward pass over a page, median of as many as fit into the trial."""
    model = build_model(run.model)
    shape = (run.dataset.page_sequences, run.dataset.sequence_tokens)
    drawn = np.random.default_rng(0).integers(vocabulary_size(model), size=shape)
    batch, took = as_tokens(drawn.astype(np.int64)), list[float]()
    while not took or sum(took) < _TRIAL_SECONDS:
        began = time.perf_counter()
        with compute_in(dtype):
            loss = token_losses(model, batch).mean()
        loss.backward()  # type: ignore[no-untyped-call]
        model.zero_grad(set_to_none=True)
        took.append(time.perf_counter() - began)
    return statistics.median(took[1:] or took)  # the first one warms up


def _flops_per_second(dtype: torch.dtype) -> float:
    left, right = torch.ones(_MATRIX, _MATRIX, dtype=dtype), torch.ones(_MATRIX, _MATRIX, dtype=dtype)
    torch.mm(left, right)
    began, count = time.perf_counter(), 0
    while time.perf_counter() - began < _TRIAL_SECONDS / 10:
        torch.mm(left, right)
        count += 1
    return 2.0 * _MATRIX**3 * count / (time.perf_counter() - began)


def _compression(run: Run) -> Finding:
    parameters = figures_of(run).parameters
    count = min(parameters, _COMPRESS_ELEMENTS)
    layout = Layout.from_shapes([("probe", (count,))])
    delta = np.random.default_rng(0).standard_normal(count, dtype=np.float32)
    compress(layout, run.sparseloco, np.zeros(count, np.float32), delta)  # the first call compiles
    began = time.perf_counter()
    compress(layout, run.sparseloco, np.zeros(count, np.float32), delta)
    seconds = (time.perf_counter() - began) * parameters / count
    return ok(f"a pseudo-gradient takes {duration(seconds)}", compress_seconds=seconds)


def _memory() -> tuple[int, int]:
    """Free and total memory in bytes, as the kernel counts them and as a container may limit them."""
    lines = (line.split() for line in Path("/proc/meminfo").read_text().splitlines())
    table = {words[0].rstrip(":"): int(words[1]) << 10 for words in lines if len(words) > 2}
    free, total = table["MemAvailable"], table["MemTotal"]
    limit, used = _cgroup("memory.max"), _cgroup("memory.current")
    if limit is not None and used is not None:
        free, total = min(free, max(0, limit - used)), min(total, limit)
    return free, total


def _cgroup(name: str) -> int | None:
    try:
        text = Path("/sys/fs/cgroup", name).read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None
