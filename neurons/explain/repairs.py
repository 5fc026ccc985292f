"""What would have changed a score: each thing that cost something, and what would be without it. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from neurons.explain.course import Course, Pay
from neurons.explain.evidence import Evidence
from neurons.explain.timeline import key_lateness, seal_lateness
from neurons.leaderboard.words import number, percent, plural
from protocol.errors import Reason
from protocol.gauntlet.receipts import Judgement, Receipt
from protocol.gauntlet.scorebook import Event, update

_WINDOWS_LIMIT = 100


@dataclass(frozen=True, slots=True)
class Repair:
    """One thing that cost something. `what` names it for programs, `words` say it with what would be otherwise,
    `figures` are the numbers in them, units in their names."""

    what: str
    words: str
    figures: Mapping[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Its fields."""
        return {"what": self.what, "words": self.words, "figures": dict(self.figures)}


def repairs(evidence: Evidence) -> tuple[Repair, ...]:
    """Everything that cost the peer something, what happened in this window first."""
    found = [*_late_seal(evidence), *_late_key(evidence)]
    receipt, receipts = evidence.receipt, evidence.receipts
    if receipt is None or receipts is None:
        return tuple(found)
    found += _place(evidence, receipt)
    course = Course((*evidence.past, receipts), evidence.run, receipt.uid, receipt.hotkey)
    if not course.is_faithful:
        words = "what else would be different cannot be said: these receipts do not give the scores that they name"
        return (*found, Repair("not_faithful", words))
    found += _rejections(evidence, course)
    found += _next_place(evidence, receipt, course)
    found += _unique_work(evidence, receipt, course)
    found += _rating(course)
    found += _lists(course)
    return tuple(found)


# --- too late ---------------------------------------------------------------------------------------------


def _late_seal(evidence: Evidence) -> Iterator[Repair]:
    blocks, receipt = seal_lateness(evidence), evidence.receipt
    reason = receipt.reason if receipt else evidence.refusal.reason if evidence.refusal else None
    if blocks is None or reason not in (Reason.LATE_SEAL, Reason.NO_SEAL, None) or evidence.contribution:
        return
    if receipt is not None and receipt.reason is None:
        return
    seconds = blocks * evidence.block_seconds
    if blocks > 0:
        earlier = plural(math.ceil(blocks), "block")
        words = f"sealed {number(seconds, 1)} s too late: stop the inner steps {earlier} earlier"
        yield Repair("late_seal", words, {"seconds": seconds, "blocks": blocks})
    elif reason is not None:
        words = (
            f"its bucket says that the seal was there {number(-seconds, 1)} s before the snapshot, and no validator "
            "saw it then: its store shows objects late, or its clock is behind"
        )
        yield Repair("seal_not_seen", words, {"seconds": seconds, "blocks": blocks})


def _late_key(evidence: Evidence) -> Iterator[Repair]:
    blocks, receipt = key_lateness(evidence), evidence.receipt
    reason = receipt.reason if receipt else evidence.refusal.reason if evidence.refusal else None
    if reason is not Reason.NO_REVEAL:
        return
    if blocks is None:
        yield Repair("no_key", "the key never came: publish it when it is due, and keep the miner running until then")
    elif blocks > 0:
        words = (
            f"the key came {number(blocks, 1)} blocks ({number(blocks * evidence.block_seconds, 1)} s) after the "
            "deadline: nothing but the 32 bytes of the key has to cross the network then"
        )
        yield Repair("late_key", words, {"seconds": blocks * evidence.block_seconds, "blocks": blocks})


# --- rejections and penalties -----------------------------------------------------------------------------


def _rejections(evidence: Evidence, course: Course) -> Iterator[Repair]:
    """The windows that this peer still pays for."""
    costly = {}
    for window in course.events:
        event = course.event(window)
        if event is not None and (event.reason is not None or _is_penalised(evidence, window)):
            costly[window] = event
    if not costly or (course.real.record.standing >= 1.0 and evidence.window not in costly):
        return
    clean = {window: _clean(event) for window, event in costly.items()}
    real, had = course.real, course.had(clean)
    what = "rejection" if all(event.reason for event in costly.values()) else "penalty"
    which = f"the {what if len(costly) == 1 else _plural_of(what)} of {_named(costly)}"
    words = (
        f"without {which} the standing would be {number(had.record.standing)} instead of "
        f"{number(real.record.standing)}, the rating {number(had.record.rating)} instead of "
        f"{number(real.record.rating)}, and {_weights(real, had)}"
    )
    yield Repair("rejections", words, {"windows": float(len(costly)), "standing": had.record.standing, **_figures(had)})


