"""The kernels for NVIDIA GPUs, in Triton: each reads its elements once and writes them once.

Multiplication and addition are never fused, division is IEEE's, and no sum of floats depends on the order in which
threads happen to run, so the bits are those of `reference`. What each function of `Kernels` promises is said there;
its namesake with `_on_device` works on chunks of one format, fp32 [n, length], and on records that already lie on the
GPU, uint8 [n, size_bytes] or [peers, n, size_bytes].
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from protocol.sparseloco.kernels import F32, F64, I64, U8, Inspection, reference
from protocol.sparseloco.kernels.gpu_decode import (
    aggregate_chunks,
    apply_chunks,
    dot_chunks,
    inspect_chunks,
    revert_chunks,
    shared_chunks,
)
from protocol.sparseloco.kernels.gpu_encode import encode_chunks
from protocol.sparseloco.plan import Group, Plan
from protocol.sparseloco.records import Flaw, RecordFormat

Tensor = torch.Tensor

PART_ELEMENTS = 1 << 28
_AGGREGATE_ROWS = 2048
"""Programs of `aggregate`, each with 16 KiB of sums: about 16 on each of an H200's 132 processors, which wait for
memory in turn, and few enough that the sums stay in its 50 MB of L2 cache."""
_SHARED_ROWS = 512
_SELECTED_TOGETHER = 4
"""Chunks of one program of `encode`, whose few selected elements are then quantised and packed as one tile, while
the chunks are still in the L2 cache."""


def _launch(kernel: Any, programs: int, on: Tensor, *arguments: Any, warps: int, **constants: int) -> None:
    """Start `programs` programs on the device of `on`. A fused multiply-add would be one rounding too few. With 128
    registers, 16 warps find place on a processor: enough to work while others wait for memory."""
    with torch.cuda.device_of(on):  # type: ignore[no-untyped-call]
        kernel[(programs,)](*arguments, **constants, num_warps=warps, maxnreg=128, enable_fp_fusion=False)


def _format(fmt: RecordFormat) -> dict[str, int]:
    return {
        "LENGTH": fmt.length,
        "K": fmt.k,
        "LOW": fmt.low_width,
        "UPPER_BITS": fmt.upper_bits,
        "VALUE_BITS": fmt.value_bits,
        "SIZE": fmt.size_bytes,
    }


def _reading(fmt: RecordFormat) -> dict[str, int]:
    """Constants and warps of a kernel that reads records: a lane for each bit of the upper map, four in a thread."""
    lanes = max(32, _power_of_two(fmt.upper_bits))
    return _format(fmt) | {"LANES": lanes, "warps": min(8, max(1, lanes // 128))}


def _power_of_two(least: int) -> int:
    return 1 << (least - 1).bit_length()


def _device() -> torch.device:
    """Where records go that come without elements."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _upload(records: Sequence[U8], device: torch.device) -> Tensor:
    """uint8 [peers, n, size_bytes] on the device, by way of memory that it can read itself."""
    staged = torch.empty((len(records), *records[0].shape), dtype=torch.uint8, pin_memory=device.type == "cuda")
    np.stack(records, out=staged.numpy())
    return staged.to(device, non_blocking=True)


def _factors(device: torch.device, *factors: np.float32 | float) -> Tensor:
    """fp32 factors on the device, with all their bits; as arguments, Triton might widen or flush them."""
    return torch.from_numpy(np.array(factors, np.float32)).to(device)


