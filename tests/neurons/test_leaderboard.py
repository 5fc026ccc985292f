from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from bittensor_core import Keypair
from rich.console import Console, RenderableType

from neurons.errors import NotJudged
from neurons.explain.explanation import Explanation, explain
from neurons.explain.gathering import gather
from neurons.leaderboard.chart import bar, line_chart
from neurons.leaderboard.terminal import leaderboard_table, live_screen, summary
from neurons.leaderboard.view import HISTORY_WINDOWS, View, Watcher
from neurons.leaderboard.words import number, percent, plain
from neurons.onlooker import Onlooker
from neurons.status import NodeStatus
from protocol.chain.port import Block, Neuron
from protocol.errors import Reason
from protocol.gauntlet.receipts import Judgement, Receipt, Receipts, Standing
from protocol.ledger.manifest import Contribution, Manifest
from protocol.run import Run, preset_table, run_from_table
from protocol.sealing import SealedShard
from storage.bucket import Bucket, ObjectInfo
from storage.dataset import Dataset
from storage.directory import DirectoryBucket
from storage.errors import BadLocation, Unavailable
from storage.keys import Keys
from tests.secrets import found

ALICE, BOB = Keypair.create_from_uri("//Alice"), Keypair.create_from_uri("//Bob")
MINERS = tuple(Keypair.create_from_uri(f"//miner{uid}").ss58_address for uid in range(2, 5))
"""Hotkeys of uids 2, 3 and 4; the validators Alice and Bob hold 0 and 1."""

BLOCKS = 10


def make_run() -> Run:
    table = preset_table("demo")
    table["genesis_root"] = "ab" * 32
    table["dataset"]["index_digest"] = "cd" * 32
    table["time"] |= {"window_blocks": BLOCKS, "first_window": 3}
    return run_from_table(table)


RUN = make_run()
KEYS = Keys(RUN.digest()[:16])


def neuron(uid: int, hotkey: str, *, stake: float = 0.0, incentive: float = 0.0) -> Neuron:
    return Neuron(uid, hotkey, hotkey, stake, stake > 0, incentive, 0.0, 0.0, 0, 0)


@dataclass
class FakeChain:
    """The reads of the port that a watcher needs, over values a test can change."""

    window: int = 6
    peers: list[Neuron] = field(
        default_factory=lambda: [
            neuron(0, ALICE.ss58_address, stake=100.0),
            neuron(1, BOB.ss58_address, stake=50.0),
            neuron(2, MINERS[0], incentive=0.7123456),
            neuron(3, MINERS[1], incentive=0.2876544),
            neuron(4, MINERS[2]),
        ]
    )
    places: dict[str, bytes] = field(
        default_factory=lambda: {ALICE.ss58_address: b"alice", BOB.ss58_address: b"bob", MINERS[0]: b"nonsense"}
    )
    block_seconds: float = 1.0

    async def head(self) -> Block:
        return Block(self.window * BLOCKS + 4, bytes(32), 0.0)

    async def block(self, number: int) -> Block:
        return Block(number, bytes(32), 12.0 * number)

    async def neurons(self) -> tuple[Neuron, ...]:
        return tuple(self.peers)

    async def commitments(self) -> dict[str, bytes]:
        return dict(self.places)


@dataclass
class CountingBucket:
    """A bucket that remembers what was asked of it, and that can fall silent about some keys."""

    inner: DirectoryBucket
    asked: list[str] = field(default_factory=list)
    silent: set[str] = field(default_factory=set)

    async def get(self, key: str, *, limit_bytes: int) -> bytes:
        self.asked.append(key)
        if key in self.silent:
            raise Unavailable("the store does not answer")
        return await self.inner.get(key, limit_bytes=limit_bytes)

    async def head(self, key: str) -> ObjectInfo:
        return await self.inner.head(key)


