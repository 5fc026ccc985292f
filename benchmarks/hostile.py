"""What peers that cost as much as they can cost a validator: time, memory and disk, with real sockets and real time.

    python -m benchmarks.hostile [--quick] [--json]

From a checkout: the peers' server is the misbehaving one of the tests (`tests/storage/proxy.py`). A validator, in a
process of its own, takes part in one window of a run whose payloads have about 0.8 MB: it reads seals, keys and shards
of all peers over HTTP, publishes the manifest, and opens what else has come. Three times: with 20 honest peers, who are
the gather list; with five more of each kind of `HOSTILE` (one with `--quick`); and with one of ten kinds on the
reserve list besides, for whom the manifest has to wait until keys are due. Blocks take 3 s.

- *manifest*: the block in which it was published, counted from the close of the window; it is due by `manifest_blocks`.
- *memory*: the peak of the resident size beyond what it was before the snapshot. *spool*: the most that lay on disk.
- *CPU*: seconds of the validator's process, until all payloads that came are open. *Files* counts sockets too.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from random import Random
from typing import Any, cast

import numpy as np
import torch
from bittensor_core import Keypair

from benchmarks.transfer import reset_peak, resident_bytes
from neurons.node import Parts
from neurons.process import PEERS
from neurons.rounds import Exchange
from neurons.spool import Spool
from neurons.training.model import build_model, parameter_shapes
from neurons.validator import Validator
from protocol.chain.local import LocalChain, LocalChainConfig
from protocol.ledger.manifest import FIRST_PREVIOUS, Seat
from protocol.ledger.state import State
from protocol.run import Run, preset_table, run_from_table
from protocol.sparseloco.compress import compress
from protocol.sparseloco.layout import Layout
from protocol.sparseloco.payload import Header, sync_proof
from protocol.window import Window, deadlines
from storage.directory import DirectoryBucket
from storage.location import HttpsLocation, LocalLocation, decode, encode, open_bucket
from storage.transfer import Reach, Transport
from tests.storage.proxy import FAULTS, Fault, Proxy, Request, Response

HONEST = 20
BLOCK_SECONDS = 3.0
SEED = bytes(32)
_SAMPLE_SECONDS = 0.05
_SLOW_BYTES_PER_SECOND = 1000.0
_HUGE_BYTES = 10_000_000

# --- the peers ------------------------------------------------------------------------------------------------


def _answers(change: Callable[[Response], Response], name: str, **rest: Any) -> Fault:
    return Fault(name, lambda request, honest, random: change(honest), **rest)


def _larger(honest: Response) -> Response:
    """A range of an object that is 64 MiB longer than it may be."""
    told = honest.headers.get("content-range", "")
    longer = told.rpartition("/")[0] + f"/{int(told.rpartition('/')[2]) + (64 << 20)}" if told else ""
    return replace(honest, headers=honest.headers | {"content-range": longer})


_SLOW = Fault("1 kB/s", bytes_per_second=_SLOW_BYTES_PER_SECOND)
_HUGE = _answers(lambda honest: Response(200, {}, b"[" * _HUGE_BYTES), "10 MB")

HOSTILE: dict[str, tuple[str, Fault | None]] = {
    "drips its seal at 1 kB/s": ("/seal.json", _SLOW),
    "drips its shards at 1 kB/s": ("/shard-00000", _SLOW),
    "has a seal of 10 MB": ("/seal.json", _HUGE),
    "has a key of 10 MB": ("/key.json", _HUGE),
    "has shards 64 MiB too large": ("/shard-00000", _answers(_larger, "larger")),
    "has shards without an end": ("/shard-00000", FAULTS["endless body"]),
    "announces an exabyte": ("", FAULTS["immense length"]),
    "packs 64 MiB into 64 kB": ("/seal.json", FAULTS["swollen"]),
    "sends headers without an end": ("", FAULTS["endless headers"]),
    "takes the connection and is silent": ("", FAULTS["stall at once"]),
    "is silent once it should reveal": ("/key.json", FAULTS["stall unanswered"]),
    "is always busy": ("", FAULTS["slow down"]),
    "sends payloads that are none": ("", None),
    "sends noise, well-formed": ("", None),
}
"""Which requests for its objects get which answer. The last two answer as they should, and send what costs most."""

_RANDOM_BYTES = "sends payloads that are none"


@dataclass(frozen=True, slots=True)
class Member:
    """A neuron of the benchmark, and its kind, empty for the honest ones."""

    name: str
    kind: str = ""

    @property
    def keypair(self) -> Keypair:
        """Its hotkey."""
        return Keypair.create_from_uri(f"//{self.name}")


def members(each: int) -> list[Member]:
    """Honest peers, then so many of each hostile kind."""
    hostile = [Member(f"hostile-{n}-{i}", kind) for n, kind in enumerate(HOSTILE) for i in range(each)]
    return [*(Member(f"honest-{number}") for number in range(HONEST)), *hostile]


def run_of() -> Run:
    """A run whose model has 43 M parameters."""
    table = preset_table("demo")
    table["model"] |= {"vocab_size": 8192, "hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 12}
    table["dataset"] |= {"slots": 256}
    table["genesis_root"] = table["dataset"]["index_digest"] = "0" * 64
    return run_from_table(table)


async def prepare(
    run: Run, layout: Layout, state: State, folder: Path, peers: list[Member], window_hash: bytes
) -> None:
    """Seal a payload of each peer; its key waits in the folder `keys`."""
    window = deadlines(0, run.time)
    for number, peer in enumerate(peers):
        hotkey = peer.keypair
        draw = np.random.default_rng(number)
        delta = draw.standard_normal(layout.size, np.float32) * np.float32(1e-3)
        body = compress(layout, run.sparseloco, np.zeros_like(delta), delta)
        header = Header(
            run_digest=run.digest(),
            window=window.number,
            hotkey=hotkey.ss58_address,
            layout_digest=layout.digest,
            base_root=state.root(),
            sync_proof=sync_proof(state.theta, hotkey.ss58_address, window_hash),
            inner_steps=1,
            tokens=1,
        ).pack()
        if peer.kind == _RANDOM_BYTES:
            body = Random(number).randbytes(len(body))
        bucket = DirectoryBucket(folder / "objects" / peer.name)
        exchange, payload, key = Exchange(run, layout, hotkey, bucket, Spool(folder)), header + body, bytes(32)
        shards = await exchange.publish_shards(0, payload, key)
        sealed = await exchange.publish_seal(0, state.root(), payload, shards, key)
        waiting = DirectoryBucket(folder / "keys" / peer.name)
        await Exchange(run, layout, hotkey, waiting, Spool(folder)).publish_key(sealed)


def serve(folder: Path, request: Request) -> Response:
    """The objects as an honest server gives them."""
    path = folder / "objects" / request.target.lstrip("/")
    if not path.is_file():
        return Response(404)
    data = path.read_bytes()
    asked = request.headers.get("range", "").removeprefix("bytes=").split("-")
    if asked == [""]:
        return Response(200, {"last-modified": "Wed, 01 Jan 2025 00:00:00 GMT"}, data)
    start, end = int(asked[0]), int(asked[1]) + 1
    return Response(206, {"content-range": f"bytes {start}-{end - 1}/{len(data)}"}, data[start:end])


def plan_of(peers: list[Member]) -> Callable[[Request], Fault | None]:
    """Which request gets which answer."""
    kinds = {peer.name: HOSTILE[peer.kind] for peer in peers if peer.kind}

    def plan(request: Request) -> Fault | None:
        ending, fault = kinds.get(request.target.split("/")[1], ("", None))
        return fault if request.target.endswith(ending) else None

    return plan


# --- the validator --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Cost:
    """What one window cost. `manifest_block` counts from the close; `opened` are valid payloads; `connections` the
    most files and sockets that were open at once."""

    manifest_block: int
    applied: int
    opened: int
    peak_bytes: int
    spool_bytes: int
    cpu_seconds: float
    tasks: int
    connections: int


def state_of(layout: Layout) -> State:
    """The state that all start from."""
    return State(layout, np.zeros(layout.size, np.float32), 0, FIRST_PREVIOUS)


def validate(folder: Path, listed: list[str], reserve: list[str]) -> Cost:
    """Take part in the window, in the process that calls this."""
    return asyncio.run(_validate(folder, listed, reserve))


async def _validate(folder: Path, listed: list[str], reserve: list[str]) -> Cost:
    run = run_of()
    transport = Transport(Reach.ANY, limits=PEERS)
    chain = LocalChain.open(folder / "chain.sqlite")
    hotkey = Member("validator").keypair
    (folder / "node").mkdir()
    parts = Parts(
        name="validator",
        run=run,
        chain=chain,
        dataset=cast(Any, None),  # nothing is judged here
        hotkey=hotkey,
        bucket=DirectoryBucket(folder / "validator"),
        location=encode(LocalLocation("validator")),
        open_bucket=lambda commitment: open_bucket(decode(commitment), transport, folder),
        folder=folder / "node",
        dtype=torch.float32,
    )
    validator = Validator(parts)
    validator.exchange.recover(())
    validator.state = state_of(validator.layout)
    validator.roots = {validator.state.root(): 0}
    seats = {n.hotkey: Seat(uid=n.uid, hotkey=n.hotkey) for n in await chain.neurons()}
    validator.lists[0] = (tuple(seats[each] for each in listed), tuple(seats[each] for each in reserve))
    window = deadlines(0, run.time)
    (folder / "ready").touch()
    reset_peak()
    before, cpu = resident_bytes("VmRSS"), time.process_time()
    watching = asyncio.create_task(_watch(folder / "node" / "sealed"))
    found = await validator.snapshot(window)
    await validator.collect(window, found)
    manifest = await validator.agree(window, found)
    block = (await chain.head()).number
    await validator._poll(found, window, set(found.entries))
    await found.end_reading()
    await found.look_for_late_seals(BLOCK_SECONDS)
    watching.cancel()
    cost = Cost(
        manifest_block=block - window.close_block,
        applied=len(manifest.contributions),
        opened=len(found.payloads()),
        peak_bytes=resident_bytes("VmHWM") - before,
        spool_bytes=_most["spool"],
        cpu_seconds=time.process_time() - cpu,
        tasks=_most["tasks"],
        connections=_most["files"],
    )
    await transport.close()
    return cost


_most = {"spool": 0, "tasks": 0, "files": 0}


async def _watch(spool: Path) -> None:
    while True:
        sizes = [path.stat().st_size for path in list(spool.iterdir()) if path.exists()]
        now = {
            "spool": sum(sizes),
            "tasks": len(asyncio.all_tasks()),
            "files": len(list(Path("/proc/self/fd").iterdir())),
        }
        _most.update({name: max(_most[name], value) for name, value in now.items()})
        await asyncio.sleep(_SAMPLE_SECONDS)


# --- one window -----------------------------------------------------------------------------------------------


async def window_with(each: int, reserves: bool) -> Cost:
    """What a window costs with so many hostile peers of each kind; one of each on the reserve list if `reserves`."""
    run = run_of()
    layout = Layout.from_shapes(parameter_shapes(build_model(run.model)))
    peers = members(each)
    with tempfile.TemporaryDirectory(prefix="windrow-hostile-") as name:
        folder = Path(name)
        async with Proxy(partial(serve, folder), plan_of(peers)) as server:
            chain = await _found(folder, run, peers, server.url)
            start, window = await chain.block(0), deadlines(0, run.time)
            while (await chain.head()).number < window.close_block:
                chain.produce_block(time.time())
            await prepare(run, layout, state_of(layout), folder, peers, start.hash)
            listed = [peer.keypair.ss58_address for peer in peers if not peer.kind]
            first = {peer.kind: peer.keypair.ss58_address for peer in reversed(peers) if peer.kind}
            reserve = list(first.values())[: run.gauntlet.reserve_size] if reserves else []
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as fresh:
                running = asyncio.wrap_future(fresh.submit(validate, folder, listed, reserve))
                while not (folder / "ready").exists() and not running.done():
                    await asyncio.sleep(0.1)
                await _produce(chain, folder, window, running)
                cost = await running
            await chain.close()
            return cost


async def _found(folder: Path, run: Run, peers: list[Member], url: str) -> LocalChain:
    config = LocalChainConfig(
        block_seconds=BLOCK_SECONDS,
        tempo_blocks=10_000,
        max_uids=run.dataset.slots,
        max_validators=1,
        validator_min_stake=1.0,
        weights_rate_limit_blocks=1,
        commitment_rate_limit_blocks=1,
        immunity_blocks=1000,
        registration_cost=0.0,
        emission_per_block=0.0,
        max_registrations_per_block=run.dataset.slots,
    )
    coldkey = Member("coldkey").keypair
    chain = LocalChain.create(folder / "chain.sqlite", config, {coldkey.ss58_address: 1e6}, SEED)
    chain.produce_block(time.time())
    for member in (Member("validator"), *peers):
        await chain.register(coldkey, member.keypair.ss58_address)
    await chain.add_stake(coldkey, Member("validator").keypair.ss58_address, 100.0)
    await chain.commit(Member("validator").keypair, encode(LocalLocation("validator")))
    for peer in peers:
        await chain.commit(peer.keypair, encode(HttpsLocation(f"{url}/{peer.name}")))
    return chain


async def _produce(chain: LocalChain, folder: Path, window: Window, running: asyncio.Future[Cost]) -> None:
    """Blocks until the window's validator is done; keys come out when they are due."""
    while not running.done():
        if chain.produce_block(time.time()).number == window.key_block:
            shutil.copytree(folder / "keys", folder / "objects", dirs_exist_ok=True)
        await asyncio.wait({running}, timeout=BLOCK_SECONDS)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--quick", action="store_true", help="one hostile peer of each kind instead of five")
    options = parser.parse_args()
    each = 1 if options.quick else 5
    many = each * len(HOSTILE)
    found: dict[str, Cost] = {}
    for name, hostile, reserves in (
        ("20 honest", 0, False),
        (f"and {many} hostile", each, False),
        ("one of each on the reserve list", each, True),
    ):
        print(name, file=sys.stderr, flush=True)
        found[name] = asyncio.run(window_with(hostile, reserves))
    if options.json:
        print(json.dumps({name: asdict(cost) for name, cost in found.items()}))
        return
    print(f"{'':34}{'manifest':>9}{'applied':>9}{'open':>6}{'memory':>9}{'spool':>9}{'CPU':>8}{'tasks':>7}{'files':>7}")
    for name, cost in found.items():
        print(
            f"{name:34}{f'C+{cost.manifest_block}':>9}{cost.applied:9}{cost.opened:6}"
            f"{cost.peak_bytes / 2**20:6.0f} MB{cost.spool_bytes / 2**20:6.0f} MB{cost.cpu_seconds:6.1f} s"
            f"{cost.tasks:7}{cost.connections:7}"
        )


if __name__ == "__main__":
    main()
