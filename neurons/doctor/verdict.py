"""What all that was measured means: whether a window's work fits into a window, and what to mend first."""

from __future__ import annotations

import asyncio
import math

from neurons.doctor.finding import Finding, fail, ok, warn
from neurons.doctor.patient import Patient
from neurons.doctor.words import duration
from neurons.figures import figures_of

_ADVICE = {
    "reading": "a faster connection to the dataset",
    "compute": "more --threads or faster cores",
    "compression": "more or faster cores",
    "upload": "a faster connection to the own bucket, or a bucket nearer by",
}


async def verdict(patient: Patient) -> Finding:
    """Seconds of reading, compute, compression and upload against those a window leaves for them: from the latest
    manifest of the window before, to the block at which the seal must lie in the bucket."""
    run, opened = (await patient.published.need()).run, await patient.chain.need()
    figures = await asyncio.to_thread(figures_of, run)
    seconds = {
        "reading": figures.read_bytes / patient.measured("dataset", "dataset_bytes_per_second"),
        "compute": patient.measured("compute", "compute_seconds"),
        "compression": patient.measured("compression", "compress_seconds"),
        "upload": figures.payload_bytes / patient.measured("bucket speed", "upload_bytes_per_second"),
    }
    gather = figures.gather_bytes / patient.measured("bucket speed", "download_bytes_per_second")
    block = opened.block_seconds
    there = block * (run.time.window_blocks - run.time.reveal_blocks + run.time.seal_blocks)
    gather_there = block * (run.time.reveal_blocks - run.time.seal_blocks)
    total = sum(seconds.values())
    numbers = {f"{name}_seconds": value for name, value in seconds.items()}
    numbers |= {"gather_seconds": gather, "available_seconds": there, "gather_available_seconds": gather_there}
    parts = ", ".join(f"{name} {duration(value)}" for name, value in seconds.items())
    first = max(seconds, key=lambda name: seconds[name])
    steps = _steps(run.inner.steps, seconds["compute"], there - (total - seconds["compute"]))
    sentence = f"a window's work takes {duration(total)} of the {duration(there)} there are: {parts}"
    if steps < 1:
        return fail(f"{sentence}; not one step would be sent: first get {_ADVICE[first]}", **numbers)
    if total > there:
        return warn(f"{sentence}; {steps} of {run.inner.steps} steps: first get {_ADVICE[first]}", **numbers)
    if gather > gather_there:
        return warn(
            f"{sentence}; but reading what {run.gauntlet.gather_size} others sent takes {duration(gather)} of "
            f"{duration(gather_there)}: get a faster connection, else the next window begins late",
            **numbers,
        )
    return ok(sentence, **numbers)


def _steps(steps: int, seconds: float, there: float) -> int:
    return min(steps, math.floor(steps * max(there, 0.0) / max(seconds, 1e-9)))
