"""Playing a plan: real processes that are killed and started again, until the weather clears and all must agree."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import shutil
import signal
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

from neurons import founding, nursery
from neurons.folder import Places
from neurons.nursery import Child
from neurons.status import NodeStatus, read_status
from protocol.chain.local import LocalChain
from protocol.run import Run
from protocol.window import window_of
from tests.campaign.checks import Verdict, look
from tests.campaign.faults import NOTES_FILE
from tests.campaign.plan import BLOCK_SECONDS, QUIET_SECONDS, TICKER, Event, Plan
from tests.campaign.processes import CALM_FILE, neuron, tick

_STEP_SECONDS = 0.05
_LEAST_DOWN_SECONDS = 0.2
"""A process that was killed by itself, in the middle of a write, comes back after this."""

_CALM_WINDOWS = 2
"""So many windows after the weather has cleared everybody must be there."""

_PATIENCE_SECONDS = 240.0

_KILLED = -signal.SIGKILL
_STORE_UNUSABLE = 9
"""What a neuron ends with, and a sentence, that is started where nothing can be written: it is started again."""

_ENDED_ON_REQUEST = (0, -signal.SIGTERM)


@dataclass(slots=True)
class Outcome:
    """What became of one network. `kills` counts by role, `faults` by kind; `failures` are sentences."""

    plan: Plan
    folder: Path
    windows: int = 0
    kills: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    payloads: int = 0
    scores: int = 0
    seconds: float = 0.0
    failures: list[str] = field(default_factory=list)


def found(context: ForkServerContext, plan: Plan, folder: Path, dataset: Path) -> str:
    """Make the network in `folder`; its dataset, which is the same for all, is copied. Returns the dataset's digest."""
    order = founding.Plan(plan.members, plan.table, BLOCK_SECONDS, None, "directory")
    folder.mkdir(parents=True)
    shutil.copytree(dataset, Places(folder).dataset)
    digest = (dataset.parent / "digest").read_text()
    with contextlib.closing(nursery.Call(context, founding.write_rest, folder, order, digest)) as call:
        call.result(lambda _: None)
    for name, _ in plan.members:
        Places(folder).node(name).mkdir(parents=True)
    return digest