def _is_penalised(evidence: Evidence, window: int) -> bool:
    receipts = next((r for r in (*evidence.past, evidence.receipts) if r and r.window == window), None)
    receipt = receipts.of(evidence.uid) if receipts else None
    return receipt is not None and receipt.after.standing < receipt.before.standing


def _clean(event: Event) -> Event:
    """The same window for a peer that passed the checks and about whose gain nothing is known."""
    return Event(uid=event.uid, hotkey=event.hotkey, reason=None)


def _named(costly: Mapping[int, Event]) -> str:
    """`window 17 (overlap)`, `windows 3-5 (no_reveal), 9 (late_seal)`: windows in a row with one reason as one."""
    runs: list[tuple[int, int, str]] = []
    for window, event in costly.items():
        reason = event.reason or "negative gains"
        if runs and runs[-1][1:] == (window - 1, reason):
            runs[-1] = (runs[-1][0], window, reason)
        else:
            runs.append((window, window, reason))
    noun = "window" if len(costly) == 1 else "windows"
    parts = (f"{first}{'' if first == last else f'-{last}'} ({reason})" for first, last, reason in runs)
    return f"{noun} {', '.join(parts)}"


def _plural_of(noun: str) -> str:
    return "penalties" if noun == "penalty" else f"{noun}s"


# --- place ------------------------------------------------------------------------------------------------


def _better(evidence: Evidence, judgement: Judgement) -> Receipt | None:
    """The worst of those with a better place than `judgement`."""
    assert evidence.receipts is not None
    ahead = [r for r in evidence.receipts.receipts if r.judgement is not None and r.judgement.rank < judgement.rank]
    return min(ahead, key=lambda r: (r.judgement.gain, r.uid), default=None) if ahead else None  # type: ignore[union-attr]


def _place(evidence: Evidence, receipt: Receipt) -> Iterator[Repair]:
    """How far the next place was."""
    if receipt.judgement is None or (better := _better(evidence, receipt.judgement)) is None:
        return
    assert better.judgement is not None
    gap = better.judgement.gain - receipt.judgement.gain
    noise = math.hypot(better.judgement.gain_error, receipt.judgement.gain_error)
    kind = "measured" if receipt.judgement.loss_after is not None else "first-order"
    where = "inside" if gap <= noise else "outside"
    words = (
        f"{kind} gain {percent(gap, 3)} below that of uid {better.uid} on place {better.judgement.rank + 1}, {where} "
        f"the noise of ± {percent(noise, 3)}"
    )
    yield Repair("place", words, {"gap_share": gap, "noise_share": noise, "next_uid": float(better.uid)})


def _next_place(evidence: Evidence, receipt: Receipt, course: Course) -> Iterator[Repair]:
    """What the first place of this window would have been worth."""
    event = course.event(evidence.window)
    judged = [r for r in course.events[evidence.window] if r.gain is not None]
    if event is None or receipt.judgement is None or receipt.judgement.rank == 0 or not judged:
        return
    best = next(r for r in judged if r.uid == _first(evidence))
    had = course.had({evidence.window: _in_place_of(event, best)})
    if math.isclose(had.record.rating, course.real.record.rating, abs_tol=5e-3):
        return  # one who is doubted to work alone is placed last wherever it stands
    words = (
        f"on the first place of this window its rating would be {number(had.record.rating)} instead of "
        f"{number(course.real.record.rating)}, and {_weights(course.real, had)}"
    )
    yield Repair("first_place", words, _figures(had))


def _first(evidence: Evidence) -> int:
    assert evidence.receipts is not None
    judged = [r for r in evidence.receipts.receipts if r.judgement is not None]
    return min(judged, key=lambda r: (r.judgement.rank, -r.judgement.gain)).uid  # type: ignore[union-attr]


