"""What an audit has found, as values: broken rules, differences between what is said and what comes out, and gaps."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from neurons.leaderboard.words import number, plain, plural, short

BEFORE = "before."
"""What the kinds of scores before a window begin with."""

_HEADLINES = {
    "held_out_loss_before",
    "held_out_loss_after",
    "loss_before",
    "loss_after",
    "own_loss_before",
    "own_loss_after",
    "first_order_gain",
    "gain",
    "places",
    "unique_work",
    "rating",
    "standing",
    "final",
    "weight",
}
"""What people see also where it does not differ. Everything else is in the JSON."""

EXIT_DIFFERENCE = 12
"""A rule is broken, or a number differs by more than it may."""


@dataclass(frozen=True, slots=True)
class Difference:
    """One number of one receipt: what the validator `said`, and what is `found` here. `kind` is the field's name, with
    `before.` in front for the scores before the window. Up to `tolerance` it is another machine's arithmetic."""

    kind: str
    window: int
    uid: int | None
    validator: str
    said: float
    found: float
    tolerance: float

    @property
    def size(self) -> float:
        """How far apart both are; infinite when only one of them is a number."""
        return abs(self.said - self.found)

    @property
    def is_beyond(self) -> bool:
        """Whether it is more than another machine's arithmetic."""
        return not self.size <= self.tolerance

    def words(self) -> str:
        """Which number, of whom, in which window, both values, and how they lie to the tolerance."""
        peer = "" if self.uid is None else f"uid {self.uid}: "
        verdict = f"more than the {_exact(self.tolerance)} that another machine may make"
        return (
            f"window {self.window}, {peer}validator {short(self.validator)} says {self.kind} {_exact(self.said)}, "
            f"found here {_exact(self.found)}: {_exact(self.size)} apart" + (f", {verdict}" if self.is_beyond else "")
        )

    def to_json(self) -> dict[str, Any]:
        """Its fields; a number that is none is null."""
        return {
            "kind": self.kind,
            "window": self.window,
            "uid": self.uid,
            "validator": self.validator,
            "said": _finite(self.said),
            "found": _finite(self.found),
            "difference": _finite(self.size),
            "tolerance": self.tolerance,
            "beyond": self.is_beyond,
        }


@dataclass(frozen=True, slots=True)
class Note:
    """A sentence about one window: of a broken rule, or of what could not be looked at."""

    window: int
    words: str

    def to_json(self) -> dict[str, Any]:
        """Its fields."""
        return {"window": self.window, "words": self.words}


@dataclass(slots=True)
class WindowReport:
    """One window: how much was looked at, and what was found. `differences` are the largest of each kind and the ones
    beyond tolerance."""

    window: int
    root_checked: bool = False
    payloads: int = 0
    scores: int = 0
    judgements: int = 0
    largest: dict[str, Difference] = field(default_factory=dict)
    beyond: list[Difference] = field(default_factory=list)
    faults: list[Note] = field(default_factory=list)
    gaps: list[Note] = field(default_factory=list)

    def compare(self, difference: Difference) -> None:
        """Take note of a number that was looked at."""
        known = self.largest.get(difference.kind)
        if known is None or not difference.size <= known.size:
            self.largest[difference.kind] = difference
        if difference.is_beyond:
            self.beyond.append(difference)

    def fault(self, words: str) -> None:
        """Take note of a broken rule."""
        self.faults.append(Note(self.window, plain(f"window {self.window}: {words}")))

    def gap(self, words: str) -> None:
        """Take note of something that cannot be looked at."""
        self.gaps.append(Note(self.window, plain(f"window {self.window}: {words}")))

    def to_json(self) -> dict[str, Any]:
        """Its fields."""
        return {
            "window": self.window,
            "root_checked": self.root_checked,
            "payloads": self.payloads,
            "scores": self.scores,
            "judgements": self.judgements,
            "largest": {kind: difference.to_json() for kind, difference in sorted(self.largest.items())},
        }


