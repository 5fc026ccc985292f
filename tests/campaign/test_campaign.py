"""The short form of the campaign, and that what it looks at can be seen to be wrong."""

from __future__ import annotations

import asyncio
import os
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from neurons.folder import Places, held
from protocol.chain.local import LocalChain, LocalChainConfig
from protocol.errors import ChainUnreachable
from storage.directory import DirectoryBucket
from storage.errors import NotFound, StorageError, Unavailable
from tests.campaign.__main__ import play, seeds_of, summarised
from tests.campaign.checks import differences, leftovers, locks, orphans
from tests.campaign.faults import CONTENTS, NOTES_FILE, REQUESTS, WRITE, FaultyBucket, FaultyStore, Source, note_in
from tests.campaign.plan import draw

KEYS = [f"run/{window:08d}/peer/{name}" for window in range(4) for name in ("seal.json", "shard-00000")]


def test_networks_whose_processes_are_killed_and_hampered_at_random_never_differ_by_a_bit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    summary = summarised(play([101, 102], seconds=8.0, jobs=2, folder=tmp_path, keep=False), 0.0)
    assert summary["failed"] == {}, capsys.readouterr().err
    assert summary["kills"]["all"] > 0
    assert summary["faults"]["all"] > 0
    assert summary["payloads_replayed"] > 0
    assert os.listdir(tmp_path) == ["text"], "what holds is not kept"


def test_a_seed_draws_the_same_plan_again_and_another_one_another() -> None:
    assert draw(7, 44.0) == draw(7, 44.0)
    assert draw(7, 44.0).events != draw(8, 44.0).events
    assert seeds_of("3,5-7") == [3, 5, 6, 7]


def test_the_campaign_asks_for_more_than_three_hundred_kills() -> None:
    kinds = Counter(event.kind for seed in seeds_of("0-31") for event in draw(seed, 44.0).events)
    assert kinds["kill"] > 320
    assert {"stall", "jump", "full"} <= kinds.keys()


# --- faults -----------------------------------------------------------------------------------------------


def source(folder: Path) -> Source:
    return Source("reader", random.Random(0), note_in(folder), lambda: False)


def noted(folder: Path) -> Counter[str]:
    return Counter(line.split("\t")[0] for line in (folder / NOTES_FILE).read_text().splitlines())


def test_a_faulty_bucket_does_all_that_it_says_and_notes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inner = DirectoryBucket(tmp_path / "bucket")
    bucket = FaultyBucket(inner, source(tmp_path), 0.3, {})

    async def scenario() -> Counter[str]:
        async def at_once(_: float) -> None:
            """Nothing waits in this test."""

        for key in KEYS:
            await inner.put(key, key.encode())
        monkeypatch.setattr(asyncio, "sleep", at_once)
        seen: Counter[str] = Counter()
        for _ in range(60):
            for key in KEYS:
                try:
                    seen[str(await bucket.get(key, limit_bytes=100) == key.encode())] += 1
                except (NotFound, Unavailable) as error:
                    seen[type(error).__name__] += 1
        return seen

    seen = asyncio.run(scenario())
    assert seen.keys() == {"True", "False", "NotFound", "Unavailable"}
    counts = noted(tmp_path)
    assert counts.keys() == {*REQUESTS, *CONTENTS}
    assert counts["lost"] == seen["Unavailable"]
    assert sum(counts[kind] for kind in CONTENTS) == seen["False"]


def test_a_write_that_fails_has_happened_or_has_not(tmp_path: Path) -> None:
    store = FaultyStore(tmp_path / "bucket", source(tmp_path), writes=1.0, killed=0.0)

    async def scenario() -> list[str]:
        for number in range(20):
            with pytest.raises(StorageError):
                await store.put(f"key-{number}", b"x")
        return [info.key async for info in store.list("")]

    assert 0 < len(asyncio.run(scenario())) < 20
    assert noted(tmp_path) == {WRITE: 20}


# --- what is looked at ------------------------------------------------------------------------------------


def test_a_neuron_that_holds_another_state_than_the_ledger_is_named() -> None:
    ledger = {0: "aa", 1: "bb"}
    assert list(differences({"a": {0: "aa", 1: "bb"}, "b": {1: "bb", 2: "cc"}}, ledger)) == []
    assert list(differences({"a": {1: "ff"}}, ledger)) == ["a holds ff in window 1, a replay of the ledger gives bb"]
    assert len(list(differences({"a": {}}, ledger))) == 1


@pytest.fixture
def rest(tmp_path: Path) -> Path:
    """What a network leaves behind: a chain, a neuron's folder and a bucket."""
    config: dict[str, Any] = {
        "block_seconds": 1.0,
        "tempo_blocks": 8,
        "max_uids": 2,
        "max_validators": 1,
        "validator_min_stake": 1.0,
        "weights_rate_limit_blocks": 1,
        "commitment_rate_limit_blocks": 1,
        "immunity_blocks": 1,
        "registration_cost": 0.0,
        "emission_per_block": 1.0,
        "max_registrations_per_block": 2,
    }
    chain = LocalChain.create(Places(tmp_path).chain, LocalChainConfig(**config), {}, bytes(32))
    chain.produce_block(0.0)
    asyncio.run(chain.close())
    Places(tmp_path).node("a").mkdir(parents=True)
    asyncio.run(DirectoryBucket(Places(tmp_path).buckets / "a").put(KEYS[0], b"x"))
    return tmp_path


def test_what_is_left_behind_is_named(rest: Path) -> None:
    assert [*orphans([]), *locks(rest), *leftovers(rest)] == []
    sealed = Places(rest).node("a") / "sealed"
    sealed.mkdir()
    (sealed / ("ab" * 32)).touch()
    assert list(leftovers(rest)) == []
    (sealed / f"{'ab' * 32}.0123456789abcdef").touch()
    (Places(rest).node("a") / "~status.json").touch()
    (Places(rest).buckets / "a" / "~0123456789abcdef").touch()
    assert len(list(leftovers(rest))) == 3
    with held(Places(rest).node("a"), "busy"):
        assert list(locks(rest)) == ["a is still held"]
    assert list(orphans([os.getpid()])) == [f"process {os.getpid()} is still running"]


def test_a_chain_that_a_process_still_holds_is_noticed(rest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("protocol.chain.local._BUSY_SECONDS", 0.0)
    chain = LocalChain.open(Places(rest).chain)
    with chain._transaction("BEGIN IMMEDIATE"), pytest.raises(ChainUnreachable, match="does not answer"):
        list(locks(rest))
    asyncio.run(chain.close())
