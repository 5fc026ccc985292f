"""Whoever may read the buckets finds out what a validator got wrong, and names it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bittensor_core import Keypair

from neurons import cli
from neurons.audit.report import EXIT_DIFFERENCE, Report
from neurons.audit.walk import audit
from neurons.collecting import Round
from neurons.errors import NotJudged
from neurons.validator import Validator
from protocol.gauntlet.receipts import Receipts
from protocol.ledger.manifest import Manifest
from protocol.window import Window
from tests.network.conftest import Played

VALIDATOR = Keypair.create_from_uri("//v")
WINDOWS = 5


def audited(
    played: Played, spool: Path, *, first: int | None = None, last: int | None = WINDOWS - 1, scores: bool = True
) -> Report:
    """What an audit of the network finds."""
    report: Report = played.look(lambda look: audit(look, first, last, scores, spool, lambda _: None))
    return report


def rewrite(played: Played, window: int, change: Callable[[dict[str, Any]], object]) -> None:
    """Let the validator have signed other receipts of `window`."""
    path = played.bucket("v") / played.keys.receipts(window)
    document = json.loads(path.read_bytes())
    change(document)
    path.write_bytes(Receipts.parse(json.dumps(document).encode()).signed(VALIDATOR).canonical())


def rewrite_manifest(played: Played, window: int, **changes: object) -> None:
    """Let the validator have signed another manifest of `window`, and receipts of that one."""
    path = played.bucket("v") / played.keys.manifest(window)
    document = Manifest.parse(path.read_bytes()).model_copy(update=changes)
    signed = document.signed(VALIDATOR)
    path.write_bytes(signed.canonical())
    rewrite(played, window, lambda receipts: receipts.update(manifest=signed.digest()))


@pytest.fixture
def lied(played: Played, tmp_path: Path) -> Played:
    """A copy, for a test to tamper with."""
    return played.copy(tmp_path / "network")


# --- an honest run ----------------------------------------------------------------------------------------


def test_every_number_of_an_honest_run_comes_out_again_to_the_bit(played: Played, tmp_path: Path) -> None:
    report = audited(played, tmp_path)
    assert (report.exit_code, report.sentences(), report.gaps) == (0, (), ())
    shown = json.loads(json.dumps(report.to_json()))
    assert (shown["from"], shown["to"], shown["agrees"]) == (0, WINDOWS - 1, True)
    assert shown["roots_checked"] == WINDOWS
    assert shown["payloads_checked"] == 3 * WINDOWS
    assert shown["scores_checked"] == 4 * WINDOWS  # e has never sealed
    assert shown["judgements_recomputed"] == 3 * WINDOWS
    assert list(shown["precisions"].values()) == ["fp32"]
    assert {kind: each.size for kind, each in report.largest.items() if each.size} == {}
    looked_at = {"gain", "first_order_gain", "loss_before", "loss_after", "own_loss_after", "unique_work", "rating"}
    assert looked_at | {"weight", "before.rating", "held_out_loss_before", "held_out_loss_after"} <= set(report.largest)


def test_without_scores_the_ledger_is_checked_and_nothing_is_judged(played: Played, tmp_path: Path) -> None:
    shown = audited(played, tmp_path, scores=False).to_json()
    assert (shown["agrees"], shown["roots_checked"], shown["payloads_checked"]) == (True, WINDOWS, 3 * WINDOWS)
    assert (shown["scores_checked"], shown["largest"]) == (0, {})


def test_a_walk_begins_at_the_newest_checkpoint_before_the_window_asked_for(played: Played, tmp_path: Path) -> None:
    report = audited(played, tmp_path, first=3)
    assert [window.window for window in report.windows] == [2, 3, 4]
    assert (report.exit_code, report.gaps) == (0, ())
    assert all(window.root_checked for window in report.windows)


def test_a_window_that_is_not_there_is_not_judged(played: Played, tmp_path: Path) -> None:
    with pytest.raises(NotJudged, match="there is no window to look at"):
        audited(played, tmp_path, first=99, last=None)


# --- lies in receipts -------------------------------------------------------------------------------------


def field(part: str, name: str, by: float) -> Callable[[dict[str, Any]], object]:
    """Add `by` to a number of the second receipt, that of uid 2."""

    def change(document: dict[str, Any]) -> None:
        receipt = document["receipts"][1]
        target = receipt[part] if part else receipt
        target[name] += by

    return change


@pytest.mark.parametrize(
    ("part", "name", "by"),
    [
        ("judgement", "loss_after", -0.01),
        ("judgement", "own_loss_before", 0.01),
        ("judgement", "first_order_gain", 0.001),
        ("judgement", "gain", 0.002),
        ("after", "rating", 0.5),
        ("after", "standing", -0.1),
        ("before", "unique_work", 0.2),
        ("", "weight", 0.05),
    ],
)
def test_a_changed_number_is_named_with_peer_window_and_both_values(
    lied: Played, tmp_path: Path, part: str, name: str, by: float
) -> None:
    receipts = Receipts.parse((lied.bucket("v") / lied.keys.receipts(1)).read_bytes())
    receipt = receipts.of(2)
    assert receipt is not None
    true = getattr(getattr(receipt, part) if part else receipt, name)
    rewrite(lied, 1, field(part, name, by))
    report = audited(lied, tmp_path, last=2)
    kind = f"before.{name}" if part == "before" else name
    named = [each for each in report.beyond if each.kind == kind]
    assert [(each.window, each.uid) for each in named] == [(1, 2)]
    assert named[0].said == pytest.approx(true + by)
    assert named[0].found == true
    assert report.largest[kind] == named[0]
    assert report.exit_code == EXIT_DIFFERENCE
    sentence = next(words for words in report.sentences() if f"says {kind} " in words)
    assert sentence.startswith("window 1, uid 2: validator ")
    assert "more than the" in sentence


def test_what_is_within_another_machines_arithmetic_is_shown_and_is_no_fault(lied: Played, tmp_path: Path) -> None:
    rewrite(lied, 1, field("judgement", "loss_after", 0.0005))
    report = audited(lied, tmp_path, last=2)
    assert report.exit_code == 0
    assert report.largest["loss_after"].size == pytest.approx(0.0005)


def test_a_rating_that_the_next_window_goes_on_from_is_named_in_both(lied: Played, tmp_path: Path) -> None:
    rewrite(lied, 1, field("after", "mu", 3.0))
    rewrite(lied, 2, field("before", "mu", 3.0))
    beyond = {(each.kind, each.window) for each in audited(lied, tmp_path, last=2).beyond}
    assert beyond == {("mu", 1), ("before.mu", 2)}


def test_a_peer_that_was_applied_or_rejected_must_have_a_receipt(lied: Played, tmp_path: Path) -> None:
    rewrite(lied, 1, lambda document: document["receipts"].pop(1))
    assert any(
        "uid 2" in words and "applied by validator" in words and "has no receipt for it" in words
        for words in audited(lied, tmp_path, last=1).sentences()
    )


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda d: d["receipts"][0].update(contributed=False), "uid 1: validator "),
        (lambda d: d["receipts"][3].update(list_next="gather"), "uid 4: validator"),
        (lambda d: d.update(random_pages=d["random_pages"][::-1]), "the block's hash draws"),
        (lambda d: d.update(scorebook_digest="00" * 32), "names scorebook 0000000000000000…"),
        (lambda d: d.update(held_out_loss_after=1.0), "says held_out_loss_after 1.0"),
    ],
)
def test_other_lies_of_a_receipt_have_their_sentence(
    lied: Played, tmp_path: Path, change: Callable[[dict[str, Any]], object], sentence: str
) -> None:
    rewrite(lied, 1, change)
    report = audited(lied, tmp_path, last=2)
    assert report.exit_code == EXIT_DIFFERENCE
    assert any(sentence in words for words in report.sentences()), report.sentences()


def test_receipts_that_nobody_signed_are_none(lied: Played, tmp_path: Path) -> None:
    path = lied.bucket("v") / lied.keys.receipts(1)
    document = json.loads(path.read_bytes())
    document["held_out_loss_after"] = 1.0
    path.write_bytes(json.dumps(document).encode())
    assert any("the receipts of validator uid 0 are none" in words for words in audited(lied, tmp_path).sentences())


# --- the ledger -------------------------------------------------------------------------------------------


def test_a_root_that_the_payloads_do_not_give_is_named_with_both(lied: Played, tmp_path: Path) -> None:
    rewrite_manifest(lied, 3, root="ab" * 32)
    report = audited(lied, tmp_path, scores=False)
    words = next(words for words in report.sentences() if "names root" in words)
    assert words.startswith("window 3: ")
    assert "ab" * 32 in words
    assert any("window 4" in words and "previous is" in words for words in report.sentences())


def test_a_manifest_that_leaves_somebody_out_breaks_root_and_chain(lied: Played, tmp_path: Path) -> None:
    path = lied.bucket("v") / lied.keys.manifest(1)
    manifest = Manifest.parse(path.read_bytes())
    rewrite_manifest(lied, 1, contributions=manifest.contributions[1:])
    sentences = audited(lied, tmp_path, scores=False).sentences()
    assert any("window 2" in words and "previous is" in words for words in sentences)
    assert any("window 2" in words and "names root" in words for words in sentences)


def test_a_leader_that_leaves_out_what_it_found_nothing_wrong_with_is_named(
    network: Any, virtual: Any, quick: dict[str, Any], tmp_path: Path
) -> None:
    """Everything follows from everything: only the leader's own receipts tell."""

    class Unfair(Validator):
        async def lead(self, window: Window, found: Round) -> Manifest:
            victim = found.entries.pop(1)
            manifest = await super().lead(window, found)
            found.entries[1] = victim
            return manifest

    async def scenario() -> Report:
        async with await network(["v", "a", "b", "c"], table=quick) as net:
            net.start("v", Unfair)
            for name in "abc":
                net.start(name)
            await net.windows(5)
            return await audit(net.onlooker(), None, 3, True, tmp_path, lambda _: None)

    report = virtual(scenario())
    assert report.exit_code == EXIT_DIFFERENCE
    for window, why in ((0, "there was no list"), (3, "it is on the list in effect")):
        [note] = report.windows[window].faults
        assert note.words.startswith(f"window {window}: uid 1: not applied by validator")
        assert note.words.endswith(why)