class Network:
    """Two validators' buckets on disk, a chain, and a watcher over them."""

    def __init__(self, folder: Path) -> None:
        self.chain = FakeChain()
        self.buckets = {name: CountingBucket(DirectoryBucket(folder / name)) for name in ("alice", "bob")}
        self.watcher = Watcher(RUN, self.chain, self._open)  # type: ignore[arg-type]

    def _open(self, commitment: bytes) -> Bucket:
        if commitment.decode() not in self.buckets:
            raise BadLocation("the commitment is of kind 110")
        return self.buckets[commitment.decode()]  # type: ignore[return-value]

    def put(self, key: str, data: bytes, owner: str = "alice") -> None:
        asyncio.run(self.buckets[owner].inner.put(key, data))

    def publish(self, *documents: Receipts | Manifest, owner: str = "alice") -> None:
        for document in documents:
            name = KEYS.receipts if isinstance(document, Receipts) else KEYS.manifest
            self.put(name(document.window), document.canonical(), owner)
            if isinstance(document, Receipts):
                self.put(KEYS.receipts_head(), KEYS.receipts(document.window).encode(), owner)

    def view(self) -> View:
        return asyncio.run(self.watcher.refresh())

    def explain(self, uid: int, window: int | None = None) -> Explanation:
        async def dataset() -> Dataset:
            raise AssertionError("nothing of this reads the dataset")

        look = Onlooker(RUN, self.chain, self._open, dataset)  # type: ignore[arg-type]
        return explain(asyncio.run(gather(look, uid, window)))


@pytest.fixture
def network(tmp_path: Path) -> Network:
    return Network(tmp_path)


def standing(rating: float, unique_work: float, sync: float = 1.0) -> Standing:
    final = max(0.0, rating) * max(0.0, unique_work) * sync
    return Standing(
        rating=rating,
        mu=rating + 15,
        sigma=5.0,
        unique_work=unique_work,
        unique_work_error=0.0,
        judged=9,
        signs=(1,),
        absent=0,
        last_measured=6,
        overstates=False,
        sync=sync,
        standing=1.0,
        final=final,
    )


def receipt(uid: int, rating: float, weight: float, *, reason: Reason | None = None, applied: bool = True) -> Receipt:
    judgement = Judgement(
        gain=0.0123 / uid,
        gain_error=0.001,
        first_order_gain=0.012 / uid,
        rank=uid - 2,
        places=(uid - 2,),
        overstates=False,
        loss_before=4.0,
        loss_after=3.9,
        own_loss_before=4.1,
        own_loss_after=3.9,
        unique_work=0.5,
        unique_work_error=0.4,
        resembles=None,
    )
    return Receipt(
        uid=uid,
        hotkey=MINERS[uid - 2],
        reason=reason,
        detail="" if reason is None else "a shard does not open",
        steps_behind=0,
        contributed=applied and reason is None,
        submission=None,
        judgement=None if reason else judgement,
        before=standing(1.0, 0.25),
        after=standing(rating, 0.123456789),
        list_next="none" if reason else "gather",
        weight=weight,
    )


def receipts(window: int, *, signer: Keypair = ALICE, after: float | None = None, **changes: object) -> Receipts:
    """Uid 2 is applied, uid 3 valid but not applied, uid 4 rejected."""
    values: dict[str, object] = {
        "signer": signer.ss58_address,
        "run_digest": RUN.digest(),
        "window": window,
        "manifest": "cd" * 32,
        "held_out_loss_before": 8.0 - window,
        "held_out_loss_after": 7.0 - window if after is None else after,
        "random_pages": (1, 2),
        "scorebook_digest": "ef" * 32,
        "receipts": (
            receipt(2, 9.87654321 + window, 0.75),
            receipt(3, 5.5, 0.25, applied=False),
            receipt(4, -3.25, 0.0, reason=Reason.WRONG_KEY),
        ),
    }
    return Receipts(**(values | changes)).signed(signer)  # type: ignore[arg-type]


LOCATION = "03" + b"a read key of a peer".hex()


def manifest(window: int, *uids: int, signer: Keypair = ALICE) -> Manifest:
    return Manifest(
        signer=signer.ss58_address,
        run_digest=RUN.digest(),
        window=window,
        previous="0" * 64,
        root="1" * 64,
        alpha=1.0,
        contributions=tuple(
            Contribution(
                uid=uid,
                hotkey=MINERS[uid - 2],
                payload_digest="2" * 64,
                key="3" * 64,
                shards=(SealedShard(size_bytes=9, digest="4" * 64),),
                location=LOCATION,
            )
            for uid in uids
        ),
        rejected=(),
        gather=(),
        reserve=(),
    ).signed(signer)


