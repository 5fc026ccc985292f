"""Why a peer got its score: one receipt, in words and with its arithmetic (protocol §14). Pure: nothing is read."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from neurons.errors import NotJudged
from neurons.leaderboard.words import number, percent, plain, plural, short
from protocol.errors import Reason
from protocol.gauntlet.checks import MISSING_REASONS
from protocol.gauntlet.receipts import Judgement, Receipt, Receipts, Submission
from protocol.run import Run

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


@dataclass(frozen=True, slots=True)
class Explanation:
    """One peer in one window. `incentive` is what the chain pays it, a share in [0, 1]; None if not known."""

    receipts: Receipts
    receipt: Receipt
    run: Run
    incentive: float | None

    def to_json(self) -> dict[str, Any]:
        """Every number of the receipt; scores under the names the leaderboard uses."""
        receipt, after = self.receipt.model_dump(mode="json"), self.receipt.after
        return {
            "uid": self.receipt.uid,
            "hotkey": self.receipt.hotkey,
            "window": self.receipts.window,
            "validator": self.receipts.signer,
            "rating": after.rating,
            "unique_work": after.unique_work,
            "unique_work_error": after.unique_work_error,
            "sync": after.sync,
            "standing": after.standing,
            "final": after.final,
            "weight": self.receipt.weight,
            "incentive": self.incentive,
            "list": self.receipt.list_next,
            "checks_passed": [reason.value for reason in passed_checks(self.receipt.reason)],
            **receipt,
        }

    def sections(self) -> tuple[tuple[str, tuple[str, ...]], ...]:
        """What happened, in order: a title and its lines, for each step from the seal to the pay."""
        return (
            ("sealed", tuple(self._sealed())),
            ("checks", tuple(self._checks())),
            ("applied", (self._applied(),)),
            ("gain", tuple(self._gain())),
            ("unique work", tuple(self._unique_work())),
            ("rating", tuple(self._rating())),
            ("sync", (self._sync(),)),
            ("standing", (self._standing(),)),
            ("final score", tuple(self._final())),
            ("paid", tuple(self._paid())),
        )

    def text(self) -> str:
        """The whole explanation as plain lines."""
        lines = [self._title(), ""]
        for title, body in self.sections():
            lines += [f"{title if i == 0 else '':<12}  {line}" for i, line in enumerate(body)]
        return "\n".join(lines)

    def __rich__(self) -> Group:
        table = Table.grid(padding=(0, 2))
        table.add_column(style="bold cyan", justify="right", no_wrap=True)
        table.add_column(overflow="fold")
        for title, body in self.sections():
            table.add_row(title, Text("\n").join(_styled(line) for line in body))
        return Group(Text(self._title(), style="bold"), Text(), table)

    # --- the steps ----------------------------------------------------------------------------------------

    def _title(self) -> str:
        receipts, receipt = self.receipts, self.receipt
        return (
            f"uid {receipt.uid} ({short(receipt.hotkey)}) in window {receipts.window} of {self.run.name}, "
            f"judged by {short(receipts.signer)}"
        )

    def _sealed(self) -> Iterator[str]:
        submission = self.receipt.submission
        if submission is None:
            yield "nothing that a validator could read as a seal"
            return
        yield f"{submission.size_bytes:,} bytes, payload {submission.payload_digest[:16]}…{_stored(submission)}"
        if submission.inner_steps:
            yield f"{plural(submission.inner_steps, 'inner step')} on {submission.tokens:,} tokens"

    def _checks(self) -> Iterator[str]:
        reason = self.receipt.reason
        if reason is None:
            yield f"✓ all {len(Reason)} passed, from {Reason.NO_SEAL} to {Reason.UNREACHABLE}"
            return
        passed = passed_checks(reason)
        if passed:
            yield f"✓ clear of {', '.join(passed)}"
        yield f"✕ {reason}: {plain(self.receipt.detail)}"
        meaning, remedy = MEANINGS[reason]
        yield meaning
        yield f"→ {remedy}"

    def _applied(self) -> str:
        if self.receipt.contributed:
            return f"● yes: it is in manifest {self.receipts.window}, every node applied it"
        if self.receipt.reason is None:
            return "○ no: valid, but not on the gather list of this window, and no reserve was needed"
        return "✕ no: it did not pass the checks"

    def _gain(self) -> Iterator[str]:
        judgement = self.receipt.judgement
        if judgement is None:
            yield "not judged"
            return
        how = "first-order" if judgement.loss_after is None else "measured"
        gain, error = percent(judgement.gain, 3, signed=True), percent(judgement.gain_error, 3)
        yield f"{gain} of the loss on random pages, ± {error} ({how}): {self._place(judgement)}"
        if judgement.loss_after is not None:
            yield (
                f"loss on random pages {number(judgement.loss_before, 4)} → {number(judgement.loss_after, 4)} nats "
                f"after {number(self.run.gauntlet.step_share, 2)} of its step; "
                f"first-order estimate {percent(judgement.first_order_gain, 3, signed=True)}"
            )

    def _place(self, judgement: Judgement) -> str:
        ranks = [r.judgement.rank for r in self.receipts.receipts if r.judgement is not None]
        ties = ranks.count(judgement.rank) - 1
        shared = f", a draw with {plural(ties, 'other')}" if ties > 0 else ""
        return f"place {judgement.rank + 1} of {len(ranks)}{shared}"

    def _unique_work(self) -> Iterator[str]:
        judgement, before, after = self.receipt.judgement, self.receipt.before, self.receipt.after
        if judgement is None or judgement.unique_work is None:
            yield f"own pages not evaluated; average stays {number(after.unique_work, 3)}"
            return
        if judgement.own_loss_before is not None and judgement.own_loss_after is not None:
            own = (judgement.own_loss_before - judgement.own_loss_after) / judgement.own_loss_before
            yield (
                f"loss on its own pages {number(judgement.own_loss_before, 4)} → "
                f"{number(judgement.own_loss_after, 4)} nats: {percent(own, 3, signed=True)}, "
                f"on random pages {percent(judgement.gain, 3, signed=True)}"
            )
        yield (
            f"against the others on the same pages: {number(judgement.unique_work, 3)} in [−1, 1]; "
            f"average {number(before.unique_work, 3)} → {number(after.unique_work, 3)}"
        )

    def _rating(self) -> Iterator[str]:
        before, after = self.receipt.before, self.receipt.after
        yield (
            f"{number(before.rating)} → {number(after.rating)}  = μ {number(after.mu)} − 3 × σ {number(after.sigma)}"
        )
        if (before.mu, before.sigma) == (after.mu, after.sigma):
            yield "unchanged: it was not in this window's match"
        elif self.receipt.judgement is None:
            yield "last place in this window's match, with all who sent nothing valid"

    def _sync(self) -> str:
        steps = self.receipt.steps_behind
        place = "in step" if steps == 0 else f"{plural(steps, 'window')} behind"
        return f"{number(self.receipt.after.sync)}: {place}"

    def _standing(self) -> str:
        before, after, penalties = self.receipt.before.standing, self.receipt.after.standing, self.run.penalties
        change = f"{number(before)} → {number(after)}"
        reason = self.receipt.reason
        if reason in MISSING_REASONS:
            return f"{change}: × {number(penalties.missing)} for a missing contribution"
        if reason is not None:
            return f"{change}: × {number(penalties.rejected)} for a rejected contribution"
        if after < before:
            return f"{change}: × {number(penalties.negative)}, its latest gains are mostly negative"
        if after > before:
            return f"{change}: a clean window gives {number(penalties.recovery)} back"
        return f"{change}: no penalty"

    def _final(self) -> Iterator[str]:
        after = self.receipt.after
        factors = (max(0.0, after.rating), max(0.0, after.unique_work), after.sync, after.standing)
        product = math.prod(factors)
        floored = (_floored(after.rating), _floored(after.unique_work))
        yield "max(0, rating) × max(0, unique work) × sync × standing"
        yield f"{' × '.join((*floored, number(after.sync, 3), number(after.standing, 3)))} = {number(product, 3)}"
        if math.isclose(product, after.final, rel_tol=1e-9, abs_tol=1e-12):
            return
        if after.final == 0.0:
            yield f"but 0: {' or '.join(self._why_nothing())}"
        else:
            yield f"the receipt says {number(after.final, 3)}, which this product is not: audit this validator"

    def _why_nothing(self) -> Iterator[str]:
        """Which rule may have set the final score to zero; a receipt does not count windows, so it can be two."""
        gauntlet, absent = self.run.gauntlet, self.receipt.reason in (Reason.NO_SEAL, Reason.UNREACHABLE)
        if absent:
            yield f"inactive, with no seal for {plural(self.run.penalties.inactive_windows, 'window')} or more"
        least = gauntlet.unique_work_errors * self.receipt.after.unique_work_error
        if not absent or self.receipt.after.unique_work < least:
            yield f"unique work is not evident: it would have to be {number(least, 3)}, beyond what chance gives"

    def _paid(self) -> Iterator[str]:
        receipt, later = self.receipt, self.receipts.window + 2
        places = {
            "gather": f"on the gather list: its payload of window {later} is applied if valid",
            "reserve": f"on the reserve list: it steps in in window {later} if a gather peer fails",
        }
        yield places.get(receipt.list_next, f"on no list for window {later}")
        yield f"weight {percent(receipt.weight, 2)} of what this validator gives"
        if self.incentive is None:
            yield "incentive not known: this hotkey no longer holds the slot"
        else:
            yield f"incentive {percent(self.incentive, 2)} of what the chain pays to miners, as of its last epoch"


def explain(receipts: Receipts, uid: int, run: Run, incentive: float | None) -> Explanation:
    """Explain the peer in slot `uid`; `NotJudged` when these receipts have none for it."""
    receipt = receipts.of(uid)
    if receipt is None:
        judged = ", ".join(str(r.uid) for r in receipts.receipts) or "nobody"
        raise NotJudged(f"uid {uid} has no receipt in window {receipts.window}: judged were {judged}")
    return Explanation(receipts, receipt, run, incentive)


def passed_checks(failed: Reason | None) -> tuple[Reason, ...]:
    """The checks that a contribution had surely passed when it failed `failed`; all of them if it is None."""
    order = tuple(Reason)
    if failed is None:
        return order
    return order[: _SURELY_PASSED.get(failed, order.index(failed))]


def _stored(submission: Submission) -> str:
    """When the bucket says the seal was stored; a store may report any number."""
    if submission.stored_at is None:
        return ""
    try:
        when = datetime.fromtimestamp(submission.stored_at, UTC)
    except (OverflowError, OSError, ValueError):
        return ", stored at a time that is none"
    return f", stored {when:%Y-%m-%d %H:%M:%S} UTC by its bucket's clock"


def _floored(value: float) -> str:
    return number(value, 3) if value >= 0 else f"max(0, {number(value, 3)})"


_STYLES = {"✓": "green", "●": "green", "✕": "red", "→": "yellow"}


def _styled(line: str) -> Text:
    return Text(line, style=_STYLES.get(line[:1], ""))