def test_lists_that_the_scores_do_not_give_are_named(lied: Played, tmp_path: Path) -> None:
    path = lied.bucket("v") / lied.keys.manifest(4)
    last = Manifest.parse(path.read_bytes()).gather[-1]
    rewrite_manifest(lied, 4, gather=(last,))
    assert any(f"the manifest's gather list is [{last.uid}]" in words for words in audited(lied, tmp_path).sentences())


def test_a_mirror_that_holds_other_bytes_is_a_fault_and_a_miners_own_bucket_is_not(
    lied: Played, tmp_path: Path
) -> None:
    hotkey = Keypair.create_from_uri("//a").ss58_address
    shard = lied.keys.shard(2, hotkey, 0)
    for name, is_fault in (("a", False), ("v", True)):
        path = lied.bucket(name) / shard
        true = path.read_bytes()
        path.write_bytes(bytes([true[0] ^ 1]) + true[1:])
        report = audited(lied, tmp_path, scores=False)
        assert any("lies another payload" in words for words in report.sentences()) == is_fault
        assert any("lies another payload" in gap.words for gap in report.gaps) != is_fault
        assert all(window.root_checked for window in report.windows)  # the other copy serves
        path.write_bytes(true)


def test_every_validator_is_audited_and_two_manifests_of_one_window_are_named(
    network: Any, virtual: Any, quick: dict[str, Any], tmp_path: Path
) -> None:
    async def scenario() -> tuple[Report, Report]:
        async with await network(["v", "w", "a", "b", "c"], table=quick, stakes=(1000.0, 500.0)) as net:
            net.stands_audit = False  # it lies
            net.start("v", Validator)
            net.start("w", Validator)
            for name in "abc":
                net.start(name)
            await net.windows(3)
            await net.blocks(3)
            honest = await audit(net.onlooker(), None, 2, True, tmp_path, lambda _: None)
            other = (await net.manifest(1)).model_copy(update={"alpha": 0.5})
            key = net.keys.manifest(1)
            await net.bucket("w").put(key, other.signed(net.keypairs["v"]).canonical())
            return honest, await audit(net.onlooker(), None, 2, False, tmp_path, lambda _: None)

    honest, forked = virtual(scenario())
    assert (honest.exit_code, honest.gaps) == (0, ())
    assert sum(window.judgements for window in honest.windows) == 2 * 3 * 3  # both validators judged all three
    assert len(honest.precisions) == 2
    assert forked.exit_code == EXIT_DIFFERENCE
    assert any("window 1: the same validator signed two manifests" in words for words in forked.sentences())