def drawn(picture: RenderableType, width: int) -> str:
    with Path("/dev/null").open("w") as nowhere:
        console = Console(record=True, width=width, file=nowhere, force_terminal=False)
        console.print(picture)
        return console.export_text()


# --- the view ---------------------------------------------------------------------------------------------


def test_a_run_in_which_nothing_happened_yet_has_an_empty_view(network: Network) -> None:
    view = network.view()
    assert (view.windows, view.newest, view.rows, view.accepted, view.problems) == (0, None, (), 0, ())
    assert view.to_json()["held_out_loss"] == [None, None]
    assert (view.window, view.blocks_to_close, view.block) == (6, 6, 64)
    assert view.leader == ALICE.ss58_address


def test_the_view_adds_up_what_manifests_and_receipts_say(network: Network) -> None:
    network.publish(receipts(3), receipts(4), receipts(5, after=1.5), manifest(3, 2), manifest(4, 2, 3), manifest(5))
    view = network.view()
    assert view.problems == ()
    assert (view.windows, view.newest) == (3, 5)
    assert view.held_out_losses == ((3, 5.0), (4, 4.0), (5, 3.0), (6, 1.5))
    assert view.accepted == 3
    assert view.contributors == ((3, (2,)), (4, (2, 3)), (5, ()))
    assert view.rejected == {"wrong_key": 3}
    rows = {row.uid: row for row in view.rows}
    assert [row.uid for row in view.rows] == [2, 3, 4]
    assert [rows[uid].accepted for uid in (2, 3, 4)] == [2, 1, 0]
    assert rows[2].history == ("applied",) * 3
    assert rows[3].history == ("passed",) * 3
    assert rows[4].history == ("wrong_key",) * 3
    assert (rows[4].rejected, rows[4].last_reason, rows[4].last_gain) == ({"wrong_key": 3}, "wrong_key", None)
    assert (rows[2].rejected, rows[2].last_reason, rows[2].last_gain) == ({}, None, 0.0123 / 2)
    assert (rows[2].on_list, rows[4].on_list) == ("gather", "none")


def test_view_json_and_explanation_give_the_same_unrounded_values(network: Network) -> None:
    network.publish(receipts(3), receipts(4))
    view = network.view()
    shown = json.loads(json.dumps(view.to_json()))
    assert shown["windows"] == 2
    assert shown["held_out_loss"] == [5.0, 3.0]
    for peer in shown["peers"]:
        explained = json.loads(json.dumps(network.explain(peer["uid"]).to_json()))
        names = ("hotkey", "rating", "unique_work", "sync", "standing", "final", "weight", "incentive", "list")
        assert {name: peer[name] for name in names} == {name: explained[name] for name in names}
    assert [peer["incentive"] for peer in shown["peers"]] == [0.7123456, 0.2876544, 0.0]
    assert shown["peers"][0]["rating"] == 9.87654321 + 4


def test_where_a_contribution_is_read_is_shown_nowhere(network: Network) -> None:
    """It may hold a read key."""
    network.publish(receipts(3), manifest(3, 2, 3))
    view = network.view()
    explained = network.explain(2, 3)
    shown = [repr(view), json.dumps(view.to_json()), json.dumps(explained.to_json()), drawn(explained, 200)]
    assert view.accepted == 2
    assert found("".join(shown).encode(), {"location": bytes.fromhex(LOCATION)}) == []


def test_peers_are_sorted_by_weight_then_final_then_rating_then_uid(network: Network) -> None:
    orders = {
        (4, 2, 3): (receipt(2, 9.0, 0.4), receipt(3, 8.0, 0.1), receipt(4, 1.0, 0.5)),
        (3, 4, 2): (receipt(2, 1.0, 0.0), receipt(3, 3.0, 0.0), receipt(4, 2.0, 0.0)),
        (4, 3, 2): (receipt(2, -5.0, 0.0), receipt(3, -4.0, 0.0), receipt(4, -3.0, 0.0)),
        (2, 3, 4): (receipt(2, 1.0, 0.0), receipt(3, 1.0, 0.0), receipt(4, 1.0, 0.0)),
    }
    for window, (order, entries) in enumerate(orders.items(), start=3):
        network.chain.window = window + 1
        network.publish(receipts(window, receipts=entries))
        assert tuple(row.uid for row in network.view().rows) == order