def _in_place_of(event: Event, other: Event) -> Event:
    return event.model_copy(update={"gain": other.gain, "gain_error": other.gain_error, "places": other.places})


# --- unique work, rating, lists -----------------------------------------------------------------------------


def _unique_work(evidence: Evidence, receipt: Receipt, course: Course) -> Iterator[Repair]:
    yield from _resemblance(evidence, receipt, course)
    record, gauntlet, real = course.real.record, evidence.run.gauntlet, course.real
    needed = gauntlet.unique_work_errors * record.unique_work_error
    short = needed - record.unique_work
    if short <= 0 or (record.works_alone(evidence.run) and record.unique_work > 0):
        return
    were = course.were(record.model_copy(update={"unique_work": needed}))
    words = (
        f"unique work {number(record.unique_work, 3)} is {number(short, 3)} below the threshold of "
        f"{number(needed, 3)}, {number(gauntlet.unique_work_errors, 1)} times its error: at that, "
        f"{_weights(real, were)}"
    )
    windows = _windows_until_evident(evidence, course)
    if windows is not None:
        words += f"; with windows like this one it takes {plural(windows, 'more window')}"
    yield Repair("unique_work", words, {"short": short, **_figures(were)})


def _resemblance(evidence: Evidence, receipt: Receipt, course: Course) -> Iterator[Repair]:
    event, judgement = course.event(evidence.window), receipt.judgement
    if event is None or judgement is None or (twin := judgement.resembles) is None:
        return
    own = event.model_copy(update={"unique_work": judgement.unique_work})
    had = course.had({evidence.window: own})
    words = (
        f"its payload does page for page what that of uid {twin.uid} does (correlation {number(twin.correlation)}): "
        f"with work of its own the unique work would be {number(had.record.unique_work, 3)} instead of "
        f"{number(course.real.record.unique_work, 3)}, and {_weights(course.real, had)}"
    )
    yield Repair("resembles", words, {"uid": float(twin.uid), "correlation": twin.correlation, **_figures(had)})


def _windows_until_evident(evidence: Evidence, course: Course) -> int | None:
    """Windows with the same evidence of unique work until it is enough; None if it never is."""
    event, book = course.event(evidence.window), course.book
    if event is None or event.unique_work is None:
        return None
    again = _clean(event).model_copy(
        update={"unique_work": event.unique_work, "unique_work_error": event.unique_work_error}
    )
    for windows in range(1, _WINDOWS_LIMIT + 1):
        book = update(book, book.window, [again], evidence.run)
        if book.of(event.uid, event.hotkey).works_alone(evidence.run):
            return windows
    return None


def _rating(course: Course) -> Iterator[Repair]:
    record = course.real.record
    if record.rating > 0:
        return
    words = (
        f"the rating {number(record.rating)} must rise by {number(-record.rating)} before anything is paid: it is "
        f"μ − 3σ, with μ {number(record.mu)} and σ {number(record.sigma)}"
    )
    yield Repair("rating", words, {"short": -record.rating, "mu": record.mu, "sigma": record.sigma})


def _lists(course: Course) -> Iterator[Repair]:
    real = course.real
    if real.on_list == "gather" or (last := course.last_of("gather")) is None:
        return
    needed = last.final(course.run)
    words = (
        f"the gather list is full: the last on it, uid {last.uid}, has a final score of {number(needed, 3)}, "
        f"{number(needed - real.final, 3)} more"
    )
    yield Repair("lists", words, {"short": needed - real.final, "next_uid": float(last.uid)})


# --- words that several share -------------------------------------------------------------------------------


def _weights(real: Pay, had: Pay) -> str:
    """The weight, and by what factor it differs."""
    if math.isclose(had.weight, real.weight, abs_tol=5e-5):
        return f"the weight {percent(real.weight, 2)} as it is"
    factor = f" (× {number(had.weight / real.weight, 2)})" if real.weight > 0 else ""
    return f"the weight {percent(had.weight, 2)} instead of {percent(real.weight, 2)}{factor}"


def _figures(had: Pay) -> dict[str, float]:
    return {"rating": had.record.rating, "final": had.final, "weight": had.weight}
