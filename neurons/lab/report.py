"""The laboratory's command: play what is asked for, keep what was played, show a row for each attack and mixture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from neurons.errors import ConfigError
from neurons.lab.attacks import ATTACKS, Role, attack
from neurons.lab.results import Job, Log, play_all
from neurons.lab.rows import Row, row_of
from neurons.lab.scenario import Cast, Setting
from neurons.lab.virtual import small_corpus

QUICK = (
    "zeros",
    "scale",
    "sign-flip",
    "copy-last",
    "random-pool",
    "unsynced",
    "stale-1",
    "late-seal",
    "no-reveal",
    "not-canonical",
)
"""The attacks of `--quick`: such as are surely caught within a few windows."""

MIXED = (
    "zeros",
    "noise",
    "sign-flip",
    "scale",
    "copy-last",
    "copy-ciphertext",
    "copy-jittered",
    "less-work",
    "few-pages",
    "random-pool",
    "private-corpus",
    "backdoor",
    "outdated",
    "stale-1",
    "late-seal",
)
"""What the cheats of a mixture are drawn from: such as are caught at once, and such as are hard to tell."""

_OWNERS = 3
"""So many owners attack in a scenario, if they have one hotkey each: enough that chance does not decide what they are
paid, and few enough that the others are a network."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A row to be: its name, and the cast of each seed."""

    name: str
    casts: tuple[Cast, ...]


def plan(names: Sequence[str], shares: Sequence[float], setting: Setting, seeds: int) -> list[Plan]:
    """The rows for these attacks (all of them, or the quick ones, when none is named) and mixtures with these shares of
    cheats. Raises `ConfigError`."""
    chosen = [attack(name) for name in names or (QUICK if setting.quick else ATTACKS)]
    plans = [Plan(role.name, (_cast_of(role, setting),) * seeds) for role in chosen]
    mixtures = [Plan(f"mix-{100 * s:.0f}", tuple(mixture(s, setting, n) for n in range(seeds))) for s in shares]
    return plans + mixtures


def shares_of(text: str) -> list[float]:
    """The shares of cheats in a list like `0.1,0.4`; `ConfigError` for anything else."""
    try:
        return [float(share) for share in text.split(",") if share.strip()]
    except ValueError as error:
        raise ConfigError(f"--mix: {text!r} is no list of shares; give one like 0.1,0.4") from error


def _cast_of(role: Role, setting: Setting) -> Cast:
    owners = 1 if setting.quick or role.hotkeys > 1 else _OWNERS
    return _checked(Cast(setting.miners - owners * role.hotkeys, (role.name,) * owners), setting)


def mixture(share: float, setting: Setting, seed: int) -> Cast:
    """A network of which this share cheats. The cheats of a larger share are those of a smaller one and more."""
    count = round(min(share, 1.0) * setting.miners)
    if not 0 < count <= len(MIXED):
        raise ConfigError(f"--mix: a share of {share:g} of {setting.miners} miners are {count}; give 1 to {len(MIXED)}")
    order = np.random.default_rng(seed).permutation(len(MIXED))
    return _checked(Cast(setting.miners - count, tuple(MIXED[i] for i in order[:count])), setting)


def _checked(cast: Cast, setting: Setting) -> Cast:
    if cast.honest < 2:
        raise ConfigError(
            f"{setting.miners} miners of which {setting.miners - cast.honest} attack leave fewer than two honest ones; "
            "raise --miners"
        )
    return cast


def lab(plans: Sequence[Plan], setting: Setting, jobs: int, out: Path, console: Console) -> list[Row]:
    """Play the scenarios of these rows, and of the same honest miners alone, `jobs` at a time, all with one seed before
    the next. What lies in `out` already, of the same setting, is not played again. Raises `ConfigError`."""
    log = Log(out, setting)
    wanted = dict.fromkeys(job for of in plans for job in jobs_of(of))
    todo = sorted((job for job in wanted if job not in log), key=lambda job: job[1])
    with Progress(console=console) as progress:
        task = progress.add_task("scenarios", total=len(wanted), completed=len(wanted) - len(todo))
        for cast, seed, played in play_all(todo, setting, small_corpus(), jobs):
            log.add(cast, seed, played)
            progress.advance(task)
    return rows(plans, log)


def jobs_of(of: Plan) -> list[Job]:
    """What must be played for a row: each cast, and its honest miners alone."""
    return [job for seed, cast in enumerate(of.casts) for job in ((cast.alone, seed), (cast, seed))]


def rows(plans: Sequence[Plan], log: Log) -> list[Row]:
    """The rows of plans of which everything was played."""
    return [
        row_of(of.name, [(log.get(cast, seed), log.get(cast.alone, seed)) for seed, cast in enumerate(of.casts)])
        for of in plans
    ]


def table_of(found: Sequence[Row]) -> Table:
    """The rows for a terminal."""
    table = Table("attack", "pay", "compute", "damage", "reason", "rejected", "first", "seeds")
    for row in found:
        pay = "-" if row.pay is None else f"{row.pay:.1%}"
        first = "-" if row.first_rejected is None else f"window {row.first_rejected}"
        rejected = f"{row.rejected:.0%}"
        compute = f"{row.compute:.0%}"
        table.add_row(
            row.attack, pay, compute, f"{row.damage:+.2%}", row.reason or "-", rejected, first, str(row.seeds)
        )
    return table
