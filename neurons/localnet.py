"""A whole network on one machine: one folder, one process per neuron, a chain that ticks, a live screen."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live

from neurons.errors import FolderError, NetworkError, NeuronError
from neurons.founding import Member, Plan, found, read_members
from neurons.leaderboard.terminal import live_screen, summary
from neurons.leaderboard.view import APPLIED, PASSED, View, Watcher
from neurons.process import read_run
from neurons.settings import network_defaults
from neurons.status import STATUS_FILE, NodeStatus, read_status
from protocol.chain.local import LocalChain
from protocol.run import Run
from protocol.window import deadlines, window_of
from storage.location import decode, open_bucket

_PRELOAD = [
    "neurons.founding",
    "neurons.validator",
    "transformers.models.auto.modeling_auto",
    "transformers.models.llama.modeling_llama",
]
"""What every neuron imports: done once in the fork server, so that a process starts in a moment."""
_JOIN_SECONDS = 30.0
_STOP_SECONDS = 3.0
_REFRESH_SECONDS = 0.5


@dataclass(slots=True)
class Neuron:
    """One neuron as a process. Closing `lifeline` is what tells the process that its network is gone."""

    member: Member
    process: BaseProcess
    lifeline: Connection


@dataclass(slots=True)
class Network:
    """A running network. `target` is the window at which it ends, None to go on until interrupted."""

    folder: Path
    run: Run
    chain: LocalChain
    watcher: Watcher
    neurons: list[Neuron]
    started: float
    first_window: int
    target: int | None
    dead: dict[str, str] = field(default_factory=dict)

    def statuses(self) -> list[NodeStatus]:
        """What each neuron says it does, those started by hand too."""
        folders = sorted(path.parent for path in (self.folder / "nodes").glob(f"*/{STATUS_FILE}"))
        return [status for folder in folders if (status := read_status(folder))]

    def notice_the_dead(self) -> None:
        """Name processes that ended though nobody stopped them."""
        for neuron in self.neurons:
            code = neuron.process.exitcode
            if code is not None and neuron.member.name not in self.dead:
                how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
                self.dead[neuron.member.name] = f"{how}; see {self.folder / 'nodes' / neuron.member.name / 'log'}"
        validators = [n.member.name for n in self.neurons if n.member.role == "validator"]
        if all(name in self.dead for name in validators):
            raise NetworkError(f"no validator is left: {'; '.join(f'{n} {self.dead[n]}' for n in validators)}")

    def roots(self, window: int) -> dict[str, str]:
        """Root of θ before `window` by name, of every living neuron that has reached it."""
        living = {n.member.name for n in self.neurons} - set(self.dead)
        return {s.name: s.roots[window] for s in self.statuses() if s.name in living and window in s.roots}

    def is_finished(self, view: View) -> bool:
        """Whether the last window is judged and every living neuron has applied it."""
        if self.target is None or view.newest is None or view.newest < self.target - 1:
            return False
        return len(self.roots(self.target)) == len(self.neurons) - len(self.dead)


def up(folder: Path, plan: Plan, windows: int | None, console: Console, plain: bool) -> dict[str, Any]:
    """Found the network in `folder`, or resume the one that is there, and run it: for `windows` more windows, or
    until interrupted. Returns what `--json` prints. `plain` prints lines instead of the live screen."""
    began = time.time()
    # Neurons get one thread each; libraries read this when they are imported, in the fork server.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOAD)
    members = read_members(folder)
    if members is None:
        console.print(f"founding a network in [bold]{folder}[/]: {len(plan.members())} neurons")
        _found_in_child(context, folder, plan, lambda text: console.print(f"  {text}"))
        members = read_members(folder)
    else:
        console.print(f"resuming the network in [bold]{folder}[/]: {len(members)} neurons")
    assert members is not None
    with _locked(folder):
        return asyncio.run(_run(context, folder, members, windows, console, plain, began))


def open_watcher(folder: Path) -> Watcher:
    """A reader of the network in `folder`: its chain and buckets, no wallet, no local state."""
    paths = network_defaults(folder)
    chain = LocalChain.open(folder / "chain.sqlite")
    return Watcher(read_run(paths["run"]), chain, lambda data: open_bucket(decode(data), paths["buckets"]))


async def _run(
    context: Any,
    folder: Path,
    members: Sequence[Member],
    windows: int | None,
    console: Console,
    plain: bool,
    began: float,
) -> dict[str, Any]:
    watcher = open_watcher(folder)
    run, chain = watcher.run, LocalChain.open(folder / "chain.sqlite")
    first = window_of((await chain.head()).number, run.time)
    target = None if windows is None else first + windows
    for path in (folder / "nodes").glob(f"*/{STATUS_FILE}"):
        path.unlink()
    console.print(f"  starting {len(members)} processes")
    neurons = [_start(context, folder, member) for member in members]
    network = Network(folder, run, chain, watcher, neurons, began, first, target)
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    screen = _plain_screen if plain else _live_screen
    tasks: list[asyncio.Task[None]] = []
    try:
        tasks = [
            asyncio.create_task(_produce(network)),
            asyncio.create_task(screen(network, console)),
            asyncio.create_task(_wait(stop)),
        ]
        done, _ = await asyncio.wait(tasks[1:], return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
        if tasks[0].done():
            tasks[0].result()
        view = await watcher.refresh()
        seconds = time.time() - began
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        _stop(neurons)
        await watcher.chain.close()
        await chain.close()
    at = target if target is not None and not stop.is_set() else (view.newest or 0) + 1
    roots = network.roots(at)
    console.print(summary(view, roots, seconds, folder))
    roles = {status.hotkey: _role(status, members) for status in network.statuses()}
    table = view.to_json()
    table["peers"] = [{**peer, "role": roles.get(peer["hotkey"], "miner")} for peer in table["peers"]]
    result = {"seconds": round(seconds, 1), "roots": roots, "dead": network.dead, **table}
    if target is not None and stop.is_set():
        raise KeyboardInterrupt
    return result


def _role(status: NodeStatus, members: Sequence[Member]) -> str:
    return next((member.role for member in members if member.name == status.name), status.role)


async def _wait(stop: asyncio.Event) -> None:
    await stop.wait()


async def _produce(network: Network) -> None:
    """The chain's clock: once every neuron has joined (or some time has passed), a block every block time."""
    deadline = time.monotonic() + _JOIN_SECONDS
    while time.monotonic() < deadline and sum(bool(s.roots) for s in network.statuses()) < len(network.neurons):
        await asyncio.sleep(_REFRESH_SECONDS / 5)
    due = time.monotonic()
    while True:
        due = max(due + network.chain.block_seconds, time.monotonic())
        await asyncio.sleep(due - time.monotonic())
        network.chain.produce_block(time.time())


