"""Fixtures for whole networks in virtual time (`neurons.lab.virtual`)."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import shutil
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import tomli_w
import torch

from neurons.adversaries import adversary
from neurons.audit.walk import audit
from neurons.errors import NotJudged
from neurons.lab.virtual import Corpus, Simulation, run_virtually, small_corpus, tiny_table
from neurons.onlooker import Onlooker
from neurons.validator import Validator
from protocol.chain.local import LocalChain
from protocol.run import Run
from storage.dataset import open_dataset
from storage.directory import DirectoryBucket
from storage.keys import Keys
from storage.location import decode, open_bucket
from storage.transfer import Reach, Transport


def quick_table() -> dict[str, Any]:
    """As `tiny_table`, with as little training and judging as there can be: for scenarios of many windows."""
    table = tiny_table()
    table["inner"] |= {"steps": 2, "warmup_steps": 0}
    table["gauntlet"] |= {"own_pages": 2, "random_pages": 2, "random_pages_most": 2, "held_out_pages": 1}
    return table


@functools.cache
def corpus() -> Corpus:
    """What all networks of a session train on."""
    return small_corpus()


@dataclass
class Audited(Simulation):
    """A network that must stand an audit of its ledger in the end, whatever happened in it; unless a test makes a
    validator lie or takes objects away, and says so."""

    stands_audit: bool = True

    async def __aexit__(self, *exc: object) -> None:
        await self.stop()
        if exc[0] is None and self.stands_audit:
            with contextlib.suppress(NotJudged):
                report = await audit(self.onlooker(), None, None, False, self.folder / "audit", lambda _: None)
                assert report.exit_code == 0, "\n".join(report.sentences())
        await super().__aexit__(*exc)


@pytest.fixture
def network(tmp_path: Path) -> Callable[..., Coroutine[Any, Any, Simulation]]:
    """Make a network: `async with await network(["v", "a", "b"]) as net`."""

    folders = itertools.count()

    async def make(names: list[str], **options: Any) -> Simulation:
        folder = tmp_path / f"network-{next(folders)}"
        folder.mkdir()
        simulation = Audited(folder, corpus(), **options)
        await simulation.create(names)
        return simulation

    return make


@dataclass(frozen=True)
class Played:
    """A network that was played to its end, in a folder: five windows, of which the state of the second and fourth was
    published. Validator v; miners a, b and c; d never reveals; e is registered and does nothing."""

    folder: Path
    run: Run

    @property
    def keys(self) -> Keys:
        """Names of its objects."""
        return Keys(self.run.digest()[:16])

    def bucket(self, name: str) -> Path:
        """The folder that is the bucket of a member."""
        return self.folder / "buckets" / name

    def copy(self, folder: Path) -> Played:
        """The same in another folder, to be tampered with."""
        shutil.copytree(self.folder, folder)
        return Played(folder, self.run)

    def look(self, reader: Callable[[Onlooker], Coroutine[Any, Any, Any]]) -> Any:
        """What `reader` finds in it, on the real clock."""

        async def read() -> Any:
            chain = LocalChain.open(self.folder / "chain.sqlite")
            buckets, dataset = self.folder / "buckets", DirectoryBucket(self.folder / "dataset")
            look = Onlooker(
                run=self.run,
                chain=chain,
                open_bucket=lambda data: open_bucket(decode(data), Transport(Reach.ANY), buckets),
                open_dataset=lambda: open_dataset(dataset, self.run.dataset.index_digest),
            )
            try:
                return await reader(look)
            finally:
                await chain.close()

        return asyncio.run(read())


@pytest.fixture(scope="session")
def played(tmp_path_factory: pytest.TempPathFactory) -> Played:
    """A network whose past can be looked at. Tests that change anything in it take a copy."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("played") / "network"
    folder.mkdir()
    table = quick_table()
    table["checkpoints"] |= {"every_windows": 2, "keep": 3}

    async def scenario() -> Run:
        simulation = Simulation(folder, corpus(), table=table)
        await simulation.create(["v", "a", "b", "c", "d", "e"])
        async with simulation as net:
            net.start("v", Validator)
            for name in "abc":
                net.start(name)
            net.start("d", adversary("no-reveal"))
            await net.windows(5)
            return net.run

    run = run_virtually(scenario())
    (folder / "run.toml").write_text(tomli_w.dumps(run.model_dump(mode="json")))
    return Played(folder, run)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def quick() -> dict[str, Any]:
    """Constants of a network whose windows cost next to nothing."""
    return quick_table()


@pytest.fixture
def virtual() -> Callable[[Coroutine[Any, Any, Any]], Any]:
    """Run a coroutine to its end in virtual time."""

    return run_virtually
