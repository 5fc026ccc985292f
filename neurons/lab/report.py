"""The laboratory's command: play what is asked for, keep what was played, and show a row per attack."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from neurons.errors import ConfigError
from neurons.lab.attacks import ATTACKS, Attack, attack
from neurons.lab.scenario import Played, Setting, play
from neurons.lab.virtual import small_corpus

QUICK = ("zeros", "copy-last", "late-seal", "no-reveal", "not-canonical", "stale-1", "sign-flip")
"""The attacks of `--quick`: such as are surely caught within a few windows."""

ALONE = "alone"
"""What the honest miners' scenario without an attack is called among the results."""


@dataclass(frozen=True, slots=True)
class Row:
    """An attack over its seeds. `pay` and `damage` are means: the attackers' pay together as a share of an honest
    miner's, and the relative change of the held-out loss against the same honest miners alone (above 0: worse)."""

    attack: str
    pay: float | None
    damage: float
    reason: str | None
    first_rejected: int | None
    seeds: int


def lab(
    names: Sequence[str], setting: Setting, attackers: int | None, seeds: int, out: Path, console: Console
) -> list[Row]:
    """Play each attack (all of them, or the quick ones, when none is named) `seeds` times, and the same honest miners
    alone. What lies in `out` already, of the same setting, is not played again. Raises `ConfigError`."""
    torch.set_num_threads(1)
    chosen = [attack(name) for name in names or (QUICK if setting.quick else ATTACKS)]
    counts = {a.name: attackers or a.hotkeys for a in chosen}
    if setting.miners - max(counts.values()) < 2:
        raise ConfigError(
            f"{setting.miners} miners of which {max(counts.values())} attack leave fewer than two honest ones; "
            "raise --miners"
        )
    log = Log(out, setting)
    corpus = small_corpus()
    honest = {name: setting.miners - count for name, count in counts.items()}
    todo: list[tuple[Attack | None, int, int]] = [
        (which, count, seed)
        for seed in range(seeds)
        for which, count in [(None, n) for n in sorted(set(honest.values()))] + [(a, honest[a.name]) for a in chosen]
        if log.get(which, count, seed) is None
    ]
    with Progress(console=console) as progress:
        task = progress.add_task("", total=max(1, len(todo)) * setting.windows)
        for which, count, seed in todo:
            name = which.name if which else f"{count} honest miners alone"
            progress.update(task, description=f"{name}, seed {seed}")
            log.add(which, count, seed, play(which, count, setting, seed, corpus, lambda _: progress.advance(task)))
    return [log.row(a, honest[a.name], seeds) for a in chosen]


class Log:
    """Results in a file, a line each, written as they come."""

    def __init__(self, path: Path, setting: Setting) -> None:
        self.path, self.setting = path, setting
        self._played: dict[tuple[str, int, int], Played] = {}
        if not path.exists():
            return
        for number, line in enumerate(path.read_text().splitlines(), 1):
            try:
                entry = json.loads(line)
                if entry["setting"] == asdict(setting):
                    key = (entry["attack"], entry["honest"], entry["seed"])
                    self._played[key] = Played(**entry["played"])
            except (ValueError, KeyError, TypeError) as error:
                raise ConfigError(
                    f"{path}, line {number}, is no result of the laboratory; remove it or give another --out"
                ) from error

    def get(self, which: Attack | None, honest: int, seed: int) -> Played | None:
        """What came of this scenario, if it was played."""
        return self._played.get((which.name if which else ALONE, honest, seed))

    def add(self, which: Attack | None, honest: int, seed: int, played: Played) -> None:
        """Keep a result, on disk too."""
        name = which.name if which else ALONE
        self._played[name, honest, seed] = played
        entry = {"attack": name, "honest": honest, "seed": seed, "setting": asdict(self.setting)}
        with self.path.open("a") as file:
            file.write(json.dumps(entry | {"played": asdict(played)}) + "\n")

    def row(self, which: Attack, honest: int, seeds: int) -> Row:
        """The row of an attack of which all seeds were played."""
        pairs = [(self._played[which.name, honest, s], self._played[ALONE, honest, s]) for s in range(seeds)]
        pays = [played.pay for played, _ in pairs if played.pay is not None]
        first = [played.first_rejected for played, _ in pairs if played.first_rejected is not None]
        reasons = [played.reason for played, _ in pairs if played.reason is not None]
        return Row(
            attack=which.name,
            pay=statistics.fmean(pays) if pays else None,
            damage=statistics.fmean(p.held_out_loss / alone.held_out_loss - 1 for p, alone in pairs),
            reason=statistics.mode(reasons) if reasons else None,
            first_rejected=min(first, default=None),
            seeds=seeds,
        )


def table_of(rows: Sequence[Row]) -> Table:
    """The rows for a terminal."""
    table = Table("attack", "pay", "damage", "reason", "first rejected", "seeds")
    for row in rows:
        pay = "-" if row.pay is None else f"{row.pay:.1%}"
        first = "-" if row.first_rejected is None else f"window {row.first_rejected}"
        table.add_row(row.attack, pay, f"{row.damage:+.2%}", row.reason or "-", first, str(row.seeds))
    return table
