"""How long joining a run of many windows takes, against reading as many bytes from the same buckets.

    python -m benchmarks.join [--quick] [--json] [--windows N] [--turns N]

A whole network of real nodes plays `--windows` windows in virtual time and then stands still: one validator, four
miners, 4.9 M parameters (20 MB a checkpoint, 96 KiB a payload). So that this takes minutes, miners send noise and the
validator judges nobody: neither changes what a joiner does. The only checkpoint is the first: all windows are replayed.

Then, in turns and on the real clock: *read* reads the checkpoint and every payload that a manifest names, 16 objects at
a time, and drops them; *join* is a node with an empty folder, from its first request until it has applied the last
manifest: it reads, checks, decrypts, decodes, applies and computes every root. Both go over the same line of
`LINE_BYTES_PER_SECOND` in all with a round trip of `LATENCY_SECONDS` a request; and over no line, from the folders of
this machine. A ratio is the time of *join* over that of the *read* before it. That the joiner has the right root is
checked; what it read besides is manifests, votes and lists.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.transfer import quartiles
from neurons.clock import until
from neurons.collecting import Round
from neurons.lab.virtual import Simulation, run_virtually, small_corpus, tiny_table
from neurons.miner import Miner
from neurons.node import Node, Parts
from neurons.validator import Validator
from protocol.gauntlet.verdict import Findings
from protocol.ledger.manifest import Manifest, Seat
from protocol.sparseloco.compress import compress
from protocol.window import Window
from storage.bucket import Bucket, ObjectInfo, Writer

MINERS = 4
AT_ONCE = 16
LINE_BYTES_PER_SECOND = 25e6
LATENCY_SECONDS = 0.02
_JOINER = "joiner"


class NoiseMiner(Miner):
    """Sends noise of its own."""

    async def contribute(self, window: Window) -> bytes | None:
        draw = np.random.default_rng([self.uid, window.number])
        delta = draw.standard_normal(self.layout.size, dtype=np.float32) * np.float32(1e-4)
        body = compress(self.layout, self.run.sparseloco, self.error, delta)
        return await self.header(window, 1, 1) + body

    def save(self, path: Path, window: int, key: bytes) -> None:
        """Nothing: it does not come back."""

    def sent(self, window: int) -> None:
        self.last_sent = window


class LenientValidator(Validator):
    """Judges nobody."""

    async def judge(self, window: Window, found: Round, manifest: Manifest) -> dict[int, Findings]:
        await self._poll(found, window, set(found.entries))
        await found.end_reading()
        await until(self.chain, window.reveal_block)  # as who judges does
        return {}

    async def harmful(self, window: Window, found: Round) -> set[Seat]:
        return set()

    async def measure_held_out(self) -> float:
        return 0.0


@dataclass
class Line:
    """What lies between this machine and all buckets. `bytes_per_second` None is no line at all."""

    bytes_per_second: float | None
    bytes_read: int = 0
    ranges: dict[tuple[str, int, int], int] = field(default_factory=dict)
    _free_at: float = 0.0

    async def carry(self, count: int) -> None:
        """Wait for as long as `count` bytes take behind all that is on the line."""
        self.bytes_read += count
        if self.bytes_per_second is not None:
            now = asyncio.get_running_loop().time()
            self._free_at = max(now, self._free_at) + count / self.bytes_per_second
            await asyncio.sleep(self._free_at - now)

    async def ask(self) -> None:
        """A round trip."""
        if self.bytes_per_second is not None:
            await asyncio.sleep(LATENCY_SECONDS)


class Distant:
    """A bucket at the other end of a line, for reading."""

    def __init__(self, inner: Bucket, line: Line) -> None:
        self._inner, self._line = inner, line

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def get(self, key: str, *, limit_bytes: int) -> bytes:
        await self._line.ask()
        data = await self._inner.get(key, limit_bytes=limit_bytes)
        await self._line.carry(len(data))
        return data

    async def copy_range(self, key: str, start: int, length: int, writer: Writer, *, size_bytes: int) -> None:
        await self._line.ask()
        name = (key, start, length)
        self._line.ranges[name] = self._line.ranges.get(name, 0) + 1
        await self._inner.copy_range(key, start, length, _Carried(writer, self._line), size_bytes=size_bytes)

    async def list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        await self._line.ask()
        async for info in self._inner.list(prefix):
            yield info


class _Carried:
    def __init__(self, inner: Writer, line: Line) -> None:
        self._inner, self._line = inner, line

    async def write(self, at: int, piece: bytes) -> None:
        await self._line.carry(len(piece))
        await self._inner.write(at, piece)


class _Nowhere:
    async def write(self, at: int, piece: bytes) -> None:
        """Drop it."""


@dataclass(frozen=True)
class Played:
    """A network that stands still, the window that comes next and the root before it, and what a joiner must read:
    (owner, key, bytes)."""

    net: Simulation
    window: int
    root: str
    objects: tuple[tuple[str, str, int], ...]

    @property
    def size_bytes(self) -> int:
        """Of all that a joiner must read."""
        return sum(size for _, _, size in self.objects)


def table(quick: bool) -> dict[str, Any]:
    """Constants of the run."""
    made = tiny_table()
    if not quick:
        made["model"] |= {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 5}
        made["model"] |= {"num_attention_heads": 4, "num_key_value_heads": 2}
    made["inner"] |= {"steps": 2, "warmup_steps": 0}
    made["gauntlet"] |= {"own_pages": 2, "random_pages": 2, "random_pages_most": 2, "held_out_pages": 1}
    made["checkpoints"] = {"every_windows": 100_000, "keep": 2}
    return made


async def play(folder: Path, quick: bool, windows: int, say: Callable[[str], None]) -> Played:
    """The network after so many windows."""
    miners = [f"m{number}" for number in range(MINERS)]
    async with Simulation(folder, small_corpus(), table=table(quick)) as net:
        await net.create(["v", *miners, _JOINER])
        net.start("v", LenientValidator)
        for name in miners:
            net.start(name, NoiseMiner)
        for done in range(0, windows, 10):
            say(f"playing window {done} of {windows}")
            await net.windows(min(10, windows - done))
        state = net.nodes["v"].state
        objects = [
            ("v", info.key, info.size_bytes)
            async for info in net.bucket("v").list(net.keys.checkpoint_prefix())
            if info.key.endswith(".safetensors")
        ]
        owners = {net.keypairs[name].ss58_address: name for name in miners}
        for window in range(state.window):
            for named in (await net.manifest(window)).contributions:
                for index, shard in enumerate(named.shards):
                    key = net.keys.shard(window, named.hotkey, index)
                    objects.append((owners[named.hotkey], key, shard.size_bytes))
        return Played(net, state.window, state.root(), tuple(objects))


async def read(played: Played, line: Line) -> float:
    """Seconds that reading all objects takes."""
    turn = asyncio.Semaphore(AT_ONCE)

    async def one(owner: str, key: str, size: int) -> None:
        async with turn:
            bucket = Distant(played.net.bucket(owner), line)
            await bucket.copy_range(key, 0, size, _Nowhere(), size_bytes=size)

    began = time.perf_counter()
    await asyncio.gather(*(one(*each) for each in played.objects))
    return time.perf_counter() - began


async def join(played: Played, line: Line, folder: Path) -> float:
    """Seconds that a node with an empty folder takes to the last manifest."""
    net = played.net
    chain = net.chain.open(net.folder / "chain.sqlite")
    node = Node(
        Parts(
            name=_JOINER,
            run=net.run,
            chain=chain,
            dataset=net.dataset,
            hotkey=net.keypairs[_JOINER],
            bucket=net.bucket(_JOINER),
            location=net.location(_JOINER),
            open_bucket=lambda commitment: Distant(net.open_bucket(commitment), line),
            folder=folder,
            dtype=torch.float32,
        )
    )
    began = time.perf_counter()
    try:
        await node.join()
        while node.state.window < played.window:
            manifest = await node.find_manifest(node.state.window)
            if manifest is not None:
                await node.apply(manifest)
        seconds = time.perf_counter() - began
    finally:
        await node.leave()
        await chain.close()
    if node.root() != played.root:
        raise SystemExit(f"the joiner has root {node.root()}, the validator {played.root}")
    twice = [name for name, count in line.ranges.items() if count > 1]
    if twice:
        raise SystemExit(f"read more than once: {twice[:3]}")
    return seconds


def measure(quick: bool, windows: int, turns: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Everything that is printed."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="windrow-join-") as place:
        network = Path(place) / "network"
        network.mkdir()
        played = run_virtually(play(network, quick, windows, say))
        result: dict[str, Any] = {
            "windows": played.window,
            "checkpoint_bytes": sum(size for _, key, size in played.objects if key.endswith(".safetensors")),
            "payloads": sum(not key.endswith(".safetensors") for _, key, _ in played.objects),
            "bytes": played.size_bytes,
            "line_bytes_per_second": LINE_BYTES_PER_SECOND,
            "latency_seconds": LATENCY_SECONDS,
        }
        for name, rate in (("line", LINE_BYTES_PER_SECOND), ("folders", None)):
            result[name] = _turns(
                played, rate, turns, Path(place) / name, lambda text, name=name: say(f"{name}: {text}")
            )
        return result


def _turns(
    played: Played, rate: float | None, turns: int, folder: Path, say: Callable[[str], None]
) -> Mapping[str, list[float] | int]:
    reads, joins, extra = [], [], 0
    for number in range(turns):
        say(f"turn {number + 1} of {turns}")
        own = folder / str(number)
        own.mkdir(parents=True)
        reads.append(asyncio.run(read(played, Line(rate))))
        line = Line(rate)
        joins.append(asyncio.run(join(played, line, own)))
        extra = line.bytes_read - played.size_bytes
    return {
        "read_seconds": _spread(reads),
        "read_bytes_per_second": _spread(played.size_bytes / seconds for seconds in reads),
        "join_seconds": _spread(joins),
        "ratio": _spread(join / read for join, read in zip(joins, reads, strict=True)),
        "extra_bytes": extra,
    }


def _spread(values: Iterable[float]) -> list[float]:
    listed = list(values)
    return quartiles(listed) if len(listed) > 1 else [round(statistics.fmean(listed), 4)] * 3


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--quick", action="store_true", help="a smaller model, 10 windows and a turn: does it work")
    parser.add_argument("--windows", type=int, help="windows to replay (100)")
    parser.add_argument("--turns", type=int, help="how often (5)")
    options = parser.parse_args()
    windows, turns = options.windows or (10 if options.quick else 100), options.turns or (1 if options.quick else 5)
    result = measure(options.quick, windows, turns, lambda text: print(text, file=sys.stderr, flush=True))
    print(json.dumps(result)) if options.json else show(result)


def show(result: dict[str, Any]) -> None:
    """The result as a table."""
    megabytes = result["bytes"] / 1e6
    print(f"{result['windows']} windows, {result['payloads']} payloads and a checkpoint: {megabytes:.1f} MB")
    for name in ("line", "folders"):
        found = result[name]
        low, middle, high = found["ratio"]
        print(
            f"{name:8} read {found['read_seconds'][1]:6.2f} s ({found['read_bytes_per_second'][1] / 1e6:.1f} MB/s)  "
            f"join {found['join_seconds'][1]:6.2f} s  ratio {middle:.2f} ({low:.2f} to {high:.2f})  "
            f"and {found['extra_bytes'] / 1e6:.2f} MB besides"
        )


if __name__ == "__main__":
    main()
