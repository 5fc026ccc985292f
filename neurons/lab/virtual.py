"""A whole network in one process and in virtual time: the neurons' own code, the built-in chain, real buckets.

Time is the event loop's. When every task waits for a timer and no thread works, the loop jumps to the next timer,
so a scenario takes as long as its arithmetic and runs the same on a slow or busy machine.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from bittensor_core import Keypair

from neurons.corpus import standard_library_texts, tokenize, train_tokenizer
from neurons.errors import NetworkError
from neurons.miner import Miner
from neurons.node import Node, Parts
from neurons.onlooker import Onlooker
from neurons.training.model import build_model, initial_parameters, parameter_shapes
from protocol.chain.local import LocalChain, LocalChainConfig
from protocol.gauntlet.receipts import Receipts
from protocol.ledger.manifest import Manifest
from protocol.ledger.state import state_root
from protocol.run import Run, preset_table, run_from_table
from protocol.sparseloco.layout import Layout
from storage.bucket import Bucket
from storage.checkpoint import write_checkpoint
from storage.dataset import Dataset, open_dataset, write_dataset
from storage.directory import DirectoryBucket
from storage.errors import NotFound
from storage.keys import Keys
from storage.location import LocalLocation, decode, encode, open_bucket
from storage.transfer import Reach, Transport

GENESIS_SECONDS = 1_700_000_000.0
VOCABULARY = 512
COLDKEY = "//coldkey"
"""Who owns the members of whom nothing else is said."""

_CORPUS_FILES = 80

_Result = TypeVar("_Result")


class _VirtualSelector(selectors.DefaultSelector):
    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.working = 0

    def select(self, timeout: float | None = None) -> Any:
        ready = super().select(0)
        if ready or timeout == 0:
            return ready
        if self.working > 0 or timeout is None:  # a thread will wake the loop; time stands still until then
            return super().select(None)
        self.now += timeout
        return ready


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock only moves when nothing else can. One thread does what its tasks leave to threads: a
    scenario keeps one core busy, and what happens at the same time happens in the order in which it was asked for."""

    def __init__(self) -> None:
        self._virtual = _VirtualSelector()
        super().__init__(self._virtual)
        self.set_default_executor(ThreadPoolExecutor(1))

    def time(self) -> float:
        return self._virtual.now

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> Any:
        self._virtual.working += 1
        future = super().run_in_executor(executor, func, *args)
        future.add_done_callback(self._finished)
        return future

    def work(self, seconds: float) -> None:
        """Take `seconds` of this clock, in a worker thread: what a slow machine does there. The other tasks need other
        threads meanwhile, so the loop must have been given an executor with more than one."""
        asyncio.run_coroutine_threadsafe(self._pass(seconds), self).result()

    async def _pass(self, seconds: float) -> None:
        # Below zero if nobody waits for the thread any more: then it holds up nothing.
        self._virtual.working -= 1
        try:
            await asyncio.sleep(seconds)
        finally:
            self._virtual.working += 1

    def _finished(self, _future: object) -> None:
        self._virtual.working -= 1


def run_virtually(scenario: Coroutine[Any, Any, _Result]) -> _Result:
    """Run a coroutine to its end in virtual time."""
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(scenario)


@dataclass(frozen=True, slots=True, eq=False)
class Corpus:
    """What a network trains on: token ids, uint32 [T], and the tokenizer that made them."""

    tokens: np.ndarray
    tokenizer: bytes


def small_corpus() -> Corpus:
    """A part of the standard library: real text, and few enough tokens to be cut in a second."""
    files = standard_library_texts()[:_CORPUS_FILES]
    tokenizer = train_tokenizer(files, VOCABULARY)
    return Corpus(tokenize(files, tokenizer), tokenizer)


def tiny_table() -> dict[str, Any]:
    """The demo preset on a model small enough that a window takes a fraction of a second."""
    table = preset_table("demo")
    table["model"] |= {
        "vocab_size": VOCABULARY,
        "hidden_size": 48,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
    }
    table["dataset"] |= {"sequence_tokens": 64, "page_sequences": 8, "slots": 6}
    table["gauntlet"] |= {"own_pages": 6}
    table["inner"] |= {"steps": 6, "pages_per_step": 1, "learning_rate": 4e-3, "warmup_steps": 6}
    return table


