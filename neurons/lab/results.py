"""Scenarios played, as many at a time as there are cores, and what came of them in a file."""

from __future__ import annotations

import json
import logging
import multiprocessing
import signal
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import islice
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from neurons.errors import ConfigError, NetworkError
from neurons.lab.scenario import Cast, Member, Played, Setting, play
from neurons.lab.virtual import Corpus

Job = tuple[Cast, int]
"""A cast and a seed."""

_MEMORY = Path("/dev/shm")
"""Where Linux keeps files in memory: a scenario writes a hundred thousand small ones."""


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
    this process. Raises `NetworkError`."""
    memory = _MEMORY if _MEMORY.is_dir() else None
    with tempfile.TemporaryDirectory(prefix="windrow-lab-", dir=memory) as folder:
        if jobs == 1:
            torch.set_num_threads(1)
            for cast, seed in todo:
                yield cast, seed, play(cast, setting, seed, corpus, Path(folder))
        else:
            yield from _play_beside(todo, setting, corpus, jobs, Path(folder))


def _play_beside(
    todo: Sequence[Job], setting: Setting, corpus: Corpus, jobs: int, folder: Path
) -> Iterator[tuple[Cast, int, Played]]:
    # A fork would inherit torch's and numba's threads in whatever state they are.
    context = multiprocessing.get_context("spawn")
    players: list[BaseProcess] = []
    playing: dict[Connection, Job] = {}
    rest = iter(todo)
    try:
        for job in islice(rest, jobs):
            ours, theirs = context.Pipe()
            players.append(context.Process(target=_player, args=(theirs, setting, corpus, folder), daemon=True))
            players[-1].start()
            theirs.close()
            ours.send(job)
            playing[ours] = job
        while playing:
            for ready in wait(list(playing)):
                assert isinstance(ready, Connection)
                cast, seed = playing.pop(ready)
                try:
                    played = ready.recv()
                except EOFError as error:
                    raise NetworkError(f"the scenario of {cast} with seed {seed} broke off") from error
                for job in islice(rest, 1):
                    ready.send(job)
                    playing[ready] = job
                yield cast, seed, played
    finally:
        for player in players:
            player.terminate()
            player.join()


def _player(jobs: Connection, setting: Setting, corpus: Corpus, folder: Path) -> None:
    """A process that plays what it is told until it is ended, which is the parent's business alone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.basicConfig(level=logging.CRITICAL)
    torch.set_num_threads(1)
    while True:
        try:
            cast, seed = jobs.recv()
        except EOFError:
            return
        jobs.send(play(cast, setting, seed, corpus, folder))
