"""Checks of one peer's contribution, in the order of protocol §11. Each raises `Rejected` with its reason.

The bytes come from `neurons.rounds`, which stops at the first check that fails; nothing here reads anything.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Mapping, Sequence

import numpy as np
import numpy.typing as npt
from blake3 import blake3

from protocol.errors import DocumentError, Reason, Rejected
from protocol.run import Run
from protocol.sealing import Reveal, Seal
from protocol.sparseloco.aggregate import shared_positions
from protocol.sparseloco.compress import SparseUpdate
from protocol.sparseloco.layout import Layout
from protocol.sparseloco.payload import Header, Payload, sync_proof

MISSING_REASONS = frozenset({Reason.NO_SEAL, Reason.LATE_SEAL, Reason.NO_REVEAL, Reason.NO_SHARD, Reason.UNREACHABLE})
"""Reasons of a peer that was slow or absent; every other reason is a wrong contribution."""


class StaleBase(Rejected):
    """The contribution starts from an older state; `steps` windows behind."""

    def __init__(self, steps: int, detail: str) -> None:
        super().__init__(Reason.STALE_BASE, detail)
        self.steps = steps


def check_seal(data: bytes, hotkey: str, run: Run, layout: Layout, window: int, sizes: Sequence[int]) -> Seal:
    """The seal of `hotkey` for `window`. `sizes` are the bytes of each encrypted shard, known from the run."""
    try:
        seal = Seal.parse(data)
        seal.verify(hotkey)
    except DocumentError as error:
        raise Rejected(Reason.BAD_SIGNATURE, str(error)) from error
    if seal.run_digest != run.digest():
        raise Rejected(Reason.WRONG_RUN, "the seal names another run")
    if seal.window != window:
        raise Rejected(Reason.WRONG_WINDOW, f"the seal is for window {seal.window}")
    if seal.layout_digest != layout.digest:
        raise Rejected(Reason.WRONG_LAYOUT, "the seal is for another model")
    declared = [shard.size_bytes for shard in seal.shards]
    if declared != list(sizes):
        raise Rejected(Reason.SHARD_SIZE, f"the seal declares {len(declared)} shards of other sizes than the run's")
    return seal


def check_reveal(data: bytes, seal: Seal) -> bytes:
    """The 32-byte key, if it is the one the seal committed to."""
    try:
        reveal = Reveal.parse(data)
    except DocumentError as error:
        raise Rejected(Reason.WRONG_KEY, str(error)) from error
    if not reveal.opens(seal):
        raise Rejected(Reason.WRONG_KEY, "the key is not the one the seal committed to")
    return bytes.fromhex(reveal.key)


def check_payload_digest(data: bytes, payload_digest: str) -> None:
    """Whether an opened payload is the one that was named, before anything in it is believed."""
    if blake3(data).hexdigest() != payload_digest:
        raise Rejected(Reason.SHARD_DIGEST, "the opened payload is not the one that was sealed")


def check_base(header: Header, seal: Seal, roots: Mapping[str, int], window: int, sync_steps: int) -> None:
    """Whether the contribution starts from θ of `window`. `roots` maps the root of each recent state to its window;
    an unknown root counts as `sync_steps` behind, the most there is."""
    if header.base_root != seal.base_root:
        raise Rejected(Reason.STALE_BASE, "seal and payload name different roots")
    steps = window - roots[header.base_root] if header.base_root in roots else sync_steps
    if steps:
        known = f"{steps} windows old" if header.base_root in roots else "not known here"
        raise StaleBase(steps, f"the root it starts from is {known}")


def check_sync_proof(header: Header, theta: npt.NDArray[np.float32], window_hash: bytes) -> None:
    """Whether its maker held θ_W."""
    if header.sync_proof != sync_proof(theta, header.hotkey, window_hash):
        raise Rejected(Reason.BAD_SYNC_PROOF, "the proof does not match the state this window started from")


def find_outsized(updates: Mapping[int, SparseUpdate], limit: float) -> dict[int, Rejected]:
    """Which of this window's updates (by uid) have a 2-norm more than `limit` times the median of all.

    No honest optimizer comes near; clipping would make such an update as large as the others and so reward the
    attempt. The median of those that send anything: whoever sends zeros must not make honest work outsized.
    """
    norms = {uid: math.hypot(*update.norms) for uid, update in updates.items()}
    sent = [norm for norm in norms.values() if norm > 0]
    most = limit * statistics.median(sent) if sent else math.inf
    return {
        uid: Rejected(Reason.NORM, f"its norm {norm:.3g} is above {most:.3g}, {limit:g} times the median")
        for uid, norm in sorted(norms.items())
        if norm > most
    }


def find_copies(
    payloads: Mapping[int, Payload],
    past_bodies: frozenset[str],
    past: Sequence[SparseUpdate],
    limit: float,
    applied: Collection[int] = (),
) -> dict[int, Rejected]:
    """Which of this window's payloads (by uid) repeat another one.

    A payload whose records equal those of an earlier window, or of one before it in this one, is a `duplicate`;
    one that shares more than `limit` of its positions with one of them is an `overlap`. Those that are `applied`
    already come first, then lower uids. Nobody can have read a sealed payload, so two equal ones in a window have one
    owner, and keeping one of them pays that owner once.
    """
    found: dict[int, Rejected] = {}
    kept: list[int] = []
    uids = sorted(payloads, key=lambda uid: (uid not in applied, uid))
    rows = {uid: row for row, uid in enumerate(uids)}
    shared = shared_positions([payloads[uid].update for uid in uids], past)
    earlier = list(range(len(uids), len(uids) + len(past)))
    for uid in uids:
        payload = payloads[uid]
        twins = [other for other in kept if payloads[other].body_digest == payload.body_digest]
        if payload.body_digest in past_bodies:
            found[uid] = Rejected(Reason.DUPLICATE, "the records equal a payload of an earlier window")
        elif twins:
            found[uid] = Rejected(Reason.DUPLICATE, f"the records equal those of uid {twins[0]}")
        else:
            mine = shared[rows[uid]]
            whose = {rows[other]: f"those of uid {other}" for other in kept}
            whose |= dict.fromkeys(earlier, "those of a payload of the window before")
            nearest = max(whose, key=lambda row: int(mine[row]), default=rows[uid])
            share = int(mine[nearest]) / int(mine[rows[uid]]) if whose and mine[nearest] else 0.0
            if share > limit:
                found[uid] = Rejected(Reason.OVERLAP, f"{share:.0%} of its positions are {whose[nearest]}")
            else:
                kept.append(uid)
    return found