# --- what is gone -----------------------------------------------------------------------------------------


def test_a_payload_that_is_gone_costs_what_needs_it_and_a_checkpoint_brings_the_state_back(
    lied: Played, tmp_path: Path
) -> None:
    hotkey = Keypair.create_from_uri("//a").ss58_address
    for name in ("a", "v"):
        (lied.bucket(name) / lied.keys.shard(2, hotkey, 0)).unlink()
    report = audited(lied, tmp_path)
    assert report.exit_code == 0
    assert [window.root_checked for window in report.windows] == [True, True, True, False, True]
    assert any(gap.window == 2 and "the payload of uid 1 is in no bucket" in gap.words for gap in report.gaps)
    assert any(gap.window == 3 and "its root cannot be computed" in gap.words for gap in report.gaps)
    assert [window.judgements for window in report.windows] == [3, 3, 0, 0, 3]
    assert [window.scores for window in report.windows] == [4] * WINDOWS  # these need no payload


def test_without_any_checkpoint_the_ledger_and_the_scores_are_still_checked(lied: Played, tmp_path: Path) -> None:
    shutil.rmtree(lied.bucket("v") / lied.keys.checkpoint_prefix())
    report = audited(lied, tmp_path)
    assert report.exit_code == 0
    assert not any(window.root_checked for window in report.windows)
    assert sum(window.scores for window in report.windows) == 4 * WINDOWS
    assert "no checkpoint of this window is left anywhere" in report.gaps[0].words


