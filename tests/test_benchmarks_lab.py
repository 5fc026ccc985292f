"""Tables and pictures of the laboratory's results: what is shown, and what is left out. Nothing is played."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import lab
from neurons.lab.report import jobs_of, plan
from neurons.lab.results import Log
from neurons.lab.scenario import Cast, Member, Played, Setting

SETTING = Setting(miners=12, windows=2, quick=False)


def _played(cast: Cast, seed: int) -> Played:
    """Honest miners at full speed earn 1 in all, slow ones half of that, cheats a tenth; each cheat was late once."""
    honest, cheats = [], []
    for owner, role in enumerate(cast.roles()):
        for _ in range(role.hotkeys):
            if owner >= cast.honest:
                cheats.append(Member(role.name, owner, (0.1, 0.0), {"late_seal": (1,)}, steps=6))
            else:
                pay = 1.0 if role.name == "miner" else 0.5
                honest.append(Member(role.name, owner, (pay, 0.0), {}, steps=12))
    return Played(tuple(honest), tuple(cheats), (5.0, 4.04 + seed / 50 if cheats else 4.0), answer=0.25)


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Two attacks and a mixture with two seeds, and a third attack with one."""
    path = tmp_path / "results.jsonl"
    log = Log(path, SETTING)
    for of in plan(("zeros", "backdoor"), (0.4,), SETTING, 2) + plan(("noise",), (), SETTING, 1):
        for cast, seed in jobs_of(of):
            if (cast, seed) not in log:
                log.add(cast, seed, _played(cast, seed))
    return path


def _run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["lab", *arguments, "--windows", "2", "--seeds", "2"])
    lab.main()


def test_tables_show_complete_rows_and_name_the_others(
    results: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _run(monkeypatch, str(results))
    said = capsys.readouterr()
    assert "| `zeros` | 10.0% | 50% | +1.25% (+1.0% to +1.5%) | 50% | `late_seal` | 1 |" in said.out
    assert "After the trigger of `backdoor`" in said.out
    assert "| 40 % | +1.25% (+1.0% to +1.5%) | 10.0% |" in said.out
    assert "| `slow-miner` |" in said.out
    assert "noise" not in said.out.split("| 40 %")[0]
    assert "noise" in said.err


def test_mixtures_may_be_of_more_windows_than_attacks(
    results: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    longer = Log(results, replace(SETTING, windows=5))
    for cast, seed in jobs_of(plan((), (0.4,), SETTING, 1)[-1]):
        longer.add(cast, seed, _played(cast, seed + 10))
    monkeypatch.setattr(sys, "argv", ["lab", str(results), "--windows", "2", "--mix-windows", "5", "--seeds", "1"])
    lab.main()
    said = capsys.readouterr().out
    assert said.startswith("12 miners, 2 windows (5 for mixtures), 1 seed.")
    assert "| `zeros` | 10.0% | 50% | +1.00% |" in said
    assert "| 40 % | +6.00% |" in said


def test_tables_are_written_between_the_marks(
    results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{lab.BEGIN}\nold\n{lab.END}\nafter\n")
    _run(monkeypatch, str(results), "--write", str(page))
    text = page.read_text()
    assert text.startswith(f"before\n{lab.BEGIN}\n12 miners, 2 windows, 2 seeds")
    assert text.endswith(f"{lab.END}\nafter\n")
    assert "old" not in text
    assert capsys.readouterr().out == ""
    page.write_text("no marks")
    with pytest.raises(SystemExit, match="to write between"):
        _run(monkeypatch, str(results), "--write", str(page))


def test_results_of_another_setting_show_nothing(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit, match="nothing to show"):
        _run(monkeypatch, str(results), "--miners", "11")


def test_the_page_has_the_marks() -> None:
    text = (Path(__file__).parent.parent / "docs" / "security.md").read_text()
    assert text.count(lab.BEGIN) == text.count(lab.END) == 1