# --- screens ----------------------------------------------------------------------------------------------


async def _live_screen(network: Network, console: Console) -> None:
    with Live(console=console, auto_refresh=False, screen=False, transient=True) as live:
        while True:
            network.notice_the_dead()
            view = await network.watcher.refresh()
            live.update(await _picture(network, view), refresh=True)
            if network.is_finished(view):
                return
            await asyncio.sleep(_REFRESH_SECONDS)


async def _picture(network: Network, view: View) -> Any:
    head = await network.chain.head()
    close = deadlines(window_of(head.number, network.run.time), network.run.time).close_block
    seconds = (close - head.number) * network.chain.block_seconds - (time.time() - head.timestamp)
    return live_screen(view, network.statuses(), network.dead, str(network.folder), max(0.0, seconds))


async def _plain_screen(network: Network, console: Console) -> None:
    """For a terminal that is none: a line per judged window and per death."""
    said, told = network.first_window - 1, set[str]()
    while True:
        network.notice_the_dead()
        view = await network.watcher.refresh()
        if view.newest is not None and view.newest > said:
            said = view.newest
            console.print(f"[{time.time() - network.started:4.0f} s] {_line(view)}", highlight=False, markup=False)
        for name in network.dead.keys() - told:
            console.print(f"{name} {network.dead[name]}", style="red")
            told.add(name)
        if network.is_finished(view):
            return
        await asyncio.sleep(_REFRESH_SECONDS)