@dataclass(frozen=True, slots=True)
class Report:
    """The whole walk. `precisions` says in what each validator's losses were recomputed: whichever came nearer."""

    run_name: str
    windows: tuple[WindowReport, ...]
    with_scores: bool
    precisions: dict[str, str] = field(default_factory=dict)

    @property
    def largest(self) -> dict[str, Difference]:
        """The largest difference of each kind over all windows."""
        found: dict[str, Difference] = {}
        for difference in (each for window in self.windows for each in window.largest.values()):
            known = found.get(difference.kind)
            if known is None or not difference.size <= known.size:
                found[difference.kind] = difference
        return dict(sorted(found.items()))

    @property
    def faults(self) -> tuple[Note, ...]:
        """Every broken rule."""
        return tuple(note for window in self.windows for note in window.faults)

    @property
    def gaps(self) -> tuple[Note, ...]:
        """Everything that could not be looked at."""
        return tuple(note for window in self.windows for note in window.gaps)

    @property
    def beyond(self) -> tuple[Difference, ...]:
        """Every number that differs by more than it may."""
        return tuple(difference for window in self.windows for difference in window.beyond)

    @property
    def exit_code(self) -> int:
        """0, or `EXIT_DIFFERENCE` when something is wrong. What cannot be looked at is no fault."""
        return EXIT_DIFFERENCE if self.faults or self.beyond else 0

    def to_json(self) -> dict[str, Any]:
        """Everything, as `windrow audit --json` prints it."""
        return {
            "run": self.run_name,
            "from": self.windows[0].window if self.windows else None,
            "to": self.windows[-1].window if self.windows else None,
            "agrees": self.exit_code == 0,
            "roots_checked": sum(window.root_checked for window in self.windows),
            "payloads_checked": sum(window.payloads for window in self.windows),
            "scores_checked": sum(window.scores for window in self.windows),
            "judgements_recomputed": sum(window.judgements for window in self.windows),
            "precisions": dict(self.precisions),
            "largest": {kind: difference.to_json() for kind, difference in self.largest.items()},
            "beyond": [difference.to_json() for difference in self.beyond],
            "faults": [note.to_json() for note in self.faults],
            "gaps": [note.to_json() for note in self.gaps],
            "windows": [window.to_json() for window in self.windows],
        }

    def sentences(self) -> tuple[str, ...]:
        """What is wrong, in the order in which it was found."""
        return tuple(
            words
            for window in self.windows
            for words in (*(note.words for note in window.faults), *(each.words() for each in window.beyond))
        )

    def __rich__(self) -> Group:
        parts: list[Any] = [Text(self._looked_at(), style="bold")]
        if self.largest:
            shown = [each for kind, each in self.largest.items() if each.size != 0 or kind in _HEADLINES]
            parts += [Text(), _table(shown)]
        if self.gaps:
            parts += [Text(), Text("not to be looked at:", style="bold"), *(Text(f"  {g.words}") for g in self.gaps)]
        wrong = self.sentences()
        parts += [Text(), *(Text(f"✕ {words}", style="red") for words in wrong)]
        parts.append(Text(self._verdict(len(wrong)), style="bold red" if wrong else "bold green"))
        return Group(*parts)

    def _looked_at(self) -> str:
        if not self.windows:
            return f"{self.run_name}: no window to look at"
        shown = self.to_json()
        parts = [
            f"{plural(shown['roots_checked'], 'root')} and {plural(shown['payloads_checked'], 'payload')} checked",
        ]
        if self.with_scores:
            parts.append(
                f"{plural(shown['scores_checked'], 'receipt')} made again, "
                f"{plural(shown['judgements_recomputed'], 'judgement')} recomputed"
            )
        return f"{self.run_name}, windows {shown['from']} to {shown['to']}: {'; '.join(parts)}"

    def _verdict(self, wrong: int) -> str:
        return f"✕ {plural(wrong, 'thing')} that cannot be so" if wrong else "✓ nothing differs by more than it may"


def _table(differences: Iterable[Difference]) -> Table:
    table = Table(title="largest difference of each kind", title_justify="left")
    for name, justify in (("number", "left"), ("apart", "right"), ("may be", "right"), ("window", "right")):
        table.add_column(name, justify=justify, no_wrap=True)  # type: ignore[arg-type]
    table.add_column("uid", justify="right")
    table.add_column("says", justify="right")
    table.add_column("found", justify="right")
    for each in differences:
        uid = "" if each.uid is None else str(each.uid)
        values = (_exact(each.size), _exact(each.tolerance), str(each.window), uid, _exact(each.said))
        style = "red" if each.is_beyond else ""
        table.add_row(each.kind, *values, _exact(each.found), style=style)
    return table


def _exact(value: float) -> str:
    """A number with as many digits as two that differ little need."""
    if value == 0:
        return "0"
    return number(value, 6) if abs(value) >= 1e-4 else f"{value:.1e}".replace("-", "−")


def _finite(value: float) -> float | None:
    return value if abs(value) < float("inf") else None
