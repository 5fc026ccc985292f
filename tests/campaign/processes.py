"""What the processes of a campaign's network do: neurons as everybody starts them, on ports that fail; the chain."""

from __future__ import annotations

import os
import random
import resource
import sys
import time
from dataclasses import replace
from pathlib import Path

from neurons.errors import EXPECTED_ERRORS, exit_code
from neurons.folder import Places
from neurons.node import Node, Parts
from neurons.settings import load_settings
from protocol.chain.local import LocalChain
from storage.bucket import Bucket
from storage.directory import DirectoryBucket
from tests.campaign.faults import FaultyBucket, FaultyChain, FaultyStore, Source, note_in
from tests.campaign.plan import Weather

CALM_FILE = "calm"
"""Once it is there, nothing goes wrong any more."""


def neuron(folder: Path, name: str, role: str, weather: Weather, seed: str) -> None:
    """Run a neuron of the network in `folder`. `seed` is of this process alone."""
    log = os.open(Places(folder).log(name), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    from neurons.miner import Miner
    from neurons.process import run_neuron
    from neurons.validator import Validator

    kinds: dict[str, type[Node]] = {"miner": Miner, "validator": Validator}
    source = Source(name, random.Random(seed), note_in(folder), lambda: _is_left_alone(folder))
    try:
        settings = load_settings({"dir": folder, "wallet_name": name, "dtype": "fp32"}, {})
        run_neuron(lambda parts: kinds[role](in_weather(parts, weather, source)), settings)  # type: ignore[arg-type]
    except EXPECTED_ERRORS as error:
        _make_room()
        print(f"windrow: {error}", file=sys.stderr, flush=True)
        sys.exit(exit_code(error))
    except Exception:
        _make_room()
        raise


def _make_room() -> None:
    """Where the disk is full just now, the log would say nothing of why a process ends."""
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))


def _is_left_alone(folder: Path) -> bool:
    """Whether it is calm; or the disk is full, which is enough, and leaves no room for notes."""
    return (folder / CALM_FILE).exists() or resource.getrlimit(resource.RLIMIT_FSIZE)[0] != resource.RLIM_INFINITY


def in_weather(parts: Parts, weather: Weather, source: Source) -> Parts:
    """The same parts, with ports that fail."""
    memory: dict[str, list[tuple[str, bytes]]] = {}
    opened: dict[bytes, Bucket] = {}

    def open_bucket(commitment: bytes) -> Bucket:
        if commitment not in opened:
            inner = parts.open_bucket(commitment)
            opened[commitment] = FaultyBucket(inner, source, weather.reads, memory)
        return opened[commitment]

    assert isinstance(parts.bucket, DirectoryBucket)
    own = FaultyStore(parts.bucket.root, source, weather.writes, weather.killed)
    chain = FaultyChain(parts.chain, source, weather.chain)
    return replace(parts, open_bucket=open_bucket, bucket=own, chain=chain)


def tick(folder: Path, block_seconds: float) -> None:
    """Make a block every `block_seconds`."""
    chain = LocalChain.open(Places(folder).chain)
    due = time.monotonic()
    while True:
        due = max(due + block_seconds, time.monotonic())
        time.sleep(max(0.0, due - time.monotonic()))
        chain.produce_block(time.time())
