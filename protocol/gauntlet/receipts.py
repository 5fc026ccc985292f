"""Receipts: how each peer was judged in one window, with every number that went into its score (protocol §14)."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, StringConstraints

from protocol.errors import Reason
from protocol.identity import Address, Digest, Document, SignedDocument
from protocol.ledger.manifest import Uid
from protocol.window import WindowNumber

RECEIPTS_LIMIT_BYTES = 8 * 2**20


class Submission(Document):
    """What a peer sent. `stored_at` is what its bucket reports, in Unix seconds: evidence, never the judge."""

    size_bytes: int
    payload_digest: Digest
    inner_steps: int
    tokens: int
    stored_at: float | None


class Resemblance(Document):
    """Whose work a payload repeats, and the correlation of what both do, page for page."""

    uid: Uid
    correlation: float


class Judgement(Document):
    """Losses are in nats per token, before and after a step of `step_share`·α along the clipped update; gains are
    shares of the loss before. `gain` is the one that ranks: measured where `loss_after` is there, else the first-order
    one in the scale of the window's measured ones. `rank` is that by gain over all random pages, `places` those on
    each of them, which are what the rating is made of. `overstates` says whether the first-order gain promises far
    more than is measured; None where nothing was measured. Who `resembles` another counts as having done no work of
    its own in this window."""

    gain: float
    gain_error: float
    first_order_gain: float
    rank: int
    places: tuple[int, ...]
    overstates: bool | None
    loss_before: float
    loss_after: float | None
    own_loss_before: float | None
    own_loss_after: float | None
    unique_work: float | None
    unique_work_error: float | None
    resembles: Resemblance | None


class Standing(Document):
    """The scorebook's record of a peer after (or before) a window, whole, so that anybody can go on from it, and the
    rating, sync and final score that follow from it."""

    rating: float
    mu: float
    sigma: float
    unique_work: float
    unique_work_error: float
    judged: int
    signs: tuple[int, ...]
    absent: int
    last_measured: int
    overstates: bool
    sync: float
    standing: float
    final: float


class Receipt(Document):
    """One peer in one window. `reason` is None if every check passed; `contributed` says whether it was applied;
    `list_next` is its list after the window, which the next manifest names and which counts in window + 3; `weight` is
    its share in the validator's weights."""

    uid: Uid
    hotkey: Address
    reason: Annotated[Reason, Field(strict=False)] | None
    detail: Annotated[str, StringConstraints(max_length=200)]
    steps_behind: int
    contributed: bool
    submission: Submission | None
    judgement: Judgement | None
    before: Standing
    after: Standing
    list_next: Annotated[str, StringConstraints(pattern="^(gather|reserve|none)$")]
    weight: float


class Receipts(SignedDocument):
    """All receipts of one validator for one window. `manifest` is the digest of the one that it applied, which may have
    lost since; held-out losses are those of θ before and after it; `departed` are the slots whose record was dropped
    before this window, because their hotkey has left them."""

    run_digest: Digest
    window: WindowNumber
    manifest: Digest
    held_out_loss_before: float
    held_out_loss_after: float
    random_pages: tuple[int, ...]
    scorebook_digest: Digest
    departed: tuple[Uid, ...] = ()
    receipts: tuple[Receipt, ...]

    def of(self, uid: int) -> Receipt | None:
        """The receipt of the peer in slot `uid`."""
        return next((receipt for receipt in self.receipts if receipt.uid == uid), None)
