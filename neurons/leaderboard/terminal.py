"""The screens in a terminal: leaderboard, live screen and summary. Colour is never the only sign."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from neurons.leaderboard.chart import bar, line_chart
from neurons.leaderboard.view import ABSENT, APPLIED, HISTORY_WINDOWS, PASSED, PeerRow, View
from neurons.leaderboard.words import digits8, number, percent, plain, plural, short
from neurons.status import NodeStatus

_WIDE = 100
"""Columns from which chart and neurons stand side by side and the leaderboard shows everything."""

_MARKS = {APPLIED: ("●", "green"), PASSED: ("○", "cyan"), ABSENT: ("·", "bright_black")}
_REJECTED = ("✕", "red")
_FRAME = "bright_black"
_ACCENT = "bold cyan"


def leaderboard_table(view: View, roles: Mapping[str, str] | None = None) -> RenderableType:
    """All peers, best paid first. `roles` gives a hotkey a name to show in place of its address."""
    return _Leaderboard(view, dict(roles or {}))


def live_screen(
    view: View | None,
    statuses: Sequence[NodeStatus],
    dead: Mapping[str, str],
    message: str,
    seconds_to_close: float | None,
) -> RenderableType:
    """The network now. `view` is None while there is no chain yet; `dead` says what happened to each process that
    ended by itself; `message` is what `windrow up` does or waits for."""
    return _LiveScreen(view, tuple(statuses), dict(dead), message, seconds_to_close)


def summary(
    view: View, roots: Mapping[str, str], seconds: float, folder: Path, roles: Mapping[str, str] | None = None
) -> RenderableType:
    """The end of `windrow up`: what was learned, who took part, that all agree, and where to look next. `roots` is
    the root each neuron holds for the same window."""
    first, last = view.held_out_ends()
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style=_ACCENT, justify="right", no_wrap=True)
    facts.add_column(overflow="fold")
    if first is not None and last is not None:
        facts.add_row("held-out loss", _fall(first, last))
    facts.add_row("windows", Text(f"{view.windows} judged in {number(seconds, 0)} s"))
    facts.add_row("accepted", Text(plural(view.accepted, "contribution")))
    facts.add_row("rejected", _reasons(view.rejected))
    facts.add_row("state root", _agreement(roots))
    for problem in view.problems:
        facts.add_row("problem", Text(plain(problem), style="yellow"))
    where = shlex.quote(str(folder))
    explained = view.rows[-1].uid if view.rows else 0
    look = Text.assemble(("where to look next", _ACCENT), overflow="fold")
    for command, what in (
        (f"windrow leaderboard --dir {where}", "the same table, from chain and buckets alone"),
        (f"windrow explain {explained} --dir {where}", f"why uid {explained} got its score"),
        (f"windrow up --dir {where}", "go on from here"),
        (f"tail {where}/nodes/*/log", "what each process said"),
    ):
        look.append(f"\n{command}", style="bold").append(f"  # {what}", style="bright_black")
    return Group(
        Panel(facts, title=_title("summary", view.run_name), title_align="left", border_style=_FRAME, box=box.ROUNDED),
        leaderboard_table(view, roles),
        look,
    )


@dataclass(frozen=True, slots=True)
class _Leaderboard:
    view: View
    roles: Mapping[str, str]
    limit: int | None = None

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        fit = _Fit.of(options.max_width)
        table = Table.grid(expand=True, padding=(0, fit.gap, 0, 0))
        table.add_column(justify="right", style="bold", no_wrap=True, min_width=3)
        table.add_column(no_wrap=True, overflow="ellipsis", ratio=1, min_width=11)
        table.add_column(no_wrap=True, justify="right", min_width=fit.marks)
        for _ in fit.scores:
            table.add_column(justify="right", no_wrap=True)
        table.add_column(justify="right", no_wrap=True, min_width=fit.bars + 7)
        head = ("uid", "peer", f"last {fit.marks}", *fit.scores, "incentive")
        table.add_row(*(Text(name, style="bright_black") for name in head))
        rows = self.view.rows if self.limit is None else self.view.rows[: self.limit]
        best = max((row.incentive for row in self.view.rows), default=0.0)
        for row in rows:
            table.add_row(*self._cells(row, fit, best))
        more = len(self.view.rows) - len(rows)
        if more:
            table.add_row("", Text(f"and {more} more", style="bright_black"))
        body: RenderableType = table if self.view.rows else Text("nobody has been judged yet", style="bright_black")
        yield Panel(
            body,
            title=_title("leaderboard", f"window {self.view.newest}" if self.view.newest is not None else ""),
            title_align="left",
            subtitle=_legend(),
            subtitle_align="right",
            border_style=_FRAME,
            box=box.ROUNDED,
            padding=(0, 1),
        )

    def _cells(self, row: PeerRow, fit: _Fit, best: float) -> list[RenderableType]:
        values = {
            "applied": Text(str(row.accepted), style="bright_black"),
            "rating": _score(row.rating, row.rating > 0),
            "unique": _score(row.unique_work, row.unique_work > 0),
            "sync": _score(row.sync, row.sync >= 1),
            "standing": _score(row.standing, row.standing >= 1),
            "final": Text(number(row.final), style="bold" if row.final > 0 else "bright_black"),
            "weight": Text(percent(row.weight), style="" if row.weight > 0 else "bright_black"),
        }
        paid = Text.assemble(
            (bar(row.incentive / best if best > 0 else 0.0, fit.bars), "green"),
            (f"{percent(row.incentive):>7}", "bold" if row.incentive > 0 else "bright_black"),
        )
        name = self.roles.get(row.hotkey, short(row.hotkey))
        return [
            str(row.uid),
            Text(plain(name)),
            _strip(row.history, fit.marks),
            *(values[score] for score in fit.scores),
            paid,
        ]


@dataclass(frozen=True, slots=True)
class _Fit:
    """What of the leaderboard a terminal has room for: windows in the strip, columns, cells of a bar, gaps."""

    marks: int
    scores: tuple[str, ...]
    bars: int
    gap: int

    @classmethod
    def of(cls, width: int) -> _Fit:
        """The most that `width` columns can show; 80 are enough for everything but the rarely needed."""
        scores = ("rating", "unique", "sync", "standing", "final", "weight")
        if width >= 132:
            return cls(HISTORY_WINDOWS, ("applied", *scores), 12, 2)
        if width >= 112:
            return cls(16, ("applied", *scores), 8, 2)
        if width >= _WIDE:
            return cls(12, scores, 7, 2)
        return cls(12, tuple(name for name in scores if name != "standing"), 6, 1)


@dataclass(frozen=True, slots=True)
class _LiveScreen:
    view: View | None
    statuses: tuple[NodeStatus, ...]
    dead: Mapping[str, str]
    message: str
    seconds_to_close: float | None

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width, wide = options.max_width, options.max_width >= _WIDE
        yield _clock_line(self.view, self.seconds_to_close, width)
        yield Text(f" {plain(self.message)}", style="italic bright_black", no_wrap=True, overflow="ellipsis")
        names = {status.name for status in self.statuses} | set(self.dead)
        height = max(7, len(names) + 3) if wide else 7
        chart_width = width * 3 // 8 if wide else width
        chart = _loss_panel(self.view, chart_width, height)
        neurons = _neuron_panel(self.statuses, self.dead, height if wide else None)
        if wide:
            row = Table.grid(expand=True)
            row.add_column(width=chart_width)
            row.add_column(ratio=1)
            row.add_row(chart, neurons)
            yield row
        else:
            yield chart
        if self.view is not None:
            roles = {status.hotkey: status.name for status in self.statuses}
            yield _Leaderboard(self.view, roles, self._limit(console, height))
        if not wide:
            yield neurons
        for problem in self.view.problems[-2:] if self.view else ():
            yield Text(f" ! {plain(problem)}", style="yellow", no_wrap=True, overflow="ellipsis")

    def _limit(self, console: Console, above: int) -> int | None:
        """Rows of the leaderboard that fit on the screen with everything else; all where nothing can scroll away."""
        if not console.is_terminal:
            return None
        below = 0 if console.width >= _WIDE else len({s.name for s in self.statuses} | set(self.dead)) + 3
        return max(3, console.size.height - above - below - 7)


def _clock_line(view: View | None, seconds: float | None, width: int) -> RenderableType:
    """Run, window, and how much of the window is left."""
    line = Table.grid(expand=True, padding=(0, 1))
    line.add_column(no_wrap=True)
    line.add_column(ratio=1)
    line.add_column(no_wrap=True, justify="right")
    if view is None:
        line.add_row(Text.assemble(" ", ("windrow", _ACCENT)), "", "")
        return line
    length = view.window_seconds
    left = view.blocks_to_close * length / max(1, view.window_blocks) if seconds is None else max(0.0, seconds)
    done = 1.0 - left / length if length > 0 else 0.0
    head = Text.assemble(" ", ("windrow", _ACCENT), f" {view.run_name}  ", (f"window {view.window}", "bold"))
    left_text = f"{number(left, 0)} s"
    tail = Text.assemble(("closes in ".rjust(16 - len(left_text)), "bright_black"), (left_text, "bold"), " ")
    if width >= _WIDE:
        totals = f"  {view.accepted} accepted · {sum(view.rejected.values())} rejected "
        tail.append(totals, style="bright_black")
    line.add_row(head, _Progress(done), tail)
    return line


@dataclass(frozen=True, slots=True)
class _Progress:
    """A thin bar as wide as there is room; the part that is done is heavy, so it shows without colour."""

    done: float

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = options.max_width
        heavy = round(min(1.0, max(0.0, self.done)) * width)
        yield Text.assemble(("━" * heavy, "cyan"), ("─" * (width - heavy), _FRAME))


def _loss_panel(view: View | None, width: int, height: int) -> Panel:
    """Held-out loss over windows, with its scale. `height` is that of the whole panel, frame and x axis included."""
    losses = view.held_out_losses if view else ()
    body: RenderableType
    if len(losses) < 2:
        body = Text("\nthe first point comes when a window has been judged", style="bright_black", justify="center")
    else:
        body = _loss_chart(losses, width - 4, height - 3)
    subtitle = _fall(losses[0][1], losses[-1][1]) if len(losses) > 1 else None
    return Panel(
        body,
        title=_title("held-out loss", "nats per token"),
        title_align="left",
        subtitle=subtitle,
        subtitle_align="right",
        border_style=_FRAME,
        box=box.ROUNDED,
        height=height,
    )


def _loss_chart(losses: Sequence[tuple[int, float]], width: int, height: int) -> Text:
    values = [loss for _, loss in losses]
    labels = [""] * height
    labels[0], labels[-1] = number(max(values)), number(min(values))
    if height >= 5:
        labels[height // 2] = number(max(values) + (min(values) - max(values)) * (height // 2) / (height - 1))
    margin = max(len(label) for label in labels)
    chart = Text(no_wrap=True)
    for label, line in zip(labels, line_chart(losses, width - margin - 2, height), strict=True):
        chart.append(f"{label:>{margin}} ", style="bright_black")
        chart.append("┤" if label else "│", style=_FRAME)
        chart.append(f"{line}\n", style="bold green")
    first, last = str(losses[0][0]), str(losses[-1][0])
    gap = width - margin - 2 - len(first) - len(last)
    chart.append(" " * (margin + 2) + first + "window".center(gap) + last, style="bright_black")
    return chart


def _neuron_panel(statuses: Sequence[NodeStatus], dead: Mapping[str, str], height: int | None) -> Panel:
    table = Table.grid(expand=True, padding=(0, 1))
    table.add_column(no_wrap=True, style="bold", overflow="ellipsis", max_width=14)
    table.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
    table.add_column(no_wrap=True, justify="right")
    table.add_column(no_wrap=True, justify="right")
    odd = _disagreeing(statuses)
    for status in statuses:
        if status.name in dead:
            continue
        loss = "" if status.loss is None else f"loss {number(status.loss)}"
        table.add_row(plain(status.name), plain(status.activity), Text(loss, "bright_black"), _root_of(status, odd))
    lines: list[RenderableType] = [table]
    for name, what in dead.items():
        died = Text.assemble((f"✕ {plain(name)}", "bold red"), (f" {plain(what)}", "red"))
        died.no_wrap, died.overflow = True, "ellipsis"
        lines.append(died)
    if not statuses and not dead:
        lines.append(Text("no process is running yet", style="bright_black"))
    agree = Text(f"≠ roots differ: {plain(', '.join(sorted(odd)))}", style="bold red") if odd else _common(statuses)
    return Panel(
        Group(*lines),
        title=_title("neurons", "what each does, root of θ"),
        title_align="left",
        subtitle=agree,
        subtitle_align="right",
        border_style=_FRAME,
        box=box.ROUNDED,
        height=height,
    )


def _common(statuses: Sequence[NodeStatus]) -> Text:
    """The newest root that every neuron knows, which is the same for all."""
    known = [status.roots for status in statuses if status.roots]
    shared = set.intersection(*(set(roots) for roots in known)) if known else set()
    if not shared:
        return Text("")
    root = digits8(known[0][max(shared)])
    return Text(f"= all {len(known)} hold {root} at window {max(shared)}", style="green")


def _root_of(status: NodeStatus, odd: frozenset[str]) -> Text:
    if not status.roots:
        return Text("–", style="bright_black")
    window = max(status.roots)
    sign, style = ("≠", "bold red") if status.name in odd else ("=", "green")
    return Text.assemble((f"{sign} ", style), (digits8(status.roots[window]), style), (f" @{window}", "bright_black"))


def _disagreeing(statuses: Sequence[NodeStatus]) -> frozenset[str]:
    """Neurons whose root of some window is not the one most others hold; all of them where no root has a majority."""
    odd: set[str] = set()
    for window in {window for status in statuses for window in status.roots}:
        held = {status.name: status.roots[window] for status in statuses if window in status.roots}
        root, count = Counter(held.values()).most_common(1)[0]
        odd |= {name for name, other in held.items() if other != root or 2 * count <= len(held) > 1}
    return frozenset(odd)


def _agreement(roots: Mapping[str, str]) -> Text:
    """One line when all hold the same root, else one for each neuron."""
    if not roots:
        return Text("no neuron has one yet", style="bright_black")
    distinct = set(roots.values())
    if len(distinct) == 1:
        who = f"all {len(roots)} neurons hold" if len(roots) > 1 else f"{plain(next(iter(roots)))} holds"
        return Text.assemble(("= ", "green"), f"{who} root ", (distinct.pop(), "green"))
    lines = Text("≠ the roots differ: this must never happen", style="bold red")
    for name, root in roots.items():
        lines.append(f"\n{plain(name)}  {root}")
    return lines


def _fall(first: float, last: float) -> Text:
    change = percent((last - first) / first, signed=True) if first else ""
    return Text.assemble(
        f"{number(first, 3)} → ",
        (number(last, 3), "bold"),
        " nats  ",
        (change, "bold green" if last < first else "red"),
    )


def _reasons(rejected: Mapping[str, int]) -> Text:
    if not rejected:
        return Text("none")
    parts = ", ".join(f"{reason} {count}" for reason, count in rejected.items())
    return Text(f"{sum(rejected.values())}: {parts}")


def _strip(history: Sequence[str], width: int) -> Text:
    """One mark a window, newest at the right."""
    strip = Text(no_wrap=True)
    for mark in history[-width:]:
        strip.append(*_MARKS.get(mark, _REJECTED))
    return strip


def _score(value: float, good: bool) -> Text:
    return Text(number(value), style="" if good else "yellow" if value > 0 else "bright_black")


def _legend() -> Text:
    legend = Text()
    for name, (mark, style) in {**_MARKS, "rejected": _REJECTED}.items():
        legend.append(f"{'  ' if legend else ''}{mark}", style=style)
        legend.append(f" {name}", style="bright_black")
    return legend


def _title(name: str, more: str = "") -> Text:
    title = Text.assemble((name, _ACCENT))
    if more:
        title.append(f" · {plain(more)}", style=_FRAME)
    return title
