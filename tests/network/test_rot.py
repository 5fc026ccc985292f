"""One flipped bit, anywhere: it is found and named, and what it was is had from elsewhere, or is done without."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from neurons.audit.walk import audit
from neurons.lab.virtual import Simulation, run_virtually
from neurons.miner import Miner
from neurons.node import Node
from neurons.validator import Validator
from protocol.chain.local import LocalChain
from protocol.ledger.manifest import Manifest
from tests.network.conftest import corpus, quick_table

NAMES = ["v", "w", "a", "late"]
WINDOWS = 6


@dataclass(frozen=True)
class Stopped:
    """A network in which all processes have ended, in the middle of a window. `root` is that of θ before `window`."""

    net: Simulation
    window: int
    root: str
    manifest: Manifest
    """The last one that was applied, which the newest checkpoint does not hold."""

    def in_folder(self, folder: Path) -> Simulation:
        """The same in a copy of its folder."""
        shutil.copytree(self.net.folder, folder)
        copy = Simulation(folder, corpus(), table=self.net.table, stakes=self.net.stakes)
        for name in ("names", "run", "keys", "layout", "dataset", "keypairs", "coldkey"):
            setattr(copy, name, getattr(self.net, name))
        copy.chain = LocalChain.open(folder / "chain.sqlite")
        return copy


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Stopped:
    """Validators v and w, miner a; the one that comes later is registered."""
    folder = tmp_path_factory.mktemp("rot") / "network"
    folder.mkdir()
    table = quick_table()
    table["checkpoints"] |= {"every_windows": 4, "keep": 2}

    async def play() -> Stopped:
        async with Simulation(folder, corpus(), table=table, stakes=(1000.0, 900.0)) as net:
            await net.create(NAMES)
            for name in "vw":
                net.start(name, Validator)
            net.start("a")
            await net.windows(WINDOWS)
            while not (folder / "nodes" / "v" / "window.json").exists():
                await net.blocks(1)
            await net.blocks(1)
            node = net.nodes["w"]
            return Stopped(net, node.state.window, node.root(), await net.manifest(node.state.window - 1))

    return run_virtually(play())


def flip(path: Path) -> None:
    """Turn one bit in the middle of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@dataclass(frozen=True)
class Place:
    """Where a bit is flipped: a file below the network's folder, as `find` says. `who` comes across it when it starts,
    and says `words`. `first` is done before."""

    who: str
    find: Callable[[Stopped], str]
    words: tuple[str, ...]
    first: Callable[[Simulation, Stopped], None] = lambda net, stopped: None
    is_set_aside: bool = False


def _shard(owner: str) -> Callable[[Stopped], str]:
    def find(stopped: Stopped) -> str:
        named = stopped.manifest.contributions[0]
        return f"buckets/{owner}/{stopped.net.keys.shard(stopped.manifest.window, named.hotkey, 0)}"

    return find


def _without_the_miners_bucket(net: Simulation, _: Stopped) -> None:
    shutil.rmtree(net.bucket("a").root)


def _without_what_was_kept(net: Simulation, _: Stopped) -> None:
    shutil.rmtree(net.folder / "nodes" / "v" / "sealed")


def _checkpoint(name: str) -> Callable[[Stopped], str]:
    return lambda stopped: f"buckets/v/{stopped.net.keys.checkpoint_prefix()}{name}"


def _own(owner: str, name: str) -> Callable[[Stopped], str]:
    return lambda _: f"nodes/{owner}/{name}"


PLACES = {
    "payload": Place("late", _shard("a"), ("uid 2, in its own bucket: ", "shard_digest")),
    "mirror": Place("late", _shard("v"), ("uid 2, in the mirror of uid 0: ",), _without_the_miners_bucket),
    "manifest": Place(
        "late",
        lambda s: f"buckets/v/{s.net.keys.manifest_of(s.manifest.window, s.manifest.digest())}",
        (f"manifest {WINDOWS - 1} from uid 0",),
    ),
    "votes": Place("late", lambda s: f"buckets/v/{s.net.keys.ballots()}", ("ballots from uid 0: ",)),
    "checkpoint": Place("late", _checkpoint("00000004/shard-00000.safetensors"), ("checkpoint 4 of uid 0: leaf 0",)),
    "checkpoint's index": Place("late", _checkpoint("00000004/index.json"), ("checkpoint 4 of uid 0",)),
    "newest checkpoint of all": Place(
        "late",
        _checkpoint("00000004/shard-00000.safetensors"),
        ("checkpoint 4 of uid 1: leaf 0",),
        lambda net, _: flip(net.bucket("w").root / net.keys.checkpoint(4, "shard-00000.safetensors")),
    ),
    "pointer": Place("late", _checkpoint("latest.json"), ("of uid 0: ", "latest.json")),
    "journal": Place("v", _own("v", "window.json"), ("window.json is damaged",), is_set_aside=True),
    "scorebook": Place("v", _own("v", "validator.json"), ("validator.json is damaged",), is_set_aside=True),
    "stance": Place("v", _own("v", "pledge.json"), ("pledge.json is damaged",), is_set_aside=True),
    "what is final": Place("v", _own("v", "ledger.json"), ("ledger.json is damaged",), is_set_aside=True),
    "moments and error": Place("a", _own("a", "training.safetensors"), ("training.safetensors",), is_set_aside=True),
    "spool": Place("v", lambda s: f"nodes/v/sealed/{_spooled(s)}", ("was damaged on this machine's disk",)),
}


