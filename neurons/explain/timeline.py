"""One window as a timeline: its deadlines in blocks and times, and when each object was stored (protocol §3)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from neurons.doctor.words import size
from neurons.explain.evidence import Bucketful, Evidence, Stored
from neurons.leaderboard.words import number, plural, short
from protocol.window import window_of

_CLOCK_BLOCKS = 0.5
"""What a bucket's clock and the chain's may differ by without a word: a store counts in seconds, or differently."""

_NO_TIME = "at a time that is none"


@dataclass(frozen=True, slots=True)
class Moment:
    """One thing that happened or was due. `at` is in Unix seconds, None while the block is not there or the object is
    missing; `good` says whether it was as it should be, None where that is no question."""

    what: str
    block: int | None
    at: float | None
    note: str = ""
    size_bytes: int | None = None
    good: bool | None = None

    def to_json(self) -> dict[str, Any]:
        """Its fields."""
        return {
            "what": self.what,
            "block": self.block,
            "at": self.at,
            "note": self.note,
            "size_bytes": self.size_bytes,
            "good": self.good,
        }


def timeline(evidence: Evidence) -> tuple[Moment, ...]:
    """Everything in the order of its time; what has none keeps its place after what it belongs to."""
    moments = [*_blocks(evidence), *_objects(evidence), *_documents(evidence)]
    # Stable: a deadline comes before what was stored in the same second.
    return tuple(sorted(moments, key=_when))


def _when(moment: Moment) -> float:
    return moment.at if moment.at is not None and math.isfinite(moment.at) else math.inf


def clock(at: float | None) -> str:
    """A time of day in UTC; a store may report any number."""
    if at is None:
        return ""
    try:
        return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M:%S}"
    except (OverflowError, OSError, ValueError):
        return _NO_TIME


def seal_lateness(evidence: Evidence) -> float | None:
    """By how many blocks the seal was stored after the snapshot (negative: before it); None where that is not known."""
    return _lateness(evidence, evidence.bucketful and evidence.bucketful.seal, evidence.deadlines.seal_block)


def key_lateness(evidence: Evidence) -> float | None:
    """By how many blocks the key was stored after it was due (negative: before that)."""
    return _lateness(evidence, evidence.bucketful and evidence.bucketful.key, evidence.deadlines.reveal_block)


def _lateness(evidence: Evidence, stored: Stored | None, block: int) -> float | None:
    if stored is None or stored.stored_at is None or not math.isfinite(stored.stored_at):
        return None
    return evidence.blocks_after(block, stored.stored_at)


def _blocks(evidence: Evidence) -> Iterator[Moment]:
    limits, times = evidence.deadlines, evidence.block_times
    for what, block in (
        ("the window opens", limits.start_block),
        ("the window closes", limits.close_block),
        ("snapshot of all seals", limits.seal_block),
        ("keys may come out", limits.key_block),
        ("keys and shards are due", limits.reveal_block),
        ("the manifest is due", limits.manifest_block),
    ):
        yield Moment(what, block, times.get(block), "" if block <= evidence.head_block else "still to come")


def _objects(evidence: Evidence) -> Iterator[Moment]:
    found = evidence.bucketful
    if found is None or (evidence.receipt is None and evidence.neuron is not None and evidence.neuron.validator_permit):
        return
    if found.trouble is not None:
        yield Moment("its bucket", None, None, found.trouble, good=False)
        return
    yield from _shards(evidence, found)
    yield _seal(evidence, found)
    yield _key(evidence, found)


def _shards(evidence: Evidence, found: Bucketful) -> Iterator[Moment]:
    there = [shard for shard in found.shards if shard.stored_at is not None]
    if not found.shards:
        return
    missing = len(found.shards) - len(there)
    if missing:
        yield Moment(
            f"{plural(missing, 'shard')} of {found.shards_named}", None, None, "not in its bucket now", good=False
        )
    if there:
        newest = max(shard.stored_at or 0.0 for shard in there)
        count = f"shard{'' if len(there) == 1 else f's, {len(there)}'} stored"
        note, good = _against(evidence, newest, evidence.deadlines.reveal_block, "due")
        yield Moment(count, None, newest, note, sum(shard.size_bytes or 0 for shard in there), good)


def _seal(evidence: Evidence, found: Bucketful) -> Moment:
    seal = found.seal
    if seal.stored_at is None:
        return Moment("seal", None, None, _missing(evidence), good=False)
    note, good = _against(evidence, seal.stored_at, evidence.deadlines.seal_block, "the snapshot")
    submission = evidence.receipt.submission if evidence.receipt else None
    if found.seal_holds is False:
        note, good = f"{note}; it is no seal of this hotkey and window", False
    elif submission is not None and found.payload_digest != submission.payload_digest:
        note, good = f"{note}; it was replaced: the one that was judged names another payload", False
    return Moment("seal stored", None, seal.stored_at, note, seal.size_bytes, good)


def _key(evidence: Evidence, found: Bucketful) -> Moment:
    key, limits = found.key, evidence.deadlines
    if key.stored_at is None:
        return Moment("key", None, None, _missing(evidence), good=False)
    note, good = _against(evidence, key.stored_at, limits.reveal_block, "due")
    since = evidence.blocks_after(limits.key_block, key.stored_at)
    if since is not None and since < -_CLOCK_BLOCKS:
        note, good = f"{_distance(evidence, -since)} before it may come out: others could read the payload", False
    if found.key_opens is False:
        note, good = f"{note}; it is not the key that the seal commits to", False
    return Moment("key stored", None, key.stored_at, note, key.size_bytes, good)


def _documents(evidence: Evidence) -> Iterator[Moment]:
    manifest, receipts = evidence.manifest, evidence.receipts
    if manifest is not None:
        stored = evidence.manifest_stored
        says = "applies it" if evidence.contribution else "does not name it"
        if (refusal := evidence.refusal) is not None:
            says = f"rejects it: {refusal.reason}"
        yield Moment(
            "manifest stored", None, stored.stored_at, f"by {short(manifest.signer)}; {says}", stored.size_bytes
        )
    if receipts is not None:
        stored = evidence.receipts_stored
        yield Moment("receipts stored", None, stored.stored_at, f"by {short(receipts.signer)}", stored.size_bytes)


def _against(evidence: Evidence, at: float, block: int, what: str) -> tuple[str, bool | None]:
    """How the time `at` lies to `block`, in words; and whether it was before it, None within what clocks differ by."""
    if clock(at) == _NO_TIME:
        return "by its bucket's clock", None
    blocks = evidence.blocks_after(block, at)
    if blocks is None:
        return "", None
    if blocks <= 0:
        return f"{_distance(evidence, -blocks)} before {what}", True
    return f"{_distance(evidence, blocks)} after {what}", False if blocks > _CLOCK_BLOCKS else None


def _distance(evidence: Evidence, blocks: float) -> str:
    return f"{number(blocks * evidence.block_seconds, 1)} s ({number(blocks, 1)} blocks)"


def _missing(evidence: Evidence) -> str:
    checkpoints = evidence.run.checkpoints
    swept = (
        evidence.window
        < window_of(evidence.head_block, evidence.run.time) - checkpoints.every_windows * checkpoints.keep
    )
    return "not in its bucket any more: old windows are swept" if swept else "not in its bucket"


def sized(moment: Moment) -> str:
    """The moment's size in words, empty if it has none."""
    return "" if moment.size_bytes is None else size(moment.size_bytes)