@dataclass
class Simulation:
    """A network in a folder: validators are the members that have a stake, first of all. `seed` fixes the first state
    and every block hash; `coldkeys` names the owners (key URIs) of members that do not belong to the common one;
    for `immunity_blocks` nobody loses its slot to a newcomer."""

    folder: Path
    corpus: Corpus
    table: dict[str, Any] = field(default_factory=tiny_table)
    stakes: tuple[float, ...] = (1000.0,)
    seed: int = 0
    coldkeys: Mapping[str, str] = field(default_factory=dict)
    immunity_blocks: int = 1000
    nodes: dict[str, Node] = field(default_factory=dict)
    tasks: dict[str, asyncio.Task[None]] = field(default_factory=dict)
    names: list[str] = field(default_factory=list)

    async def create(self, names: list[str]) -> None:
        """Dataset, genesis, chain; one registered wallet per name, validators first."""
        self.names = names
        shape = self.table["dataset"]
        bucket = DirectoryBucket(self.folder / "dataset")
        index = await write_dataset(
            bucket,
            self.corpus.tokens,
            vocab_size=self.table["model"]["vocab_size"],
            sequence_tokens=shape["sequence_tokens"],
            page_sequences=shape["page_sequences"],
            held_out_pages=self.table["gauntlet"]["held_out_pages"],
            tokenizer=self.corpus.tokenizer,
            shard_pages=1000,
        )
        theta = initial_parameters(self.table["model"], seed=self.seed)
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
            immunity_blocks=self.immunity_blocks,
            registration_cost=0.0,
            emission_per_block=1.0,
            max_registrations_per_block=64,
        )
        self.dataset = await open_dataset(bucket, index)
        self.keypairs = {name: Keypair.create_from_uri(f"//{name}") for name in names}
        self.coldkey = Keypair.create_from_uri(COLDKEY)
        self.chain = LocalChain.create(
            self.folder / "chain.sqlite", config, {self.coldkey.ss58_address: 1e6}, seed=self.seed.to_bytes(32, "big")
        )
        self.chain.produce_block(GENESIS_SECONDS)
        for name in names:
            await self.chain.register(self.owner(name), self.keypairs[name].ss58_address)
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

    def owner(self, name: str) -> Keypair:
        """The coldkey of a member."""
        return Keypair.create_from_uri(self.coldkeys.get(name, COLDKEY))

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
            "location": self.location(name),
            "open_bucket": self.open_bucket,
            "folder": folder,
            "dtype": torch.float32,
        }
        node = kind(Parts(**{**fields, **changes}))
        self.nodes[name] = node
        self.tasks[name] = asyncio.get_running_loop().create_task(node.run_forever(), name=name)
        return node

    async def blocks(self, count: int) -> None:
        """Produce `count` blocks, one a second; raises what a neuron failed of."""
        loop = asyncio.get_running_loop()
        for _ in range(count):
            await asyncio.sleep(1.0)
            self.chain.produce_block(GENESIS_SECONDS + loop.time())
            for task in self.tasks.values():
                if task.done():
                    task.result()

    async def windows(self, count: int) -> None:
        """Go on until `count` more windows have been judged by the first validator."""
        target = max(0, self.nodes[self.names[0]].state.window) + count
        for _ in range(2 * count * self.run.time.window_blocks + 60):
            if self.nodes[self.names[0]].state.window >= target and await self.is_judged(target - 1):
                return
            await self.blocks(1)
        raise NetworkError(f"window {target - 1} was not judged")

    async def is_judged(self, window: int) -> bool:
        """Whether the first validator has published receipts of `window`."""
        try:
            await self.receipts(window)
        except NotFound:
            return False
        return True

    async def receipts(self, window: int, name: str | None = None) -> Receipts:
        """The receipts of a validator, the first by default."""
        bucket = self.bucket(name or self.names[0])
        return Receipts.parse(await bucket.get(self.keys.receipts(window), limit_bytes=10**7))

    async def manifest(self, window: int, name: str | None = None) -> Manifest:
        """The manifest in a validator's bucket, the first's by default."""
        bucket = self.bucket(name or self.names[0])
        return Manifest.parse(await bucket.get(self.keys.manifest(window), limit_bytes=10**7))

    def roots(self) -> set[tuple[int, str]]:
        """(window, root) of every running neuron, recomputed from its parameters."""
        return {(n.state.window, n.state.root()) for name, n in self.nodes.items() if name in self.tasks}

    def location(self, name: str) -> bytes:
        """What a member commits on chain."""
        return encode(LocalLocation(name))

    def open_bucket(self, commitment: bytes) -> Bucket:
        """Open a member's bucket from its commitment: a local name, so the transport has nothing to do."""
        return open_bucket(decode(commitment), Transport(Reach.ANY), self.folder / "buckets")

    def onlooker(self) -> Onlooker:
        """The network as somebody sees it who takes no part."""

        async def dataset() -> Dataset:
            return self.dataset

        return Onlooker(self.run, self.chain, self.open_bucket, dataset)

    async def stop(self, *names: str) -> None:
        """Stop some neurons, or all of them."""
        for name in names or tuple(self.tasks):
            task = self.tasks.pop(name)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await self.nodes[name].chain.close()

    async def __aenter__(self) -> Simulation:
        """The network during a block; all neurons stop at its end."""
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.stop()
        await self.chain.close()
