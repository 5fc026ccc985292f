"""Times `encode` and `aggregate` on a CUDA GPU against the bandwidth of a copy, and checks their bits.

    python -m benchmarks.gpu [elements] [peers]

Needs a CUDA device. Minimal traffic is 12 bytes a parameter to encode (read e and Δ, write e), and 8 bytes and all
records to aggregate.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable

import numpy as np
import torch

from protocol.sparseloco.kernels import gpu, reference
from protocol.sparseloco.records import RecordFormat


def milliseconds(work: Callable[[], object], rounds: int = 20) -> float:
    """Median time on the device, after three rounds that warm up."""
    for _ in range(3):
        work()
    times = []
    for _ in range(rounds):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        work()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times)


def main(elements: int = 1 << 28, peers: int = 20, checked: int = 64) -> None:
    """Check the first `checked` chunks against the reference, then measure and print."""
    fmt = RecordFormat.of_chunk(4096, 64, 2)
    n = elements // fmt.length
    make = torch.Generator("cuda").manual_seed(1)
    delta = torch.randn((n, fmt.length), generator=make, device="cuda")
    error = torch.randn((n, fmt.length), generator=make, device="cuda")
    records = torch.empty((peers, n, fmt.size_bytes), dtype=torch.uint8, device="cuda")
    for peer in range(peers):
        before = error[:checked].cpu().numpy()
        assert gpu.encode_on_device(fmt, 0.95, error, delta, records[peer]).all()
        expected = np.empty((checked, fmt.size_bytes), np.uint8)
        reference.encode(fmt, 0.95, before, delta[:checked].cpu().numpy(), expected)
        assert records[peer, :checked].cpu().numpy().tobytes() == expected.tobytes(), "records differ"
        assert error[:checked].cpu().numpy().tobytes() == before.tobytes(), "what is left differs"
    theta, clips, scale = delta.clone(), np.full(peers, 0.9, np.float32), np.float32(0.03)
    few = [part[:checked].cpu().numpy() for part in records]
    for contributors in (False, True):
        before = theta[:checked].cpu().numpy()
        gpu.aggregate_on_device(fmt, theta, records, clips, scale, contributors)
        reference.aggregate(fmt, before, few, clips, scale, contributors)
        assert theta[:checked].cpu().numpy().tobytes() == before.tobytes(), "aggregates differ"
    copy = 8e-9 * elements / milliseconds(lambda: theta.copy_(delta))
    made = torch.empty_like(records[0])
    encode = milliseconds(lambda: gpu.encode_on_device(fmt, 0.95, error, delta, made))
    aggregate = milliseconds(lambda: gpu.aggregate_on_device(fmt, theta, records, clips, scale, False))
    print(f"copy {copy:.2f} TB/s")
    sizes = 12 * elements, 8 * elements + records.nbytes
    for name, took, size in zip(("encode", "aggregate"), (encode, aggregate), sizes, strict=True):
        rate = 1e-9 * size / took
        print(f"{name} {took:.3f} ms, {rate:.2f} TB/s of minimal traffic, {100 * rate / copy:.0f} % of copy")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
