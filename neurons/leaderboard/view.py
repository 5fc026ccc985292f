"""The data behind every screen, from the chain and the buckets alone (protocol §12, §14). Reads only."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from neurons.documents import Documents
from neurons.leaderboard.feed import Feed
from protocol.chain.port import Chain, Neuron
from protocol.gauntlet.receipts import RECEIPTS_LIMIT_BYTES, Receipt, Receipts
from protocol.ledger.manifest import MANIFEST_LIMIT_BYTES, Manifest, leader_order
from protocol.run import Run
from protocol.window import deadlines, window_of
from storage.bucket import Bucket

HISTORY_WINDOWS = 24
"""Windows in the strip beside each peer."""

APPLIED, PASSED, ABSENT = "applied", "passed", "absent"
"""Marks of a window in which the peer was not rejected; a rejected one is marked with its reason."""


@dataclass(frozen=True, slots=True)
class PeerRow:
    """One peer on the leaderboard. The scores and `weight` are those of its newest receipt, unrounded; `incentive`
    is the chain's, a share in [0, 1]. `accepted` counts its payloads in manifests, `rejected` its windows by reason;
    `last_reason` and `last_gain` are the newest there are. `on_list` is `gather`, `reserve` or `none`. `history` has
    one mark for each of the newest windows judged, oldest first."""

    uid: int
    hotkey: str
    rating: float
    unique_work: float
    sync: float
    standing: float
    final: float
    weight: float
    incentive: float
    accepted: int
    rejected: Mapping[str, int]
    last_reason: str | None
    last_gain: float | None
    on_list: str
    history: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """As `windrow leaderboard --json` prints it."""
        return {
            "uid": self.uid,
            "hotkey": self.hotkey,
            "rating": self.rating,
            "unique_work": self.unique_work,
            "sync": self.sync,
            "standing": self.standing,
            "final": self.final,
            "weight": self.weight,
            "incentive": self.incentive,
            "accepted": self.accepted,
            "rejected": dict(self.rejected),
            "last_reason": self.last_reason,
            "last_gain": self.last_gain,
            "list": self.on_list,
        }


@dataclass(frozen=True, slots=True)
class View:
    """A run at one moment. `window` is the one the chain is in and `blocks_to_close` what is left of it;
    `window_seconds` is its nominal length. `windows` counts those with receipts, `newest` is the last of them.
    `held_out_losses` are (window, loss in nats of θ at its start). `contributors` are (window, uids applied)."""

    run_name: str
    block: int
    window: int
    blocks_to_close: int
    window_blocks: int
    window_seconds: float
    windows: int
    newest: int | None
    held_out_losses: tuple[tuple[int, float], ...]
    accepted: int
    rejected: Mapping[str, int]
    rows: tuple[PeerRow, ...]
    contributors: tuple[tuple[int, tuple[int, ...]], ...]
    leader: str | None
    problems: tuple[str, ...]

    def held_out_ends(self) -> tuple[float | None, float | None]:
        """First and last held-out loss; None twice while nothing was judged."""
        losses = self.held_out_losses
        return (losses[0][1], losses[-1][1]) if losses else (None, None)

    def to_json(self) -> dict[str, Any]:
        """As `windrow leaderboard --json` prints it."""
        return {
            "run": self.run_name,
            "block": self.block,
            "window": self.window,
            "windows": self.windows,
            "newest": self.newest,
            "held_out_loss": list(self.held_out_ends()),
            "accepted": self.accepted,
            "rejected": dict(self.rejected),
            "leader": self.leader,
            "problems": list(self.problems),
            "peers": [row.to_json() for row in self.rows],
        }


@dataclass(slots=True)
class _Tally:
    """What all documents read so far add up to. Documents themselves are not kept: a long run has many."""

    windows: int = 0
    losses: list[tuple[int, float]] = field(default_factory=list)
    contributors: list[tuple[int, tuple[int, ...]]] = field(default_factory=list)
    accepted: Counter[str] = field(default_factory=Counter)
    rejected: defaultdict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    last_reason: dict[str, str] = field(default_factory=dict)
    last_gain: dict[str, float] = field(default_factory=dict)
    marks: deque[dict[str, str]] = field(default_factory=lambda: deque(maxlen=HISTORY_WINDOWS))
    newest: Receipts | None = None
    latest: dict[int, Receipt] = field(default_factory=dict)

    def add_manifest(self, manifest: Manifest) -> None:
        self.contributors.append((manifest.window, tuple(c.uid for c in manifest.contributions)))
        self.accepted.update(c.hotkey for c in manifest.contributions)

    def add_receipts(self, receipts: Receipts) -> None:
        if not self.losses:
            self.losses.append((receipts.window, receipts.held_out_loss_before))
        self.losses.append((receipts.window + 1, receipts.held_out_loss_after))
        self.windows += 1
        self.newest = receipts
        self.marks.append({receipt.hotkey: _mark(receipt) for receipt in receipts.receipts})
        for receipt in receipts.receipts:
            self.latest[receipt.uid] = receipt
            if receipt.reason is not None:
                self.rejected[receipt.hotkey][receipt.reason.value] += 1
                self.last_reason[receipt.hotkey] = receipt.reason.value
            if receipt.judgement is not None:
                self.last_gain[receipt.hotkey] = receipt.judgement.gain

    def rejected_by_reason(self) -> dict[str, int]:
        total: Counter[str] = Counter()
        for reasons in self.rejected.values():
            total.update(reasons)
        return dict(total.most_common())

    def row(self, receipt: Receipt, incentive: float) -> PeerRow:
        hotkey, after = receipt.hotkey, receipt.after
        return PeerRow(
            uid=receipt.uid,
            hotkey=hotkey,
            rating=after.rating,
            unique_work=after.unique_work,
            sync=after.sync,
            standing=after.standing,
            final=after.final,
            weight=receipt.weight,
            incentive=incentive,
            accepted=self.accepted[hotkey],
            rejected=dict(self.rejected[hotkey].most_common()) if hotkey in self.rejected else {},
            last_reason=self.last_reason.get(hotkey),
            last_gain=self.last_gain.get(hotkey),
            on_list=receipt.list_next,
            history=tuple(marks.get(hotkey, ABSENT) for marks in self.marks),
        )


class Watcher:
    """Follows a run by reading. Each `refresh` reads only what is new, so a live screen may call it every second.

    `open_bucket` opens a bucket from a commitment and may raise `BadLocation`.
    """

    def __init__(self, run: Run, chain: Chain, open_bucket: Callable[[bytes], Bucket]) -> None:
        self.run, self.chain = run, chain
        self._documents = documents = Documents(run, chain, open_bucket)
        self._tally = _Tally()
        first, keys = run.time.first_window, documents.keys
        self._manifests = Feed("manifests", first, keys.manifest, MANIFEST_LIMIT_BYTES, documents.parse_manifest)
        self._receipts = Feed("receipts", first, keys.receipts, RECEIPTS_LIMIT_BYTES, documents.parse_receipts)

    async def refresh(self) -> View:
        """The run now. Raises `ChainUnreachable`; what is wrong in a bucket is named in `View.problems`."""
        head = await self.chain.head()
        neurons = await self.chain.neurons()
        sources, troubles = await self._documents.sources(neurons)
        window = window_of(head.number, self.run.time)
        manifests, receipts = await asyncio.gather(
            self._manifests.read(sources, window), self._receipts.read(sources, window)
        )
        for manifest in manifests:
            self._tally.add_manifest(manifest)
        for document in receipts:
            self._tally.add_receipts(document)
        feeds = (self._manifests, self._receipts)
        troubles += [trouble for feed in feeds for trouble in (*feed.problems, *feed.troubles)]
        tally, leaders = self._tally, leader_order(neurons)
        return View(
            run_name=self.run.name,
            block=head.number,
            window=window,
            blocks_to_close=deadlines(window, self.run.time).close_block - head.number,
            window_blocks=self.run.time.window_blocks,
            window_seconds=self.run.time.window_blocks * self.chain.block_seconds,
            windows=tally.windows,
            newest=tally.newest.window if tally.newest else None,
            held_out_losses=tuple(tally.losses),
            accepted=tally.accepted.total(),
            rejected=tally.rejected_by_reason(),
            rows=self._rows(neurons),
            contributors=tuple(tally.contributors),
            leader=leaders[0].hotkey if leaders else None,
            problems=tuple(troubles),
        )

    def _rows(self, neurons: Sequence[Neuron]) -> tuple[PeerRow, ...]:
        paid = {(neuron.uid, neuron.hotkey): neuron.incentive for neuron in neurons}
        # A window of which the validator saw nothing has no receipts of peers; who still holds the slot stays.
        latest = [r for r in self._tally.latest.values() if (r.uid, r.hotkey) in paid]
        rows = [self._tally.row(receipt, paid[receipt.uid, receipt.hotkey]) for receipt in latest]
        return tuple(sorted(rows, key=lambda row: (-row.weight, -row.final, -row.rating, row.uid)))


def _mark(receipt: Receipt) -> str:
    if receipt.reason is not None:
        return receipt.reason.value
    return APPLIED if receipt.contributed else PASSED
