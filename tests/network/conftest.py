"""A whole network in one process and in virtual time: the neurons' own code, the built-in chain, real buckets.

Time is the event loop's. When every task waits for a timer and no thread works, the loop jumps to the next timer,
so a scenario takes as long as its arithmetic and runs the same on a slow or busy machine.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bittensor_core import Keypair

from neurons.miner import Miner
from neurons.node import Node, Parts
from neurons.training.model import build_model, initial_parameters, parameter_shapes
from protocol.chain.local import LocalChain, LocalChainConfig
from protocol.ledger.state import state_root
from protocol.run import Run, preset_table, run_from_table
from protocol.sparseloco.layout import Layout
from storage.checkpoint import write_checkpoint
from storage.dataset import open_dataset, write_dataset
from storage.directory import DirectoryBucket
from storage.keys import Keys
from storage.location import LocalLocation, decode, encode, open_bucket

GENESIS_SECONDS = 1_700_000_000.0


class _VirtualSelector(selectors.DefaultSelector):
    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.working = 0

    def select(self, timeout: float | None = None) -> Any:
        ready = super().select(0)
        if ready or timeout == 0:
            return ready
        if self.working or timeout is None:  # a thread will wake the loop; time stands still until then
            return super().select(None)
        self.now += timeout
        return ready


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock only moves when nothing else can."""

    def __init__(self) -> None:
        self._virtual = _VirtualSelector()
        super().__init__(self._virtual)

    def time(self) -> float:
        return self._virtual.now

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> Any:
        self._virtual.working += 1
        future = super().run_in_executor(executor, func, *args)
        future.add_done_callback(self._finished)
        return future

    def _finished(self, _future: object) -> None:
        self._virtual.working -= 1


def tiny_table() -> dict[str, Any]:
    """The demo preset on a model small enough that a window takes a fraction of a second."""
    table = preset_table("demo")
    table["model"] |= {
        "vocab_size": 256,
        "hidden_size": 48,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
    }
    table["dataset"] |= {"sequence_tokens": 64, "page_sequences": 4, "slots": 8}
    table["inner"] |= {"steps": 6, "learning_rate": 4e-3, "warmup_steps": 6}
    return table


