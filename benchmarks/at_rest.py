"""Whether a network that runs for long grows: memory, and what lies on disk, window after window.

    python -m benchmarks.at_rest [--windows 500] [--every 50] [--json]

One validator and three miners in one process and in virtual time (`neurons/lab/virtual.py`): the neurons' own code, the
built-in chain, real folders as buckets, and a model so small that memory which is not given back shows.

- *memory*: what the process holds, after a collection of garbage.
- *swept*: bytes of what retention removes, in all buckets: seals, shards, keys, checkpoints.
- *kept*: bytes of what it never removes, a window's ledger and receipts, and how many that is for each window.
- *local*: bytes of the neurons' own folders: spool, scorebook, training state. *chain*: bytes of the built-in chain.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from benchmarks.transfer import resident_bytes
from neurons.lab.virtual import Simulation, run_virtually, small_corpus, tiny_table
from neurons.validator import Validator

MEMBERS = ["v", "a", "b", "c"]
MEGABYTE = 1e6


@dataclass(frozen=True, slots=True)
class Sample:
    """How much there was after a window, in bytes."""

    window: int
    memory: int
    swept: int
    kept: int
    local: int
    chain: int


async def run(folder: Path, windows: int, every: int) -> list[Sample]:
    """Play `windows` windows and look after each `every` of them."""
    table = tiny_table()
    table["inner"] |= {"steps": 2, "warmup_steps": 0}
    table["gauntlet"] |= {"own_pages": 2, "random_pages": 2, "random_pages_most": 2, "held_out_pages": 1}
    net = Simulation(folder, small_corpus(), table)
    await net.create(MEMBERS)
    samples: list[Sample] = []
    async with net:
        net.start(MEMBERS[0], Validator)
        for name in MEMBERS[1:]:
            net.start(name)
        while (window := len(samples) * every) < windows:
            await net.windows(min(every, windows - window))
            samples.append(await asyncio.to_thread(_sample, net, window + every))
            print(_line(samples[-1], samples[0]), flush=True)
    return samples


def _sample(net: Simulation, window: int) -> Sample:
    gc.collect()
    kept = swept = 0
    for path in (net.folder / "buckets").rglob("*"):
        if path.is_file():
            size = path.stat().st_size
            is_kept = {"ledger", "receipts"} & {*path.parts}
            kept, swept = kept + size * bool(is_kept), swept + size * (not is_kept)
    chain = sum(path.stat().st_size for path in net.folder.glob("chain.sqlite*"))
    return Sample(window, resident_bytes("VmRSS"), swept, kept, _size(net.folder / "nodes"), chain)


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


HEADER = "| window | memory | swept | kept | a window | local | chain |\n|---|---|---|---|---|---|---|"


def _line(sample: Sample, first: Sample) -> str:
    windows = sample.window - first.window
    each = f"{(sample.kept - first.kept) / windows / 1e3:.1f} kB" if windows else "–"
    parts = [sample.memory, sample.swept, sample.kept, sample.local, sample.chain]
    memory, swept, kept, local, chain = (f"{size / MEGABYTE:.1f} MB" for size in parts)
    return f"| {sample.window} | {memory} | {swept} | {kept} | {each} | {local} | {chain} |"


def main() -> None:
    """Run it and print a line for each sample."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--windows", type=int, default=500)
    parser.add_argument("--every", type=int, default=50)
    parser.add_argument("--json", action="store_true", help="one object in the end")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(HEADER)
    with tempfile.TemporaryDirectory(prefix="windrow-at-rest-") as folder:
        samples = run_virtually(run(Path(folder), options.windows, options.every))
    if options.json:
        print(json.dumps([asdict(sample) for sample in samples]))


if __name__ == "__main__":
    main()
