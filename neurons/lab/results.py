"""Scenarios played, as many at a time as there are cores, and what came of them in a file."""

from __future__ import annotations

import json
import logging
import multiprocessing
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from neurons.errors import ConfigError
from neurons.lab.scenario import Cast, Member, Played, Setting, play
from neurons.lab.virtual import Corpus

Job = tuple[Cast, int]
"""A cast and a seed."""


class Log:
    """Results of one setting in a file that may hold others: a line each, written as they come."""

    def __init__(self, path: Path, setting: Setting) -> None:
        """Raises `ConfigError` for a file of something else."""
        self.path, self.setting = path, setting
        self._played: dict[Job, Played] = {}
        if not path.exists():
            return
        for number, line in enumerate(path.read_text().splitlines(), 1):
            try:
                entry = json.loads(line)
                if entry["setting"] == asdict(setting):
                    cast = Cast(entry["honest"], tuple(entry["attackers"]))
                    self._played[cast, entry["seed"]] = _played(entry["played"])
            except (ValueError, KeyError, TypeError) as error:
                raise ConfigError(
                    f"{path}, line {number}, is no result of the laboratory; remove it or give another --out"
                ) from error

    def __contains__(self, job: Job) -> bool:
        """Whether this was played."""
        return job in self._played

    def get(self, cast: Cast, seed: int) -> Played:
        """What came of a scenario that was played."""
        return self._played[cast, seed]

    def add(self, cast: Cast, seed: int, played: Played) -> None:
        """Keep a result, on disk too."""
        self._played[cast, seed] = played
        entry = asdict(cast) | {"seed": seed, "setting": asdict(self.setting), "played": asdict(played)}
        with self.path.open("a") as file:
            file.write(json.dumps(entry) + "\n")


def _played(fields: dict[str, Any]) -> Played:
    honest, cheats = (tuple(_member(member) for member in fields[side]) for side in ("honest", "cheats"))
    return Played(**fields | {"honest": honest, "cheats": cheats, "held_out": tuple(fields["held_out"])})


def _member(fields: dict[str, Any]) -> Member:
    rejected = {reason: tuple(windows) for reason, windows in fields["rejected"].items()}
    return Member(**fields | {"pay": tuple(fields["pay"]), "rejected": rejected})


def play_all(todo: Sequence[Job], setting: Setting, corpus: Corpus, jobs: int) -> Iterator[tuple[Cast, int, Played]]:
    """Play each, `jobs` at a time, one core each; in the order in which they end. With one job all of it happens in
    this process."""
    if jobs == 1:
        torch.set_num_threads(1)
        for cast, seed in todo:
            yield cast, seed, play(cast, setting, seed, corpus)
        return
    # A fork would inherit torch's and numba's threads in whatever state they are.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, context, initializer=_prepare) as pool:
        try:
            playing = {pool.submit(play, cast, setting, seed, corpus): (cast, seed) for cast, seed in todo}
            for future in as_completed(playing):
                yield *playing[future], future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _prepare() -> None:
    """In a process that plays: one thread, no word, and an end without a trace when Ctrl-C is pressed."""
    torch.set_num_threads(1)
    logging.basicConfig(level=logging.CRITICAL)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