@dataclass
class Simulation:
    """A network in a folder. `tamper` of a member wraps its parts before its node is made."""

    folder: Path
    table: dict[str, Any] = field(default_factory=tiny_table)
    stakes: tuple[float, ...] = (1000.0,)
    nodes: dict[str, Node] = field(default_factory=dict)
    tasks: dict[str, asyncio.Task[None]] = field(default_factory=dict)

    async def create(self, names: list[str]) -> None:
        """Dataset, genesis, chain; one registered wallet per name, validators first."""
        torch.set_num_threads(1)
        text = np.frombuffer(_text().encode("ascii"), np.uint8).astype(np.uint32)
        shape = self.table["dataset"]
        bucket = DirectoryBucket(self.folder / "dataset")
        index = await write_dataset(
            bucket,
            text,
            vocab_size=self.table["model"]["vocab_size"],
            sequence_tokens=shape["sequence_tokens"],
            page_sequences=shape["page_sequences"],
            held_out_pages=self.table["gauntlet"]["held_out_pages"],
            tokenizer=b"{}",
            shard_pages=1000,
        )
        theta = initial_parameters(self.table["model"], seed=0)
        self.table["genesis_root"] = state_root(theta)
        self.table["dataset"]["index_digest"] = index
        self.run: Run = run_from_table(self.table)
        self.keys = Keys(self.run.digest()[:16])
        self.layout = Layout.from_shapes(parameter_shapes(build_model(self.run.model)))
        config = LocalChainConfig(
            block_seconds=1.0,
            tempo_blocks=self.run.time.window_blocks,
            max_uids=self.run.dataset.slots,
            max_validators=4,
            validator_min_stake=1.0,
            weights_rate_limit_blocks=1,
            commitment_rate_limit_blocks=1,
            immunity_blocks=1000,
            registration_cost=0.0,
            emission_per_block=1.0,
            max_registrations_per_block=64,
        )
        self.keypairs = {name: Keypair.create_from_uri(f"//{name}") for name in names}
        self.coldkey = Keypair.create_from_uri("//coldkey")
        self.chain = LocalChain.create(
            self.folder / "chain.sqlite", config, {self.coldkey.ss58_address: 1e6}, seed=bytes(32)
        )
        self.chain.produce_block(GENESIS_SECONDS)
        for name in names:
            await self.chain.register(self.coldkey, self.keypairs[name].ss58_address)
        for stake, name in zip(self.stakes, names, strict=False):
            await self.chain.add_stake(self.coldkey, self.keypairs[name].ss58_address, stake)
            tensors = self.layout.tensors(theta)
            await write_checkpoint(
                self.bucket(name),
                self.keys,
                window=self.run.time.first_window,
                root=self.run.genesis_root,
                tensors=tensors,
            )

    def bucket(self, name: str) -> DirectoryBucket:
        """The bucket of a member."""
        return DirectoryBucket(self.folder / "buckets" / name)

    def start(self, name: str, kind: type[Node] = Miner, **changes: Any) -> Node:
        """Start the neuron of a member as a task. `changes` replace some of its parts."""
        folder = self.folder / "nodes" / name
        folder.mkdir(parents=True, exist_ok=True)
        fields: dict[str, Any] = {
            "name": name,
            "run": self.run,
            "chain": LocalChain.open(self.folder / "chain.sqlite"),
            "dataset": self.dataset,
            "hotkey": self.keypairs[name],
            "bucket": self.bucket(name),
            "location": encode(LocalLocation(name)),
            "open_bucket": lambda data: open_bucket(decode(data), self.folder / "buckets"),
            "folder": folder,
            "dtype": torch.float32,
        }
        node = kind(Parts(**{**fields, **changes}))
        self.nodes[name] = node
        self.tasks[name] = asyncio.get_running_loop().create_task(node.run_forever(), name=name)
        return node

    async def blocks(self, count: int) -> None:
        """Produce `count` blocks, one a second; a neuron that failed fails the test."""
        loop = asyncio.get_running_loop()
        for _ in range(count):
            await asyncio.sleep(1.0)
            self.chain.produce_block(GENESIS_SECONDS + loop.time())
            for task in self.tasks.values():
                if task.done():
                    task.result()

    async def stop(self, *names: str) -> None:
        """Stop some neurons, or all of them."""
        for name in names or tuple(self.tasks):
            task = self.tasks.pop(name)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await self.nodes[name].chain.close()

    async def __aenter__(self) -> Simulation:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.stop()
        await self.chain.close()


def _text() -> str:
    """Text with something to learn in it: the project's own sources, ASCII only."""
    root = Path(__file__).resolve().parents[2]
    files = sorted((root / "protocol").rglob("*.py")) + sorted((root / "storage").rglob("*.py"))
    return "".join(file.read_text().encode("ascii", "ignore").decode() for file in files)


@pytest.fixture
def network(tmp_path: Path) -> Callable[..., Coroutine[Any, Any, Simulation]]:
    """Make a network: `async with await network(["v", "a", "b"]) as net`."""

    async def make(names: list[str], *, table: dict[str, Any] | None = None, **options: Any) -> Simulation:
        simulation = Simulation(tmp_path, table or tiny_table(), **options)
        await simulation.create(names)
        simulation.dataset = await open_dataset(DirectoryBucket(tmp_path / "dataset"), index_of(simulation))
        return simulation

    return make


def index_of(simulation: Simulation) -> str:
    return simulation.run.dataset.index_digest


@pytest.fixture
def virtual() -> Callable[[Coroutine[Any, Any, Any]], Any]:
    """Run a coroutine to its end in virtual time."""

    def run(scenario: Coroutine[Any, Any, Any]) -> Any:
        with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
            return runner.run(scenario)

    return run