def test_each_document_is_read_once(network: Network) -> None:
    network.publish(receipts(3), manifest(3, 2))
    first = network.view()
    alice = network.buckets["alice"]
    alice.asked.clear()
    network.publish(receipts(4), manifest(4, 2))
    second = network.view()
    assert (first.windows, second.windows, second.accepted) == (1, 2, 2)
    assert KEYS.receipts(3) not in alice.asked
    assert KEYS.manifest(3) not in alice.asked
    assert second.held_out_losses[-1] == (5, 3.0)


def test_many_windows_are_caught_up_with_in_order(network: Network) -> None:
    network.chain.window = 60
    network.publish(*(receipts(window, after=float(window)) for window in range(3, 50)))
    view = network.view()
    assert view.windows == 47
    assert [window for window, _ in view.held_out_losses] == [3, *range(4, 51)]
    assert len(view.rows[0].history) == HISTORY_WINDOWS
    assert view.problems == ()


BROKEN: Mapping[str, bytes] = {
    "not JSON": b"\x80\x04pickle",
    "another signer": receipts(4, signer=BOB).canonical(),
    "no signature": receipts(4).model_copy(update={"signature": ""}).canonical(),
    "changed after signing": receipts(4).model_copy(update={"held_out_loss_after": 0.0}).canonical(),
    "another run": receipts(4, run_digest="5" * 64).canonical(),
    "another window": receipts(3).canonical(),
    "a number that is none": receipts(4)
    .canonical()
    .replace(b'"held_out_loss_after":3.0', b'"held_out_loss_after":NaN'),
}


@pytest.mark.parametrize("data", BROKEN.values(), ids=BROKEN.keys())
def test_malformed_receipts_are_skipped_and_named(network: Network, data: bytes) -> None:
    network.publish(receipts(3), receipts(5))
    network.put(KEYS.receipts(4), data)
    view = network.view()
    assert (view.windows, view.newest) == (2, 5)
    assert len(view.problems) == 1
    assert view.problems[0].startswith("receipts of window 4 from uid 0: ")
    assert network.view().problems == view.problems


