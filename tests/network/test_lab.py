"""The laboratory: attacks that are caught for certain earn nothing, and some would without what catches them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine, Mapping
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from neurons.errors import ConfigError
from neurons.lab import report
from neurons.lab.attacks import attack
from neurons.lab.report import QUICK, lab
from neurons.lab.scenario import Played, Setting, play
from neurons.lab.virtual import Corpus, small_corpus
from neurons.rounds import Round
from protocol.gauntlet.evaluation import Gain, UniqueWork

MOST_PAY = 0.05
QUICK_SETTING = Setting(miners=4, windows=8, quick=True)


@pytest.fixture(scope="module")
def text() -> Corpus:
    return small_corpus()


def played(name: str, text: Corpus) -> Played:
    return play(attack(name), QUICK_SETTING.miners - 1, QUICK_SETTING, 0, text, lambda window: None)


CAUGHT = {
    "zeros": ("duplicate", 1),
    "copy-last": ("duplicate", 1),
    "late-seal": ("late_seal", 0),
    "no-reveal": ("no_reveal", 0),
    "not-canonical": ("not_canonical", 0),
    "stale-1": ("stale_base", 1),
    "sign-flip": (None, None),
}
"""Reason of each attack that surely earns nothing, and the window of its first rejection; harm passes the checks."""


def test_what_is_surely_caught_earns_nothing(tmp_path: Path) -> None:
    rows = lab(tuple(CAUGHT), QUICK_SETTING, None, 1, tmp_path / "results", Console(quiet=True))
    assert {row.attack: (row.reason, row.first_rejected) for row in rows} == CAUGHT
    for row in rows:
        assert row.pay is not None, row
        assert row.pay <= MOST_PAY, row
        assert row.damage < 0.02, row


def test_a_seal_after_the_snapshot_would_pay(text: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    strict = Round.snapshot

    async def lenient(self: Round, end: Coroutine[Any, Any, object]) -> None:
        await end
        await asyncio.sleep(0.9)
        await strict(self, asyncio.sleep(1))

    monkeypatch.setattr(Round, "snapshot", lenient)
    assert (played("late-seal", text).pay or 0) > MOST_PAY


def test_harm_would_pay_if_nobody_looked_at_losses(text: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    # Two defences, each of which is enough: the rank by gain, and unique work.
    def equal(gains: Mapping[int, Gain], pages: int, errors: float) -> dict[int, tuple[int, ...]]:
        return dict.fromkeys(gains, (0,) * pages)

    monkeypatch.setattr("protocol.gauntlet.verdict.places_by_page", equal)
    monkeypatch.setattr("neurons.judge.unique_work_of_all", lambda own, _: dict.fromkeys(own, UniqueWork(1.0, 0.1)))
    assert (played("sign-flip", text).pay or 0) > MOST_PAY


def test_a_stopped_laboratory_goes_on_and_refuses_a_file_of_something_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    def fake(which: Any, honest: int, *rest: Any) -> Played:
        calls.append(which.name if which else "alone")
        if len(calls) == 2:
            raise KeyboardInterrupt
        return Played(None if which is None else 0.5, 4.0 if which is None else 5.0, None, None)

    monkeypatch.setattr(report, "play", fake)
    out = tmp_path / "results"
    arguments = (("zeros",), QUICK_SETTING, None, 2, out, Console(quiet=True))
    with pytest.raises(KeyboardInterrupt):
        lab(*arguments)
    assert len(out.read_text().splitlines()) == 1
    [row] = lab(*arguments)
    assert (row.pay, row.damage, row.seeds) == (0.5, 0.25, 2)
    assert calls == ["alone", "zeros", "zeros", "alone", "zeros"]
    assert [json.loads(line)["attack"] for line in out.read_text().splitlines()] == ["alone", "zeros", "alone", "zeros"]
    out.write_text("{}\n")
    with pytest.raises(ConfigError, match="line 1, is no result of the laboratory"):
        lab(*arguments)


def test_attacks_that_are_unknown_or_leave_nobody_honest_are_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no attack 'burglar'"):
        lab(("burglar",), QUICK_SETTING, None, 1, tmp_path / "results", Console(quiet=True))
    with pytest.raises(ConfigError, match="raise --miners"):
        lab(("shared-work",), QUICK_SETTING, None, 1, tmp_path / "results", Console(quiet=True))


def test_the_quick_laboratory_plays_what_is_surely_caught() -> None:
    assert set(QUICK) == set(CAUGHT)
