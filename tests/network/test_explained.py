"""`windrow explain` on a network that was played to its end: what it finds in buckets and chain."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest
from bittensor_core import Keypair

from neurons.errors import NotJudged
from neurons.explain.explanation import Explanation, explain
from neurons.explain.gathering import gather
from protocol.chain.local import LocalChain
from protocol.window import deadlines
from tests.network.conftest import Played


def explained(played: Played, uid: int, window: int | None = None) -> Explanation:
    return explain(played.look(lambda look: gather(look, uid, window)))


def store_at(played: Played, name: str, key: str, window: int, block: int, seconds: float) -> None:
    """Let the bucket of a member say that an object was stored some seconds after a block."""

    async def when() -> float:
        chain = LocalChain.open(played.folder / "chain.sqlite")
        try:
            return (await chain.block(block)).timestamp + seconds
        finally:
            await chain.close()

    at = asyncio.run(when())
    hotkey = Keypair.create_from_uri(f"//{name}").ss58_address
    os.utime(played.bucket(name) / f"{played.keys.run}/{window:08d}/{hotkey}/{key}", (at, at))


def test_everything_public_about_a_peer_is_found(played: Played, tmp_path: Path) -> None:
    copy = played.copy(tmp_path / "network")
    limits = deadlines(2, copy.run.time)
    for key, block in (
        ("shard-00000", limits.close_block),
        ("seal.json", limits.close_block),
        ("key.json", limits.key_block),
    ):
        store_at(copy, "a", key, 2, block, 0.25)
    explanation = explained(copy, 1, 2)
    evidence = explanation.evidence
    assert evidence.receipt is not None
    assert evidence.contribution is not None
    assert [receipts.window for receipts in evidence.past] == [0, 1]
    found = evidence.bucketful
    assert found is not None
    assert (found.seal_holds, found.key_opens, len(found.shards)) == (True, True, 1)
    assert found.payload_digest == evidence.contribution.payload_digest
    assert [moment.good for moment in explanation.timeline if "stored" in moment.what][:3] == [True] * 3
    assert sorted(evidence.block_times) == sorted(
        {limits.start_block, limits.close_block, limits.seal_block, limits.key_block, limits.reveal_block}
        | {limits.manifest_block}
    )
    assert not any(repair.what == "not_faithful" for repair in explanation.repairs)


def test_a_key_that_never_came_and_one_that_came_late_are_told_apart(played: Played, tmp_path: Path) -> None:
    copy = played.copy(tmp_path / "network")
    assert any(repair.what == "no_key" for repair in explained(copy, 4, 3).repairs)
    hotkey = Keypair.create_from_uri("//d").ss58_address
    (copy.bucket("d") / copy.keys.key(3, hotkey)).write_bytes(b'{"window": 3, "key": "' + b"00" * 32 + b'"}')
    limits = deadlines(3, copy.run.time)
    store_at(copy, "d", "key.json", 3, limits.reveal_block, 2.0)
    explanation = explained(copy, 4, 3)
    assert any("the key came 2.0 blocks" in repair.words for repair in explanation.repairs)
    assert "it is not the key that the seal commits to" in explanation.text()


def test_slots_without_a_receipt_are_told_what_they_are(played: Played) -> None:
    assert "this slot is a validator's" in explained(played, 0).text()
    idle = explained(played, 5)
    assert "no validator has ever seen a seal of this hotkey in time" in idle.text()
    assert "this hotkey has committed no bucket on chain" in idle.text()
    with pytest.raises(NotJudged, match="nobody holds that slot"):
        explained(played, 17)


def test_a_window_with_a_manifest_and_no_receipts_yet_is_explained_from_the_manifest(
    played: Played, tmp_path: Path
) -> None:
    copy = played.copy(tmp_path / "network")
    (copy.bucket("v") / copy.keys.receipts(4)).unlink()
    assert "applied: it is in manifest 4; its receipt is still to come" in explained(copy, 1, 4).text()
    # The leader wrote it as soon as the listed ones had revealed: who never does is not named yet.
    assert "its manifest does not name this peer" in explained(copy, 4, 4).text()
    (copy.bucket("v") / copy.keys.manifest(4)).unlink()
    with pytest.raises(NotJudged, match="no validator has judged it"):
        explained(copy, 1, 4)


def test_objects_that_were_swept_and_a_seal_of_no_use_do_not_stop_it(played: Played, tmp_path: Path) -> None:
    copy = played.copy(tmp_path / "network")
    hotkey = Keypair.create_from_uri("//a").ss58_address
    for key in ("shard-00000", "key.json"):
        (copy.bucket("a") / f"{copy.keys.run}/{1:08d}/{hotkey}/{key}").unlink()
    text = explained(copy, 1, 1).text()
    assert "1 shard of 1: not in its bucket now" in text
    assert "key: not in its bucket" in text
    seal = copy.bucket("a") / copy.keys.seal(1, hotkey)
    for junk in (b"not json", b" " * 200_000):
        seal.write_bytes(junk)
        assert "it is no seal of this hotkey and window" in explained(copy, 1, 1).text()


@pytest.mark.parametrize("window", [99, 10**7])
def test_a_window_to_come_is_a_sentence(played: Played, window: int) -> None:
    with pytest.raises(NotJudged, match=f"window {window} has not begun"):
        explained(played, 1, window)


def test_receipts_before_a_gap_are_no_past_of_what_came_after(played: Played, tmp_path: Path) -> None:
    copy = played.copy(tmp_path / "network")
    (copy.bucket("v") / copy.keys.receipts(1)).unlink()
    explanation = explained(copy, 1, 4)
    assert [receipts.window for receipts in explanation.evidence.past] == [2, 3]
    assert not any(repair.what == "not_faithful" for repair in explanation.repairs)
