from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from neurons.leaderboard.view import PeerRow, View
from neurons.screens import Moment, drawn, printed
from neurons.status import NodeStatus


def row(uid: int, *history: str) -> PeerRow:
    return PeerRow(
        uid=uid,
        hotkey=f"hotkey-{uid}",
        rating=1.0,
        unique_work=0.5,
        sync=1.0,
        standing=1.0,
        final=0.5,
        weight=0.5,
        incentive=0.5,
        accepted=1,
        rejected={},
        last_reason=None,
        last_gain=None,
        on_list="gather",
        history=history,
    )


def view(*losses: float, rows: tuple[PeerRow, ...] = ()) -> View:
    """A run in which window 0 and so on have been judged, with these held-out losses before and after each."""
    judged = max(0, len(losses) - 1)
    return View(
        run_name="tiny",
        block=0,
        window=judged,
        blocks_to_close=1,
        window_blocks=8,
        window_seconds=8.0,
        windows=judged,
        newest=judged - 1 if judged else None,
        held_out_losses=tuple(enumerate(losses)),
        accepted=0,
        rejected={},
        rows=rows,
        contributors=(),
        leader=None,
        problems=(),
    )


@pytest.fixture
def start() -> Moment:
    """A network whose only miner has not joined yet."""
    status = NodeStatus("miner-1", "miner", 1, "hotkey-1", 1, -1, "joining", 0.0)
    return Moment(view(), (status,), {}, {"hotkey-1": "miner-1", "hotkey-2": "copycat"}, "waiting", 3.0, 8.0)


def lines(*moments: Moment) -> list[str]:
    file = io.StringIO()
    with printed(Console(file=file, width=80)) as show:
        for moment in moments:
            show(moment)
    return file.getvalue().splitlines()


def test_what_has_not_changed_is_said_once(start: Moment) -> None:
    assert lines(start, start, start) == ["[   3 s] waiting"]


def test_who_joins_is_named_once(start: Moment) -> None:
    joined = replace(start, statuses=(replace(start.statuses[0], roots={0: "root"}),))
    assert lines(start, joined, joined) == ["[   3 s] waiting", "[   3 s] joined: miner-1"]


def test_every_judged_window_has_a_line_of_its_own(start: Moment) -> None:
    one = view(7.0, 6.0, rows=(row(2, "duplicate"), row(1, "applied")))
    three = view(7.0, 6.0, 5.5, 5.25, rows=(row(2, "duplicate", "passed", "absent"), row(1, *["applied"] * 3)))
    assert lines(start, replace(start, view=one), replace(start, view=three))[1:] == [
        "[   3 s] window 0: held-out loss 7.000 -> 6.000; applied miner-1; rejected copycat duplicate",
        "[   3 s] window 1: held-out loss 6.000 -> 5.500; applied miner-1; rejected none",
        "[   3 s] window 2: held-out loss 5.500 -> 5.250; applied miner-1; rejected none",
    ]


def test_what_was_judged_before_is_no_news(start: Moment) -> None:
    assert lines(replace(start, view=view(7.0, 6.0, 5.0))) == ["[   3 s] waiting"]


def test_a_death_and_a_return_are_told(start: Moment) -> None:
    dead = replace(start, dead={"miner-1": "was killed by SIGKILL"})
    assert lines(start, dead, dead, start)[1:] == [
        "[   3 s] miner-1 was killed by SIGKILL",
        "[   3 s] miner-1 is running again",
    ]


def test_nothing_that_a_terminal_obeys_gets_through(start: Moment) -> None:
    assert "\x1b" not in "".join(lines(replace(start, dead={"evil\x1b[2J": "\x1b]0;title\x07"})))


def test_the_live_screen_shows_the_moment_and_leaves_the_terminal_as_it_was(start: Moment) -> None:
    file = io.StringIO()
    with drawn(Console(file=file, width=80, height=40, force_terminal=True)) as show:
        show(replace(start, message="all is well"))
    written = file.getvalue()
    assert "all is well" in written
    assert written.count("\x1b[?1049h") == written.count("\x1b[?1049l") == 1
    assert written.rindex("\x1b[?25h") > written.index("\x1b[?25l")


def test_a_live_screen_that_never_had_anything_to_show_writes_nothing() -> None:
    file = io.StringIO()
    with drawn(Console(file=file, width=80, height=40, force_terminal=True)):
        pass
    assert file.getvalue() == ""
