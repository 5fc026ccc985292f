"""Why a peer got its score in a window, in words and with its arithmetic (protocol §14). Pure: nothing is read."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from neurons.errors import NotJudged
from neurons.explain.evidence import Evidence
from neurons.explain.reasons import MEANINGS, passed_checks
from neurons.explain.repairs import Repair, repairs
from neurons.explain.timeline import Moment, clock, sized, timeline
from neurons.leaderboard.words import number, percent, plain, plural, short
from protocol.errors import Reason
from protocol.gauntlet.checks import MISSING_REASONS
from protocol.gauntlet.receipts import Judgement, Receipt, Receipts, Submission
from protocol.gauntlet.selection import UNLISTED_WINDOWS
from protocol.run import Run

_MARKS = {True: "✓", False: "✕", None: " "}

Section = tuple[str, tuple[str, ...]]
"""A title and its lines."""


@dataclass(frozen=True, slots=True)
class Explanation:
    """One slot in one window. `judged` is what there is to say of its receipt, None if it has none; `instead` says
    then what it is."""

    evidence: Evidence
    timeline: tuple[Moment, ...]
    repairs: tuple[Repair, ...]
    judged: Judged | None
    instead: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The whole receipt, if there is one, with scores under the names the leaderboard uses; the timeline; and what
        would have changed it."""
        evidence = self.evidence
        shown: dict[str, Any] = {
            "uid": evidence.uid,
            "hotkey": evidence.hotkey,
            "window": evidence.window,
            "incentive": evidence.incentive,
            "judged": self.judged is not None,
            "instead": list(self.instead),
            "timeline": [moment.to_json() for moment in self.timeline],
            "would_change": [repair.to_json() for repair in self.repairs],
        }
        refusal = evidence.refusal
        shown["manifest"] = {
            "contributed": evidence.contribution is not None,
            "reason": refusal.reason.value if refusal else None,
            "detail": refusal.detail if refusal else None,
        }
        return shown | (self.judged.to_json() if self.judged else {"reason": shown["manifest"]["reason"]})

    def sections(self) -> tuple[Section, ...]:
        """What happened, in order: a title and its lines, for each step from the opening of the window to the pay."""
        middle = self.judged.sections() if self.judged else (("instead", self.instead),)
        would: tuple[str, ...] = tuple(f"→ {repair.words}" for repair in self.repairs)
        if self.judged and not would:
            would = ("nothing cost this peer anything",)
        return (("timeline", tuple(self._times())), *middle, *([("otherwise", would)] if would else []))

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

    def _times(self) -> Iterator[str]:
        days = [clock(moment.at)[:10] for moment in self.timeline if moment.block is not None and moment.at is not None]
        today = days[0] if days else ""
        if today:
            yield f"on {today}, in UTC"
        for moment in self.timeline:
            when = clock(moment.at).removeprefix(today).strip() if moment.at is not None else "-"
            block = f"block {moment.block}" if moment.block is not None else ""
            facts = ", ".join(part for part in (block, sized(moment), moment.note) if part)
            yield f"{_MARKS[moment.good]} {when:<8}  {moment.what}" + (f": {facts}" if facts else "")

    def _title(self) -> str:
        evidence = self.evidence
        who = f"uid {evidence.uid}" + (f" ({short(evidence.hotkey)})" if evidence.hotkey else "")
        by = f", judged by {short(evidence.receipts.signer)}" if self.judged and evidence.receipts else ""
        return f"{who} in window {evidence.window} of {evidence.run.name}{by}"