def test_a_payload_that_was_judged_and_not_applied_is_read_from_its_peer(lied: Played, tmp_path: Path) -> None:
    hotkey = Keypair.create_from_uri("//a").ss58_address
    manifest = Manifest.parse((lied.bucket("v") / lied.keys.manifest(4)).read_bytes())
    rewrite_manifest(lied, 4, contributions=manifest.contributions[1:])
    (lied.bucket("v") / lied.keys.shard(4, hotkey, 0)).unlink()
    assert audited(lied, tmp_path, first=4).windows[-1].judgements == 3
    (lied.bucket("a") / lied.keys.key(4, hotkey)).unlink()
    report = audited(lied, tmp_path, first=4)
    assert report.windows[-1].judgements == 0
    assert any("the payload of uid 1, which was judged and not applied, is gone" in gap.words for gap in report.gaps)


# --- the command ------------------------------------------------------------------------------------------


def test_the_command_needs_no_folder_of_a_network_and_its_exit_code_says_what_was_found(
    lied: Played, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["--run", str(lied.folder / "run.toml"), "--buckets", str(lied.folder / "buckets")]
    where += ["--subtensor.chain_endpoint", f"sqlite:{lied.folder / 'chain.sqlite'}"]
    where += ["--dataset", str(lied.folder / "dataset")]
    assert cli.main(["audit", "--scores", "--to", "1", "--json", *where]) == 0
    assert json.loads(capsys.readouterr().out)["agrees"] is True
    rewrite(lied, 1, field("", "weight", 0.05))
    assert cli.main(["audit", "--scores", "--to", "1", *where]) == EXIT_DIFFERENCE
    shown = capsys.readouterr().out
    assert "weight" in shown
    assert "✕ 1 thing that cannot be so" in shown
    assert cli.main(["audit", "--to", "1", *where]) == 0  # receipts are not looked at
    assert cli.main(["leaderboard", "--json", *where]) == 0
    assert cli.main(["explain", "2", "1", "--json", *where]) == 0
