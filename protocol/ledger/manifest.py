"""Manifests: the signed record of what was applied in a window; their chain is the ledger (protocol §12)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Annotated

from pydantic import Field, StringConstraints

from protocol.chain.port import Neuron
from protocol.errors import Divergence, DocumentError, LedgerError, Reason
from protocol.identity import Address, Digest, Document, SignedDocument, public_key
from protocol.run import Run
from protocol.sealing import SealedShard
from protocol.window import WindowNumber

MANIFEST_LIMIT_BYTES = 4 * 2**20
FIRST_PREVIOUS = "0" * 64
"""What the first manifest of a run names as its predecessor."""

Uid = Annotated[int, Field(ge=0, le=65535)]


class Seat(Document):
    """A hotkey in its slot. Lists name seats, not slots: who registers in a slot that another has left inherits
    nothing."""

    uid: Uid
    hotkey: Address


class Contribution(Document):
    """One payload that counts: what it is, the key that opens it, and the commitment that says where to read it."""

    uid: Uid
    hotkey: Address
    payload_digest: Digest
    key: Digest
    shards: tuple[SealedShard, ...]
    location: Annotated[str, StringConstraints(pattern=r"^([0-9a-f]{2}){1,128}$"), Field(repr=False)]


class Refusal(Document):
    """One peer whose contribution does not count, and why."""

    uid: Uid
    hotkey: Address
    reason: Annotated[Reason, Field(strict=False)]
    detail: Annotated[str, StringConstraints(max_length=200)]


class Manifest(SignedDocument):
    """What every node applies in `window`. `root` is the root of θ before it; `gather` and `reserve` are
    those who may contribute to window + 2 (no list: all may)."""

    run_digest: Digest
    window: WindowNumber
    previous: Digest
    root: Digest
    alpha: float
    contributions: tuple[Contribution, ...]
    rejected: tuple[Refusal, ...]
    gather: tuple[Seat, ...]
    reserve: tuple[Seat, ...]


def signed_twice(one: Manifest, other: Manifest) -> bool:
    """Whether two manifests whose signatures hold prove that their signer broke the rule: one key, one window, one
    predecessor, two manifests. A signer whose chain lost may lead the window again, after another predecessor."""
    same = (one.signer, one.window, one.previous) == (other.signer, other.window, other.previous)
    return same and one.digest() != other.digest()


def leader_order(neurons: Sequence[Neuron]) -> tuple[Neuron, ...]:
    """Validators with a permit in the order in which their manifests count: most stake first, then lowest uid."""
    return tuple(sorted((n for n in neurons if n.validator_permit), key=lambda n: (-n.stake, n.uid)))


def check_contributions(
    manifest: Manifest, run: Run, gather: Sequence[Seat], reserve: Sequence[Seat], sealed_sizes: Sequence[int]
) -> None:
    """Raise `LedgerError` unless what a manifest applies and lists is allowed: contributors from the lists in effect
    (anyone, without a gather list), objects of the run's sizes, nobody both applied and rejected, short lists."""
    window, listed = manifest.window, {*gather, *reserve}
    strangers = [c.uid for c in manifest.contributions if Seat(uid=c.uid, hotkey=c.hotkey) not in listed]
    if gather and strangers:
        raise LedgerError(f"manifest {window}: uids {strangers} contribute but are on no list with these hotkeys")
    both = {c.uid for c in manifest.contributions} & {refusal.uid for refusal in manifest.rejected}
    if both:
        raise LedgerError(f"manifest {window}: uids {sorted(both)} are both applied and rejected")
    for contribution in manifest.contributions:
        try:
            public_key(contribution.hotkey)
        except DocumentError as error:
            raise LedgerError(f"manifest {window}: uid {contribution.uid}: {error}") from error
        if [shard.size_bytes for shard in contribution.shards] != list(sealed_sizes):
            raise LedgerError(f"manifest {window}: the shards of uid {contribution.uid} are not of the run's sizes")
    named = [seat.uid for seat in (*manifest.gather, *manifest.reserve)]
    gauntlet = run.gauntlet
    if len(named) != len({*named}):
        raise LedgerError(f"manifest {window}: its gather and reserve lists name a uid twice")
    if len(manifest.gather) > gauntlet.gather_size or len(manifest.reserve) > gauntlet.reserve_size:
        raise LedgerError(f"manifest {window}: its lists are longer than the run allows")


def check_manifest(manifest: Manifest, run: Run, window: int, previous: str, root: str, signer: str) -> None:
    """Raise `LedgerError`, naming the field and both values, unless `manifest` may follow `previous` on a state
    with this root; `Divergence` when only the root differs."""
    try:
        manifest.verify(signer)
    except DocumentError as error:
        raise LedgerError(f"manifest {window}: {error}") from error
    expected: dict[str, object] = {
        "run_digest": run.digest(),
        "window": window,
        "previous": previous,
        "alpha": run.sparseloco.alpha(window),
    }
    for field, value in expected.items():
        if getattr(manifest, field) != value:
            raise LedgerError(f"manifest {window}: {field} is {getattr(manifest, field)}, this node has {value}")
    uids = [contribution.uid for contribution in manifest.contributions]
    if any(b <= a for a, b in itertools.pairwise(uids)):
        raise LedgerError(f"manifest {window}: contributions are not in ascending uid")
    if len(uids) > run.gauntlet.gather_size:
        raise LedgerError(f"manifest {window}: {len(uids)} contributions, the run allows {run.gauntlet.gather_size}")
    if manifest.root != root:
        raise Divergence(f"manifest {window}: root is {manifest.root}, this node has {root}")