class Stage:
    """A network of processes. `play` is the whole of it."""

    def __init__(self, context: ForkServerContext, plan: Plan, folder: Path) -> None:
        self.context, self.plan, self.folder = context, plan, folder
        self.outcome = Outcome(plan, folder)
        self.roles = dict(plan.members)
        self.children: dict[str, Child] = {}
        self.starts: Counter[str] = Counter()
        self.due: dict[str, float] = {}
        """When a process that is down comes back."""
        self.pids: list[int] = []
        self.full_until: dict[str, float] = {}
        self.limited: dict[str, tuple[int, int]] = {}
        self.stalled_until: float | None = None
        self.chain = LocalChain.open(Places(folder).chain)

    def play(self) -> Outcome:
        """Start everybody, let everything happen, wait until it is calm and they agree, end them, and look."""
        began = time.monotonic()
        try:
            with self._running():
                self._weather(began)
                self._calm()
        finally:
            asyncio.run(self.chain.close())
        self._look()
        self.outcome.seconds = time.monotonic() - began
        return self.outcome

    # --- what happens -------------------------------------------------------------------------------------

    def _weather(self, began: float) -> None:
        events = list(self.plan.events)
        while (now := time.monotonic() - began) < QUIET_SECONDS + self.plan.seconds:
            while events and events[0].at <= now:
                self._happen(events.pop(0))
            self._attend()
            time.sleep(_STEP_SECONDS)

    def _happen(self, event: Event) -> None:
        now = time.monotonic()
        if event.kind == "kill":
            self._kill(event.target, now + event.seconds)
        elif event.kind == "stall":
            self._signal(TICKER, signal.SIGSTOP)
            self.stalled_until = now + event.seconds
            self.outcome.faults["stalled chain"] += 1
        elif event.kind == "jump":
            for _ in range(event.blocks):
                self.chain.produce_block(time.time())
            self.outcome.faults["jumping chain"] += 1
        else:
            self.full_until[event.target] = now + event.seconds
            self.outcome.faults["full disk"] += 1

    def _attend(self) -> None:
        """Note who has died, start who is due, fill and empty disks, let the chain go on."""
        now = time.monotonic()
        for name, child in list(self.children.items()):
            code = child.process.exitcode
            if code is None:
                continue
            self._bury(name)
            if code == _KILLED:
                self.outcome.kills[self._role(name)] += 1
            elif code != _STORE_UNUSABLE or name not in self.full_until:
                self.outcome.failures.append(f"{name} {nursery.ending(code)}: {self._last_words(name)}")
            self.due.setdefault(name, now + _LEAST_DOWN_SECONDS)
        for name in [name for name, due in self.due.items() if due <= now]:
            del self.due[name]
            self._start(name)
        for name, until in list(self.full_until.items()):
            if until > now:
                self._limit(name, 0)
            else:
                del self.full_until[name]
                self._limit(name, resource.RLIM_INFINITY)
        if self.stalled_until is not None and self.stalled_until <= now:
            self._signal(TICKER, signal.SIGCONT)
            self.stalled_until = None

    def _calm(self) -> None:
        """The weather clears; after some windows everybody must be where the chain is."""
        (self.folder / CALM_FILE).touch()
        self.full_until = dict.fromkeys(self.full_until, 0.0)
        self.stalled_until = None if self.stalled_until is None else 0.0
        self.due = dict.fromkeys(self.due, 0.0)
        run = self.run
        target = window_of(asyncio.run(self.chain.head()).number, run.time) + _CALM_WINDOWS
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while time.monotonic() < deadline:
            self._attend()
            if all(status is not None and status.window >= target for status in self._statuses().values()):
                self.outcome.windows = target
                return
            time.sleep(_STEP_SECONDS)
        for name, status in self._statuses().items():
            if status is None or status.window < target:
                where = "nowhere" if status is None else f"in window {status.window}, {status.activity}"
                self.outcome.failures.append(f"{name} is {where}, when window {target} was to be reached by all")

    @property
    def run(self) -> Run:
        """The constants of the network."""
        from neurons.folder import read_run

        return read_run(Places(self.folder).run)

    # --- processes ----------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _running(self) -> Iterator[None]:
        try:
            for name in (*self.roles, TICKER):
                self._start(name)
            yield
        finally:
            children = dict(self.children)
            nursery.stop(list(children.values()))
            for name, child in children.items():
                if child.process.exitcode not in _ENDED_ON_REQUEST:
                    self.outcome.failures.append(
                        f"{name}, asked to end, {nursery.ending(child.process.exitcode)}: {self._last_words(name)}"
                    )

    def _start(self, name: str) -> None:
        self.starts[name] += 1
        if name == TICKER:
            child = nursery.start(self.context, name, tick, self.folder, BLOCK_SECONDS)
        else:
            seed = f"{self.plan.seed}/{name}/{self.starts[name]}"
            arguments = (self.folder, name, self.roles[name], self.plan.weather, seed)
            child = nursery.start(self.context, name, neuron, *arguments)
        self.children[name] = child
        assert child.process.pid is not None
        self.pids.append(child.process.pid)

    def _kill(self, name: str, due: float) -> None:
        if name not in self.children:
            return  # it is down already
        self._signal(name, signal.SIGKILL)
        self.due[name] = due

    def _bury(self, name: str) -> None:
        child = self.children.pop(name)
        child.process.join()
        child.lifeline.close()

    def _signal(self, name: str, number: signal.Signals) -> None:
        if name in self.children and (pid := self.children[name].process.pid) is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def _limit(self, name: str, size_bytes: int) -> None:
        """Let the process of `name` write no file beyond this size; each process once, so that one which fails of it
        can still say why."""
        if name in self.children and (pid := self.children[name].process.pid) is not None:
            if self.limited.get(name) == (pid, size_bytes):
                return
            self.limited[name] = pid, size_bytes
            with contextlib.suppress(ProcessLookupError):
                _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
                resource.prlimit(pid, resource.RLIMIT_FSIZE, (size_bytes, hard))

    def _role(self, name: str) -> str:
        return self.roles.get(name, TICKER)

    def _statuses(self) -> dict[str, NodeStatus | None]:
        return {name: read_status(Places(self.folder).node(name)) for name in self.roles}

    def _last_words(self, name: str) -> str:
        path = Places(self.folder).log(name)
        lines = path.read_text(errors="replace").strip().splitlines() if path.exists() else []
        return lines[-1] if lines else "it said nothing"

    # --- afterwards ---------------------------------------------------------------------------------------

    def _look(self) -> None:
        notes = self.folder / NOTES_FILE
        kinds = [line.split("\t")[0] for line in notes.read_text().splitlines()] if notes.exists() else []
        self.outcome.faults.update(kinds)
        roots: dict[str, Any] = {
            name: {} if status is None else status.roots for name, status in self._statuses().items()
        }
        call = nursery.Call(self.context, look, self.folder, roots, tuple(self.pids))
        with contextlib.closing(call):
            verdict: Verdict = call.result(lambda _: None)
        self.outcome.payloads, self.outcome.scores = verdict.payloads, verdict.scores
        self.outcome.failures += verdict.failures
