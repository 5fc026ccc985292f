"""What each reason of a rejection means, and what its owner should do."""

from __future__ import annotations

from protocol.errors import Reason

MEANINGS: dict[Reason, tuple[str, str]] = {
    Reason.NO_SEAL: (
        "When the window closed there was no seal of this peer in its bucket.",
        "Keep the miner running, and its clock on the chain; if it says it sealed, check that the bucket it commits "
        "to on chain is the one it writes to.",
    ),
    Reason.LATE_SEAL: (
        "A seal is there, but it appeared after the one snapshot that all validators take.",
        "Upload is too slow or starts too late: stop the inner steps earlier, or use a faster line.",
    ),
    Reason.BAD_SIGNATURE: (
        "The seal is not a document signed by this hotkey, or the payload inside names another hotkey.",
        "Seal with the hotkey that is registered; a payload of another peer never counts.",
    ),
    Reason.WRONG_RUN: (
        "The contribution is for another run: its run digest differs.",
        "Use the run.toml of this run, unchanged.",
    ),
    Reason.WRONG_WINDOW: (
        "The contribution is for another window; one of an earlier window cannot be used again.",
        "Seal in the window that was trained; if the miner does, its view of the chain is behind.",
    ),
    Reason.WRONG_LAYOUT: (
        "The contribution is for a model with other parameters.",
        "Build the model from run.toml, with a version of transformers that gives the same parameters.",
    ),
    Reason.NO_REVEAL: (
        "The seal was there, but its key was not published by the reveal deadline.",
        "Keep the miner running after the close until its key is out; a sealed payload without key is worth nothing.",
    ),
    Reason.WRONG_KEY: (
        "The published key is not the one the seal committed to, or the shards do not open with it: so end shards "
        "that were sealed by somebody else.",
        "Publish the key that sealed these shards; shards copied from another peer never open.",
    ),
    Reason.NO_SHARD: (
        "The key is out, but a shard that the seal names is not in the bucket.",
        "Upload every shard before the key, and check that uploads succeed.",
    ),
    Reason.SHARD_SIZE: (
        "A shard does not have the size that the run and the seal say.",
        "Do not change objects after sealing; sizes follow from run.toml alone.",
    ),
    Reason.SHARD_DIGEST: (
        "What lies in the bucket is not what was sealed.",
        "Never replace a shard after its seal; if nobody did, the store or the upload damages data.",
    ),
    Reason.NOT_CANONICAL: (
        "The payload is not in the one form the wire format allows.",
        "Write payloads with this package, or follow docs/protocol.md to the bit.",
    ),
    Reason.BAD_LEVEL: (
        "The payload holds a value that the wire format never writes.",
        "Write payloads with this package, or follow docs/protocol.md to the bit.",
    ),
    Reason.STALE_BASE: (
        "It was trained from an older state than the one this window started from.",
        "The miner cannot keep up: look in its log for what delays applying the manifest, and start it again if it "
        "does not catch up.",
    ),
    Reason.BAD_SYNC_PROOF: (
        "It names the right state but did not prove to hold it: its own parameters differ.",
        "Start the miner again, so that it loads a checkpoint and replays the ledger.",
    ),
    Reason.NORM: (
        "Its update is many times as large as those of the others.",
        "Train with the inner learning rate of run.toml; a larger update counts for no more.",
    ),
    Reason.DUPLICATE: (
        "Its records equal those of another payload, of this window or an earlier one.",
        "Train on the assigned pages and send each result once.",
    ),
    Reason.OVERLAP: (
        "It shares more positions with another payload than independent training ever does.",
        "Train on the assigned pages; a re-computed or disturbed copy is still a copy.",
    ),
    Reason.UNREACHABLE: (
        "Its bucket could not be read in time.",
        "Check that the committed bucket answers readers, from outside too, with the committed credentials.",
    ),
}
"""What each reason means, and what its owner should do."""

# Checks of the seal, of the bytes and of the values mingle a little: what a contribution had surely passed when it
# failed one of these is less than all that stands before it in the list.
_SURELY_PASSED = {
    Reason.LATE_SEAL: 0,
    Reason.SHARD_SIZE: 6,
    Reason.SHARD_DIGEST: 6,
    Reason.BAD_LEVEL: 11,
    Reason.UNREACHABLE: 0,
}


def passed_checks(failed: Reason | None) -> tuple[Reason, ...]:
    """The checks that a contribution had surely passed when it failed `failed`; all of them if it is None."""
    order = tuple(Reason)
    if failed is None:
        return order
    return order[: _SURELY_PASSED.get(failed, order.index(failed))]