def encode_on_device(fmt: RecordFormat, beta: float, error: Tensor, delta: Tensor, records: Tensor) -> Tensor:
    """As `encode`, of one format; returns int8 [n]: 1 for each chunk whose sums are finite."""
    n, device = len(error), error.device
    lanes = max(8, _power_of_two(fmt.k))
    warps = min(16, max(4, lanes // 64))
    rows = min(_SELECTED_TOGETHER, max(1, 256 // lanes))
    places = torch.empty((n, fmt.k), dtype=torch.int16, device=device)
    finite = torch.empty(n, dtype=torch.int8, device=device)
    _launch(
        encode_chunks,
        -(-n // rows),
        error,
        *(error, delta, records, places, finite, _factors(device, beta), n),
        # An element on two threads could be read by one after the other has written it.
        BLOCK=max(32 * warps, _power_of_two(fmt.length)),
        GROUPS=_power_of_two(fmt.k),
        ROWS=rows,
        LANES=lanes,
        STEPS=lanes.bit_length() - 1,
        warps=warps,
        BYTES=min(max(1, 4096 // (rows * lanes)), _power_of_two((fmt.upper_bits + 7) // 8)),
        **_format(fmt),
    )
    return finite


def inspect_on_device(fmt: RecordFormat, records: Tensor) -> tuple[Tensor, Tensor]:
    """The flaw of each record, uint8 [n], and how often each level code is used, int64 [256]."""
    flaws = torch.empty(len(records), dtype=torch.uint8, device=records.device)
    counts = torch.zeros(256, dtype=torch.int64, device=records.device)
    _launch(inspect_chunks, len(records), records, records, flaws, counts, **_reading(fmt))
    return flaws, counts


def aggregate_on_device(
    fmt: RecordFormat, theta: Tensor, records: Tensor, clips: F32, scale: np.float32, contributors: bool
) -> None:
    """As `aggregate`."""
    peers, n, _ = records.shape
    rows = min(n, _AGGREGATE_ROWS)
    sums = torch.zeros((rows, fmt.length), dtype=torch.float32, device=theta.device)
    senders = torch.zeros_like(sums) if contributors else sums
    _launch(
        aggregate_chunks,
        rows,
        theta,
        *(theta, records, _factors(theta.device, *clips, scale), sums, senders, n, peers, records.stride(0)),
        CONTRIBUTORS=contributors,
        BLOCK=min(1024, max(32, _power_of_two(fmt.length))),
        **_reading(fmt),
    )


def apply_on_device(fmt: RecordFormat, theta: Tensor, records: Tensor, clip: np.float32, share: np.float32) -> Tensor:
    """As `apply`."""
    saved = torch.empty((len(theta), fmt.k), dtype=torch.float32, device=theta.device)
    factors = _factors(theta.device, clip, share)
    _launch(apply_chunks, len(theta), theta, theta, records, factors, saved, **_reading(fmt))
    return saved


def revert_on_device(fmt: RecordFormat, theta: Tensor, records: Tensor, saved: Tensor) -> None:
    """As `revert`."""
    constants = _reading(fmt)
    del constants["VALUE_BITS"]
    _launch(revert_chunks, len(theta), theta, theta, records, saved, **constants)


def dot_on_device(fmt: RecordFormat, gradient: Tensor, records: Tensor, clip: np.float32, share: np.float32) -> Tensor:
    """As `dot`; a binary64 scalar."""
    sums = torch.empty(len(gradient), dtype=torch.float64, device=gradient.device)
    factors = _factors(gradient.device, clip, share)
    _launch(dot_chunks, len(gradient), gradient, gradient, records, factors, sums, **_reading(fmt))
    return sums.sum()


def shared_on_device(fmt: RecordFormat, records: Tensor, rows: int) -> Tensor:
    """As `shared`."""
    peers, n, _ = records.shape
    programs = min(n, _SHARED_ROWS)
    counts = torch.zeros((rows, peers), dtype=torch.int64, device=records.device)
    marks = torch.empty((programs, peers, fmt.length), dtype=torch.uint8, device=records.device)
    _launch(
        shared_chunks,
        programs,
        records,
        *(records, counts, marks, n, peers, records.stride(0), rows),
        BLOCK=4096,
        OTHERS=16,
        **_reading(fmt) | {"warps": 4},
    )
    return counts


def _parts(plan: Plan) -> Iterator[Group]:
    """The groups in parts that each fill the GPU and leave room on it."""
    return (part for group in plan.groups for part in group.cut(PART_ELEMENTS))


def encode(plan: Plan, beta: float, error: Tensor, delta: Tensor, body: U8) -> bool:
    """Records of top-k(β·e + Δ), and e = β·e + Δ − ŝ."""
    finite = True
    for part in _parts(plan):
        made = torch.empty((part.count, part.format.size_bytes), dtype=torch.uint8, device=error.device)
        good = encode_on_device(part.format, beta, part.chunks(error), part.chunks(delta), made)
        finite &= bool(good.all())
        torch.from_numpy(part.records(body)).copy_(made)
    return finite


def inspect(plan: Plan, body: U8) -> Inspection:
    """The first flaw, and how often each level is used."""
    total = np.zeros((plan.parameters, 256), np.int64)
    for part in _parts(plan):
        flaws, counts = inspect_on_device(part.format, _upload([part.records(body)], _device())[0])
        wrong = flaws[flaws > 0]
        if len(wrong):
            return Inspection(Flaw(int(wrong[0])), part.format, total)
        total[part.parameter] += counts.cpu().numpy()
    return Inspection(Flaw.NONE, plan.groups[-1].format, total)


def norms(counts: I64) -> tuple[float, ...]:
    """A few numbers for each parameter, which the host has anyway."""
    return reference.norms(counts)


def aggregate(
    plan: Plan, theta: Tensor, bodies: Sequence[U8], clips: F32, scale: np.float32, contributors: bool
) -> None:
    """θ ← θ − scale · Σ_p clips[p]·ŝ_p."""
    for part in _parts(plan):
        records = _upload([part.records(body) for body in bodies], theta.device)
        factors = clips[:, part.parameter]
        aggregate_on_device(part.format, part.chunks(theta), records, factors, scale, contributors)


def apply(plan: Plan, theta: Tensor, body: U8, clips: F32, share: np.float32) -> Tensor:
    """θ ← θ − share·(clip·ŝ); returns the originals."""
    saved = torch.empty(plan.values, dtype=torch.float32, device=theta.device)
    for part in _parts(plan):
        records = _upload([part.records(body)], theta.device)[0]
        originals = apply_on_device(part.format, part.chunks(theta), records, clips[part.parameter], share)
        part.sent(saved).copy_(originals)
    return saved


def revert(plan: Plan, theta: Tensor, body: U8, saved: Tensor) -> None:
    """Originals back in place."""
    for part in _parts(plan):
        records = _upload([part.records(body)], theta.device)[0]
        revert_on_device(part.format, part.chunks(theta), records, part.sent(saved))


def dot(plan: Plan, gradient: Tensor, bodies: Sequence[U8], clips: F32, share: np.float32) -> F64:
    """⟨gradient, share·(clip·ŝ)⟩ of each peer in binary64; the device is waited for once."""
    totals = torch.zeros(len(bodies), dtype=torch.float64, device=gradient.device)
    for part in _parts(plan):
        records = _upload([part.records(body) for body in bodies], gradient.device)
        chunks, factors = part.chunks(gradient), clips[:, part.parameter]
        for peer, clip in enumerate(factors):
            totals[peer] += dot_on_device(part.format, chunks, records[peer], clip, share)
    found: F64 = totals.cpu().numpy()
    return found


def shared(plan: Plan, bodies: Sequence[U8], rows: int) -> I64:
    """Common positions of pairs."""
    total = np.zeros((rows, len(bodies)), np.int64)
    for part in _parts(plan):
        records = _upload([part.records(body) for body in bodies], _device())
        total += shared_on_device(part.format, records, rows).cpu().numpy()
    return total