def _spooled(stopped: Stopped) -> str:
    """A shard that the validator keeps over a restart."""
    return stopped.net.nodes["v"].memory.last[0].shards[0].digest  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", PLACES)
def test_a_flipped_bit_is_found_named_and_done_without(
    stopped: Stopped, tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    place = PLACES[name]
    kind: type[Node] = Validator if place.who in "vw" else Miner

    async def go_on() -> None:
        async with stopped.in_folder(tmp_path / "copy") as net:
            path = net.folder / place.find(stopped)
            place.first(net, stopped)
            flip(path)
            rotten = path.read_bytes()
            node = net.start(place.who, kind)
            for _ in range(20):
                await net.blocks(1)
                if node.state.window >= stopped.window:
                    break
            assert node.state.window >= stopped.window
            assert next(root for root, window in node.roots.items() if window == stopped.window) == stopped.root
            if place.is_set_aside:
                assert path.with_name(f"{path.name}.damaged").read_bytes() == rotten
                assert not path.exists() or path.read_bytes() != rotten

    with caplog.at_level(logging.INFO):
        run_virtually(go_on())
    said = [record.getMessage() for record in caplog.records]
    assert any(all(word in sentence for word in place.words) for sentence in said), said


class Rotting(Miner):
    """A miner on a disk that damages the first shard that it fetches."""

    rotten = 0

    def __init__(self, parts: Any) -> None:
        super().__init__(parts)
        fetch = self.exchange.read_shards

        async def read_shards(*arguments: Any) -> list[Path]:
            paths = await fetch(*arguments)
            if not self.rotten:
                self.rotten = 1
                flip(paths[0])
            return paths

        self.exchange.read_shards = read_shards  # type: ignore[method-assign]


def test_a_shard_that_rots_before_it_is_opened_is_fetched_again_and_blamed_on_nobody(
    stopped: Stopped, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def go_on() -> None:
        async with stopped.in_folder(tmp_path / "copy") as net:
            node = net.start("late", Rotting)
            for _ in range(20):
                await net.blocks(1)
            assert next(root for root, window in node.roots.items() if window == stopped.window) == stopped.root

    with caplog.at_level(logging.WARNING):
        run_virtually(go_on())
    said = [record.getMessage() for record in caplog.records]
    assert any("was damaged on this machine's disk and is fetched again" in sentence for sentence in said), said
    assert not any("uid 2" in sentence for sentence in said), said


AUDITED = {
    "payload": (_shard("a"), "in its own bucket lies another payload than the manifest names"),
    "mirror": (_shard("v"), "in the mirror of validator uid 0 lies another payload"),
    "manifest": (
        lambda s: f"buckets/v/{s.net.keys.manifest(s.manifest.window)}",
        "the manifest at uid 0",
    ),
    "receipts": (lambda s: f"buckets/v/{s.net.keys.receipts(s.manifest.window)}", "uid 0"),
}


@pytest.mark.parametrize("name", AUDITED)
def test_an_audit_names_it_too(stopped: Stopped, tmp_path: Path, name: str) -> None:
    find, words = AUDITED[name]

    async def look() -> Any:
        async with stopped.in_folder(tmp_path / "copy") as net:
            flip(net.folder / find(stopped))
            window = stopped.manifest.window
            return await audit(net.onlooker(), window, window, True, tmp_path / "spool", lambda _: None)

    report = run_virtually(look())
    said = [finding.words for finding in (*report.faults, *report.gaps)]
    assert any(words in sentence for sentence in said), said