def test_receipts_above_their_limit_are_not_read(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("neurons.leaderboard.view.RECEIPTS_LIMIT_BYTES", 64)
    limited = Watcher(RUN, network.chain, network._open)  # type: ignore[arg-type]
    network.publish(receipts(3))
    view = asyncio.run(limited.refresh())
    assert view.windows == 0
    assert "receipts of window 3 from uid 0" in view.problems[0]


def test_a_malformed_manifest_is_skipped_and_named(network: Network) -> None:
    network.publish(manifest(3, 2), manifest(5, 3))
    network.put(KEYS.manifest(4), manifest(4, 2, 3).canonical().replace(b'"alpha":1.0', b'"alpha":2.0'))
    view = network.view()
    assert (view.accepted, len(view.problems)) == (2, 1)
    assert view.problems[0].startswith("manifests of window 4 from uid 0: ")


def test_a_manifest_signed_by_a_stranger_does_not_count(network: Network) -> None:
    network.publish(manifest(3, 2, signer=Keypair.create_from_uri("//Eve")))
    view = network.view()
    assert view.accepted == 0
    assert "no validator" in view.problems[0]


def test_a_manifest_of_another_validator_kept_by_the_leader_counts(network: Network) -> None:
    network.publish(manifest(3, 2, signer=BOB))
    view = network.view()
    assert (view.accepted, view.problems) == (1, ())


def test_what_a_peer_wrote_cannot_command_the_terminal(network: Network) -> None:
    network.publish(receipts(3))
    network.put(KEYS.receipts(4), b'{"\\u001b[2J\\u202eevil": 1}')
    problem = network.view().problems[0]
    assert problem.isprintable()
    assert "\x1b" not in drawn(leaderboard_table(network.view(), {MINERS[0]: "\x1b[31mred"}), 120)


def test_the_next_validator_counts_where_the_first_has_only_malformed_receipts(network: Network) -> None:
    network.put(KEYS.receipts(3), b"{}")
    network.publish(receipts(3, signer=BOB, after=2.5), owner="bob")
    view = network.view()
    assert view.held_out_losses[-1] == (4, 2.5)
    assert len(view.problems) == 1


def test_the_leaders_receipts_are_waited_for_until_a_window_after_they_were_due(network: Network) -> None:
    network.publish(receipts(3, signer=BOB, after=2.5), owner="bob")
    network.chain.window = 4
    assert network.view().windows == 0
    network.chain.window = 5
    assert network.view().held_out_losses[-1] == (4, 2.5)


def test_a_new_leader_goes_on_where_the_old_one_ended(network: Network) -> None:
    network.publish(receipts(3), receipts(4))
    assert network.view().windows == 2
    network.chain.peers[1] = neuron(1, BOB.ss58_address, stake=1000.0)
    network.publish(receipts(5, signer=BOB, after=0.5), owner="bob")
    view = network.view()
    assert view.leader == BOB.ss58_address
    assert view.held_out_losses == ((3, 5.0), (4, 4.0), (5, 3.0), (6, 0.5))


def test_a_gap_is_passed_over_and_named_once_a_later_window_is_there(network: Network) -> None:
    network.publish(receipts(3))
    network.chain.window = 8
    assert network.view().problems == ()
    network.publish(receipts(6))
    view = network.view()
    assert (view.windows, view.newest) == (2, 6)
    assert [problem[:30] for problem in view.problems] == ["there are no receipts of windo"] * 2
    network.publish(receipts(7))
    assert network.view().windows == 3


def test_what_a_bucket_does_not_answer_is_named_and_read_again_later(network: Network) -> None:
    network.publish(receipts(3), receipts(4), receipts(5))
    network.buckets["alice"].silent = {KEYS.receipts(4)}
    view = network.view()
    assert view.windows == 1
    assert view.problems == ("receipts of window 4 from uid 0: the store does not answer",)
    network.buckets["alice"].silent = set()
    view = network.view()
    assert (view.windows, view.problems) == (3, ())


def test_what_was_found_malformed_is_not_read_again_while_the_next_validator_is_waited_for(network: Network) -> None:
    network.put(KEYS.receipts(5), b"{}")
    network.publish(receipts(3), receipts(4))
    assert len(network.view().problems) == 1
    network.buckets["alice"].asked.clear()
    assert len(network.view().problems) == 1
    assert KEYS.receipts(5) not in network.buckets["alice"].asked
    network.publish(receipts(5, signer=BOB, after=0.25), owner="bob")
    assert network.view().held_out_losses[-1] == (6, 0.25)


def test_a_validator_without_a_readable_bucket_is_named_and_the_next_one_is_read(network: Network) -> None:
    network.chain.places[ALICE.ss58_address] = b"nowhere"
    network.publish(receipts(3, signer=BOB), owner="bob")
    view = network.view()
    assert view.windows == 1
    assert view.problems[0].startswith("the bucket of validator 0 cannot be opened")


def test_a_peer_stays_on_the_board_through_a_window_nobody_was_seen_in(network: Network) -> None:
    network.publish(receipts(3), receipts(4, receipts=()))
    view = network.view()
    assert [row.uid for row in view.rows] == [2, 3, 4]
    assert view.rows[0].history == ("applied", "absent")


def test_a_peer_whose_slot_went_to_another_leaves_the_board(network: Network) -> None:
    network.publish(receipts(3))
    network.chain.peers[3] = neuron(3, Keypair.create_from_uri("//new").ss58_address, incentive=0.5)
    assert [row.uid for row in network.view().rows] == [2, 4]


def test_a_past_window_can_be_explained_and_one_that_was_not_judged_is_a_sentence(network: Network) -> None:
    with pytest.raises(NotJudged, match="no window of this run has been judged yet"):
        network.explain(2)
    network.publish(receipts(3), receipts(4))
    assert network.explain(2, 3).evidence.window == 3
    assert network.explain(2).evidence.window == 4
    sentences = {
        2: "the run begins with window 3",
        5: "no validator has judged it",
        6: "is open until block 70, the chain is at 64",
        10**6: "has not begun: it begins with block",
    }
    for window, sentence in sentences.items():
        with pytest.raises(NotJudged, match=sentence):
            network.explain(2, window)


@pytest.mark.parametrize("pointer", [b"", b"../../x", b"receipts/00000009.json", b"\xff" * 9, b"9" * 5000])
def test_a_pointer_to_the_newest_receipts_that_leads_nowhere_is_passed_over(network: Network, pointer: bytes) -> None:
    network.publish(receipts(3))
    network.publish(receipts(4, signer=BOB), owner="bob")
    network.put(KEYS.receipts_head(), pointer)
    assert network.explain(2).evidence.window == 4


# --- the screens ------------------------------------------------------------------------------------------

STATUSES = tuple(
    NodeStatus(name, role, uid, hotkey, 1, 6, activity, 0.0, {5: "a" * 64, 6: "b" * 64}, loss)
    for name, role, uid, hotkey, activity, loss in (
        ("validator-1", "validator", 0, ALICE.ss58_address, "judging 2 payloads", None),
        ("miner-1", "miner", 2, MINERS[0], "training step 3 of 10", 4.321),
        ("miner-2", "miner", 3, MINERS[1], "waiting", 4.5),
    )
)


@pytest.fixture
def view(network: Network) -> View:
    network.publish(receipts(3), receipts(4), receipts(5), manifest(3, 2), manifest(4, 2, 3), manifest(5, 2))
    return network.view()


@pytest.mark.parametrize("width", [80, 100, 120, 140])
def test_the_live_screen_shows_the_key_facts_at_every_width(view: View, width: int) -> None:
    text = drawn(live_screen(view, STATUSES, {"copycat": "killed by signal 9"}, "all is well", 7.4), width)
    facts = ["demo", "window 6", "closes in 7 s", "all is well", "5.000 → 2.000 nats", "−60.0 %", "14.88"]
    facts += ["●●●", "○○○", "✕✕✕", "75.0 %", "71.2 %", "−3.25", "miner-1", "judging 2 payloads", "loss 4.32"]
    facts += ["= bbbbbbbb @6", "= all 3 hold bbbbbbbb at window 6", "✕ copycat killed by signal 9", "● applied"]
    assert [fact for fact in facts if fact not in text] == []
    assert max(len(line) for line in text.splitlines()) <= width


def test_neurons_with_different_roots_of_one_window_are_marked(view: View) -> None:
    odd = NodeStatus("miner-3", "miner", 4, MINERS[2], 1, 6, "training", 0.0, {6: "c" * 64})
    text = drawn(live_screen(view, (*STATUSES, odd), {}, "", 1.0), 120)
    assert "≠ cccccccc @6" in text
    assert "≠ roots differ: miner-3" in text
    assert "= bbbbbbbb @6" in text
    two = drawn(live_screen(view, (STATUSES[0], odd), {}, "", 1.0), 120)
    assert "≠ roots differ: miner-3, validator-1" in two


def test_a_neuron_that_is_a_window_behind_is_not_marked(view: View) -> None:
    behind = NodeStatus("miner-3", "miner", 4, MINERS[2], 1, 5, "following", 0.0, {5: "a" * 64})
    text = drawn(live_screen(view, (*STATUSES, behind), {}, "", 1.0), 120)
    assert "≠" not in text
    assert "= all 4 hold aaaaaaaa at window 5" in text


def test_before_there_is_a_chain_the_live_screen_says_what_happens() -> None:
    text = drawn(live_screen(None, (), {}, "training a tokenizer", None), 80)
    assert "training a tokenizer" in text
    assert "no process is running yet" in text


def test_on_a_low_terminal_the_leaderboard_is_cut_and_says_so(network: Network) -> None:
    hotkeys = [Keypair.create_from_uri(f"//many{uid}").ss58_address for uid in range(2, 42)]
    network.chain.peers += [neuron(uid + 10, hotkey) for uid, hotkey in enumerate(hotkeys)]
    entries = [
        receipt(2, 1.0, 0.01).model_copy(update={"uid": uid + 10, "hotkey": hotkey})
        for uid, hotkey in enumerate(hotkeys)
    ]
    network.publish(receipts(3, receipts=tuple(entries)))
    with Path("/dev/null").open("w") as nowhere:
        console = Console(record=True, width=120, height=30, file=nowhere, force_terminal=True)
        console.print(live_screen(network.view(), STATUSES, {}, "", 1.0))
        text = console.export_text()
    assert len(text.splitlines()) <= 30
    assert "more" in text


@pytest.mark.parametrize("width", [80, 140])
def test_the_summary_tells_what_was_learned_and_where_to_look_next(view: View, width: int) -> None:
    roots = {status.name: "b" * 64 for status in STATUSES}
    folder = Path("/tmp/my networks/demo")
    text = drawn(summary(view, roots, 61.7, folder, {MINERS[0]: "miner-1"}), width)
    facts = ["5.000 → 2.000 nats", "−60.0 %", "3 judged in 62 s", "4 contributions", "3: wrong_key 3", "miner-1"]
    facts += ["all 3 neurons hold root", "windrow leaderboard --dir '/tmp/my networks/demo'", "windrow explain 4 --dir"]
    facts += ["windrow up --dir", "/nodes/*/log"]
    assert [fact for fact in facts if fact not in text] == []
    assert "b" * 50 in text


def test_the_summary_lists_every_root_when_they_differ(view: View) -> None:
    text = drawn(summary(view, {"miner-1": "a" * 64, "miner-2": "b" * 64}, 1.0, Path("d")), 120)
    assert "≠ the roots differ" in text
    assert f"miner-1  {'a' * 64}" in text
    assert f"miner-2  {'b' * 64}" in text


def test_the_leaderboard_gives_addresses_where_no_name_is_known(view: View) -> None:
    text = drawn(leaderboard_table(view, {MINERS[0]: "miner-1"}), 120)
    assert "miner-1" in text
    assert f"{MINERS[1][:6]}…{MINERS[1][-4:]}" in text


def test_numbers_that_another_validator_made_huge_do_not_break_the_table(network: Network) -> None:
    entry = receipt(2, 1e300, 0.5)
    network.publish(receipts(3, after=1e308, receipts=(entry,)))
    for width in (80, 120):
        text = drawn(live_screen(network.view(), STATUSES, {}, "", 1.0), width)
        assert max(len(line) for line in text.splitlines()) <= width
        assert "1.0e+300" in text


# --- charts and words -------------------------------------------------------------------------------------


def test_a_falling_line_goes_from_the_top_left_to_the_bottom_right() -> None:
    top, *_, bottom = line_chart([(0, 2.0), (1, 1.0)], 8, 3)
    assert top[0] != "⠀" == top[-1]
    assert bottom[-1] != "⠀" == bottom[0]


def test_a_line_has_a_dot_in_every_column_and_no_holes_between_rows() -> None:
    lines = line_chart([(0, 0.0), (1, 100.0), (9, 0.0)], 10, 4)
    columns = ["".join(line[place] for line in lines) for place in range(10)]
    assert all(set(column) != {"⠀"} for column in columns)
    assert all(line.strip("⠀") for line in lines)


def test_a_chart_survives_flat_single_and_impossible_values() -> None:
    for points in ([], [(0, 1.0)], [(0, 1.0), (1, 1.0)], [(0, math.nan), (1, 2.0)], [(0, 1e308), (1, -1e308)]):
        lines = line_chart(points, 6, 2)
        assert [len(line) for line in lines] == [6, 6]


def test_a_bar_is_full_empty_or_at_least_a_sliver() -> None:
    assert bar(0.0, 4) == "    "
    assert bar(1.0, 4) == bar(7.0, 4) == "━━━━"
    assert bar(0.5, 4) == "━━  "
    assert bar(1e-9, 4) == "╸   "


def test_numbers_are_written_the_same_way_everywhere() -> None:
    assert number(-1.005) == "−1.00"
    assert number(-0.0001) == "0.00"
    assert number(1e20) == "1.0e+20"
    assert percent(0.1234, signed=True) == "+12.3 %"
    assert percent(-0.5, signed=True) == "−50.0 %"
    assert percent(0.0, signed=True) == "0.0 %"
    assert plain("a\x1b[0m\u202eb\n") == "a?[0m?b?"
