"""What `windrow up` shows while a network runs: a live screen in a terminal, lines anywhere else."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console
from rich.live import Live

from neurons.leaderboard.terminal import live_screen
from neurons.leaderboard.view import ABSENT, APPLIED, PASSED, View
from neurons.leaderboard.words import plain
from neurons.status import NodeStatus


@dataclass(frozen=True, slots=True)
class Moment:
    """The network now. `dead` says what happened to each process that ended by itself, `names` what a hotkey is
    called, `message` what goes on or is waited for, `seconds` how old this `windrow up` is."""

    view: View
    statuses: tuple[NodeStatus, ...]
    dead: Mapping[str, str]
    names: Mapping[str, str]
    message: str
    seconds: float
    seconds_to_close: float


Show = Callable[[Moment], None]


@contextmanager
def drawn(console: Console) -> Iterator[Show]:
    """The whole network at a glance, on a screen of its own that is gone at the end."""
    live = Live(console=console, auto_refresh=False, screen=True)

    def show(moment: Moment) -> None:
        if not live.is_started:  # not before there is something to show
            live.start()
        picture = live_screen(moment.view, moment.statuses, moment.dead, moment.message, moment.seconds_to_close)
        live.update(picture, refresh=True)

    try:
        yield show
    finally:
        live.stop()


@contextmanager
def printed(console: Console) -> Iterator[Show]:
    """A line for what goes on, for who joins, for each judged window and each death."""
    told = _Told()

    def show(moment: Moment) -> None:
        for line in told.news(moment):
            console.print(f"[{moment.seconds:4.0f} s] {line}", highlight=False, markup=False, soft_wrap=True)

    yield show


@dataclass(slots=True)
class _Told:
    """What has been printed already."""

    message: str = ""
    neurons: set[str] = field(default_factory=set)
    dead: set[str] = field(default_factory=set)
    window: int | None = None

    def news(self, moment: Moment) -> Iterator[str]:
        joined = {status.name for status in moment.statuses if status.roots} - self.neurons
        if joined:
            self.neurons |= joined
            yield f"joined: {plain(', '.join(sorted(joined)))}"
        if moment.message != self.message:
            self.message = moment.message
            yield plain(moment.message)
        for name in sorted(self.dead - moment.dead.keys()):
            self.dead.remove(name)
            yield plain(f"{name} is running again")
        for name in sorted(moment.dead.keys() - self.dead):
            self.dead.add(name)
            yield plain(f"{name} {moment.dead[name]}")
        judged = [window - 1 for window, _ in moment.view.held_out_losses[1:]]
        if self.window is None:  # what was judged before this `windrow up` is no news
            self.window = judged[-1] if judged else -1
        for place, window in enumerate(judged):
            if window > self.window:
                self.window = window
                yield _judged(moment, place, len(judged) - place)


def _judged(moment: Moment, place: int, age: int) -> str:
    """One judged window in a line. `place` is its index among all that were judged; `age` is 1 for the newest."""
    losses = moment.view.held_out_losses
    rows = sorted((row for row in moment.view.rows if len(row.history) >= age), key=lambda row: row.uid)
    marks = {plain(moment.names.get(row.hotkey, f"uid {row.uid}")): row.history[-age] for row in rows}
    applied = ", ".join(name for name, mark in marks.items() if mark == APPLIED) or "none"
    refused = ", ".join(f"{n} {mark}" for n, mark in marks.items() if mark not in (APPLIED, PASSED, ABSENT)) or "none"
    return (
        f"window {losses[place + 1][0] - 1}: held-out loss {losses[place][1]:.3f} -> {losses[place + 1][1]:.3f}; "
        f"applied {applied}; rejected {refused}"
    )