@dataclass(frozen=True, slots=True)
class Judged:
    """What a receipt says, step by step. `incentive` is what the chain pays now, None if it is not known."""

    receipts: Receipts
    receipt: Receipt
    run: Run
    incentive: float | None

    def to_json(self) -> dict[str, Any]:
        """Every number of the receipt; scores under the names the leaderboard uses."""
        receipt, after = self.receipt.model_dump(mode="json"), self.receipt.after
        return {
            "validator": self.receipts.signer,
            "rating": after.rating,
            "unique_work": after.unique_work,
            "unique_work_error": after.unique_work_error,
            "sync": after.sync,
            "standing": after.standing,
            "final": after.final,
            "list": self.receipt.list_next,
            "checks_passed": [reason.value for reason in passed_checks(self.receipt.reason)],
            **receipt,
        }

    def sections(self) -> tuple[Section, ...]:
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

    # --- the steps ----------------------------------------------------------------------------------------

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
            if self.receipts.window < self.run.time.first_window + UNLISTED_WINDOWS:
                return (
                    "○ no: valid, but by the leader's first look it would have raised the loss, and there was no list"
                )
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
        if judgement.overstates:
            yield "the first-order gain promises more than twice of it: until measured again, it plays no match by that"

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
            f"average {number(before.unique_work, 3)} → {number(after.unique_work, 3)}, evident from "
            f"{number(self.run.gauntlet.unique_work_errors * after.unique_work_error, 3)} on"
        )
        if judgement.resembles is not None:
            yield (
                f"✕ but it does page for page what uid {judgement.resembles.uid} does, correlation "
                f"{number(judgement.resembles.correlation)}: counted as −1"
            )

    def _rating(self) -> Iterator[str]:
        before, after = self.receipt.before, self.receipt.after
        yield (
            f"{number(before.rating)} → {number(after.rating)}  = μ {number(after.mu)} − 3 × σ {number(after.sigma)}"
        )
        if (before.mu, before.sigma) == (after.mu, after.sigma):
            yield "unchanged: it was in none of this window's matches"
        elif self.receipt.judgement is None:
            yield "last place in all of this window's matches, with all who sent nothing valid"
        elif places := self.receipt.judgement.places:
            shown = ", ".join(str(place + 1) for place in places)
            yield f"places on the {len(places)} random pages, a match of a few on each: {shown}"

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
        # The next manifest carries the lists made after this window; they count two windows after it.
        receipt, later = self.receipt, self.receipts.window + 3
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


def explain(evidence: Evidence) -> Explanation:
    """Explain the slot of `evidence`; `NotJudged` when nobody has it, or ever had it in that window."""
    receipt, receipts = evidence.receipt, evidence.receipts
    if receipt is not None and receipts is not None:
        judged = Judged(receipts, receipt, evidence.run, evidence.incentive)
        return Explanation(evidence, timeline(evidence), repairs(evidence), judged)
    return Explanation(evidence, timeline(evidence), repairs(evidence), None, tuple(_instead(evidence)))


def _instead(evidence: Evidence) -> Iterator[str]:
    """What there is to say of a slot without a receipt."""
    neuron, refusal, window = evidence.neuron, evidence.refusal, evidence.window
    pending = "its receipt is still to come" if evidence.receipts is None else "the validator's receipts leave it out"
    if refusal is not None:
        meaning, remedy = MEANINGS[refusal.reason]
        yield f"✕ rejected in manifest {window}: {refusal.reason}: {plain(refusal.detail)}; {pending}"
        yield meaning
        yield f"→ {remedy}"
    elif evidence.contribution is not None:
        yield f"● applied: it is in manifest {window}; {pending}"
    elif neuron is None:
        judged = ", ".join(str(r.uid) for r in evidence.receipts.receipts) if evidence.receipts else ""
        raise NotJudged(
            f"uid {evidence.uid} has no receipt in window {window}, and nobody holds that slot now: judged were "
            f"{judged or 'none'}"
        )
    elif neuron.validator_permit:
        yield f"this slot is a validator's, with a stake of {number(neuron.stake)}: it judges, and is not judged"
    elif neuron.registered_at > evidence.deadlines.seal_block:
        yield f"registered in block {neuron.registered_at}, after the seals of window {window} were taken"
    elif evidence.receipts is None:
        yield f"the receipts of window {window} are still to come; its manifest does not name this peer"
    else:
        yield (
            "not judged: no validator has ever seen a seal of this hotkey in time, and who has never sealed is taken "
            "for no miner"
        )
        yield "→ seal once before the snapshot, and every window after that has a receipt"


def _stored(submission: Submission) -> str:
    """When the bucket said at the snapshot that the seal was stored."""
    when = clock(submission.stored_at)
    return f", stored {when} UTC by its bucket's clock" if when else ""


def _floored(value: float) -> str:
    return number(value, 3) if value >= 0 else f"max(0, {number(value, 3)})"


_STYLES = {"✓": "green", "●": "green", "✕": "red", "→": "yellow"}


def _styled(line: str) -> Text:
    return Text(line, style=_STYLES.get(line[:1], ""))