def _line(view: View) -> str:
    """The newest judged window in one line."""
    marks = {row.uid: row.history[-1] for row in sorted(view.rows, key=lambda row: row.uid)}
    applied = ", ".join(str(uid) for uid, mark in marks.items() if mark == APPLIED) or "none"
    refused = ", ".join(f"{uid} {mark}" for uid, mark in marks.items() if mark not in (APPLIED, PASSED)) or "none"
    loss = f"{view.held_out_losses[-2][1]:.3f} -> {view.held_out_losses[-1][1]:.3f}"
    return f"window {view.newest}: held-out loss {loss}; applied uids {applied}; rejected {refused}"


# --- processes --------------------------------------------------------------------------------------------


def _start(context: Any, folder: Path, member: Member) -> Neuron:
    kind = [member.role] if member.role in ("miner", "validator") else ["cheat", member.role]
    arguments = [*kind, "--dir", str(folder), "--wallet.name", member.name]
    logs = folder / "nodes" / member.name
    logs.mkdir(parents=True, exist_ok=True)
    theirs, ours = context.Pipe(duplex=False)
    process = context.Process(target=_neuron, args=(arguments, logs / "log", theirs), name=member.name)
    process.start()
    theirs.close()
    return Neuron(member, process, ours)


def _neuron(arguments: list[str], log: Path, lifeline: Connection) -> None:
    """A neuron's process: the same command a person would type, with its output in a file."""
    os.setsid()  # Ctrl-C is for the parent, which then ends its neurons in order
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    threading.Thread(target=_die_with_parent, args=(lifeline,), daemon=True).start()
    from neurons.cli import main

    sys.exit(main(arguments))


def _die_with_parent(lifeline: Connection) -> None:
    with contextlib.suppress(EOFError, OSError):
        lifeline.recv()
    os.kill(os.getpid(), signal.SIGTERM)


def _stop(neurons: Sequence[Neuron]) -> None:
    """End all neurons: a signal, a few seconds, then force."""
    for neuron in neurons:
        neuron.process.terminate()
    deadline = time.monotonic() + _STOP_SECONDS
    for neuron in neurons:
        neuron.process.join(max(0.0, deadline - time.monotonic()))
        if neuron.process.is_alive():
            neuron.process.kill()
            neuron.process.join()
        neuron.lifeline.close()


def _found_in_child(context: Any, folder: Path, plan: Plan, say: Callable[[str], None]) -> None:
    """Found the network in a process of its own, so that torch and the tokenizer's threads stay out of this one."""
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_founder, args=(folder, plan, theirs))
    process.start()
    theirs.close()
    try:
        while True:
            kind, text = ours.recv()
            if kind == "error":
                raise text
            say(text)
    except EOFError:
        process.join()
        if process.exitcode:
            raise NeuronError(f"founding the network ended with exit code {process.exitcode}") from None
    finally:
        process.terminate()
        process.join()


def _founder(folder: Path, plan: Plan, parent: Connection) -> None:
    from neurons.cli import EXPECTED_ERRORS

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the half-made folder is removed
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        found(folder, plan, lambda text: parent.send(("say", text)))
    except EXPECTED_ERRORS as error:
        parent.send(("error", error))


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One `windrow up` per folder. The lock dies with its process; the file goes when it ends well."""
    path = folder / "lock"
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FolderError(f"another `windrow up` is running in {folder}; stop it or choose another --dir") from None
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
