"""A whole network on one machine: one folder, one process per neuron, a chain that ticks, a screen."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

from rich.console import Console

from neurons import founding, nursery, screens, store
from neurons.errors import FolderError, NetworkError
from neurons.folder import (
    Charter,
    Member,
    Places,
    claimed,
    founded_run,
    is_held,
    read_charter,
    require_network,
    under_construction,
)
from neurons.leaderboard.terminal import summary
from neurons.leaderboard.view import View, Watcher
from neurons.leaderboard.words import plain as printable
from neurons.nursery import Call, Child, ending
from neurons.settings import ENVIRONMENT_PREFIX
from neurons.status import STATUS_FILE, NodeStatus, read_statuses
from protocol.chain.local import LocalChain
from protocol.run import Run
from protocol.window import deadlines, window_of
from storage.dataset import open_dataset
from storage.directory import DirectoryBucket
from storage.errors import StorageError
from storage.location import decode, open_bucket
from storage.together import until_one_ends
from storage.transfer import Reach, Transport

_JOIN_SECONDS = 60.0
"""How long the chain waits for neurons that are still starting; one that hangs must not hold up the others."""

_REFRESH_SECONDS = 0.5

_MINER_NICENESS = 5
"""On a machine with fewer cores than neurons the validator goes first: everybody waits for it, nobody for a miner."""
_LOG_TAIL_BYTES = 4096
_LAST_WORDS_CHARACTERS = 300

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Outcome:
    """How `windrow up` ended: what `--json` prints, whether it was interrupted, and what made it impossible to go
    on, if anything did."""

    table: dict[str, Any]
    interrupted: bool
    failure: NetworkError | None


@dataclass(slots=True)
class Network:
    """A running network. `target` is the window at which it ends, None to go on until interrupted; `began` is when
    this `windrow up` did, in Unix seconds; `ticking` whether the chain makes blocks; `guests` are neurons that somebody
    started by hand; `dead` says what happened to each process that ended by itself."""

    folder: Path
    charter: Charter
    chain: LocalChain
    watcher: Watcher
    target: int | None
    began: float
    ticking: bool = False
    guests: set[str] = field(default_factory=set)
    children: list[Child] = field(default_factory=list)
    dead: dict[str, str] = field(default_factory=dict)

    def statuses(self) -> list[NodeStatus]:
        """What each neuron says it does: the members, and the guests, which were started by hand."""
        here = {member.name for member in self.charter.members} | self.guests
        return [status for status in read_statuses(Places(self.folder).nodes) if status.name in here]

    def living(self) -> list[NodeStatus]:
        """The statuses of those who have joined and have not died."""
        return [status for status in self.statuses() if status.roots and status.name not in self.dead]

    def awaited(self) -> list[str]:
        """Members that are still starting."""
        known = {status.name for status in self.living()} | self.dead.keys()
        return [member.name for member in self.charter.members if member.name not in known]

    def notice(self) -> None:
        """Look who has come by hand, and whose process has ended though nobody stopped it."""
        places = Places(self.folder)
        members = {member.name for member in self.charter.members}
        self.guests |= {path.name for path in places.nodes.iterdir() if path.name not in members and is_held(path)}
        gone = {name: "has ended; it was started by hand" for name in self.guests}
        for child in self.children:
            code = child.process.exitcode
            if code is not None:
                said = f": {_last_words(places.log(child.name))}" if code > 0 else ""
                gone[child.name] = f"{ending(code)}{said} (log: {places.log(child.name)})"
        # Whoever holds its folder lives: somebody may have started a dead neuron again, by hand.
        self.dead = {name: how for name, how in gone.items() if not is_held(places.node(name))}

    def require_validator(self) -> None:
        """Raise `NetworkError` when the process of every validator has ended."""
        validators = [member.name for member in self.charter.members if member.role == "validator"]
        if all(name in self.dead for name in validators):
            raise NetworkError(f"no validator is left: {'; '.join(f'{name} {self.dead[name]}' for name in validators)}")

    def roots(self) -> dict[str, str]:
        """Root of θ by name, before the newest window that all the living have reached."""
        living = self.living()
        known = [set(status.roots) for status in living]
        newest = max(set.intersection(*known) or set.union(*known)) if known else 0
        return {status.name: status.roots[newest] for status in living if newest in status.roots}

    def is_finished(self, view: View) -> bool:
        """Whether the last window is judged and every living neuron has applied it. Who does not within one window
        more is not waited for."""
        if self.target is None or view.newest is None or view.newest < self.target - 1:
            return False
        behind = any(max(status.roots) < self.target for status in self.living())
        return not behind or view.block >= deadlines(self.target, self.watcher.run.time).close_block


def up(folder: Path, wishes: founding.Wishes, windows: int | None, console: Console, plain: bool) -> Outcome:
    """Found the network in `folder`, or resume the one that is there, and run it: for `windows` more windows, or
    until interrupted. `plain` prints lines instead of the live screen."""
    began = time.time()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # asked to end by a program: the same as by Ctrl-C

    def say(text: str) -> None:
        console.print(text, highlight=False, markup=False, soft_wrap=True)

    with claimed(folder), contextlib.ExitStack() as stack:
        charter = read_charter(folder)
        if charter is None:
            plan = founding.plan(wishes)
            say(f"founding a network in {folder}: {len(plan.members)} neurons")
            context = stack.enter_context(nursery.preloaded())
            dtype = _found(context, folder, plan, say, stack)
            charter = require_network(folder)
        else:
            run = asyncio.run(_check(folder, charter, wishes))
            say(f"resuming the network in {folder}: {len(charter.members)} neurons")
            if charter.storage == "s3":
                stack.enter_context(store.start(folder))
            say("loading torch and transformers, once for all neurons")
            context = stack.enter_context(nursery.preloaded())
            dtype = _probe(context, run, say)
        screen = screens.printed if plain else screens.drawn
        return asyncio.run(_run(context, folder, charter, dtype, windows, screen, console, began))


def names(folder: Path, charter: Charter) -> dict[str, str]:
    """What the neurons of this machine are called, by hotkey: decoration for screens, nothing is decided by it."""
    return {status.hotkey: status.name for status in read_statuses(Places(folder).nodes)} | charter.names()


# --- before the first block -------------------------------------------------------------------------------


def _found(context: ForkServerContext, folder: Path, plan: founding.Plan, say: Say, stack: contextlib.ExitStack) -> str:
    """Make the network in processes of their own; returns what to compute in. The text is cut while the fork server
    still imports, by a process that needs nothing of that. Where buckets are in an S3 server, that one runs from here
    on until `stack` ends."""
    with under_construction(folder), contextlib.ExitStack() as calls:
        serving = calls.enter_context(contextlib.ExitStack())
        if plan.storage == "s3":
            server = serving.enter_context(store.start(folder))
            say(f"radosgw serves S3 at {server.url}: a bucket and two keys for each neuron")
            store.make_buckets(server, folder, [name for name, _ in plan.members])
        spawn = multiprocessing.get_context("spawn")
        text = calls.enter_context(contextlib.closing(Call(spawn, founding.write_text, folder, plan)))
        dataset_digest = text.result(say)
        rest = Call(context, founding.write_rest, folder, plan, dataset_digest)
        calls.enter_context(contextlib.closing(rest))
        rest.result(say)
        dtype = _probe(context, plan.draft, say)
        stack.push(serving.pop_all())
        return dtype


async def _check(folder: Path, charter: Charter, wishes: founding.Wishes) -> Run:
    """The run in `folder`, if it is whole and the one that is wished for; raises with what is wrong."""
    places = Places(folder)
    run = founded_run(folder, charter)
    chain = LocalChain.open(places.chain)
    await chain.close()
    founding.require_same(folder, charter, run, chain.block_seconds, wishes)
    try:
        await (await open_dataset(DirectoryBucket(places.dataset), run.dataset.index_digest)).verify()
    except StorageError as error:
        raise FolderError(
            f"the dataset in {folder} is damaged ({error}); restore it, or found a new network"
        ) from error
    return run


def _probe(context: ForkServerContext, run: Run, say: Say) -> str:
    """What to compute in, found out once for all neurons."""
    with contextlib.closing(Call(context, _fastest, run)) as call:
        dtype = call.result(say)
    say(f"  computing in {dtype}, the faster one here")
    return dtype


def _fastest(say: Say, run: Run) -> str:
    import torch

    from neurons.process import probe_dtype

    torch.set_num_threads(1)
    return probe_dtype(run)


# --- while it runs ----------------------------------------------------------------------------------------


async def _run(
    context: ForkServerContext,
    folder: Path,
    charter: Charter,
    dtype: str,
    windows: int | None,
    screen: Callable[[Console], AbstractContextManager[screens.Show]],
    console: Console,
    began: float,
) -> Outcome:
    chain, transport = LocalChain.open(Places(folder).chain), Transport(Reach.ANY)
    buckets = Places(folder).buckets
    run = founded_run(folder, charter)
    watcher = Watcher(run, chain, lambda data: open_bucket(decode(data), transport, buckets))
    first = window_of((await chain.head()).number, watcher.run.time)
    target = None if windows is None else first + windows
    network = Network(folder, charter, chain, watcher, target, began)
    interrupted, failure = False, None
    try:
        try:
            for member in charter.members:
                network.children.append(_start(context, folder, member, dtype))
            with screen(console) as show:
                interrupted = await _attend(network, show)
        except NetworkError as error:
            failure = error
        finally:
            nursery.stop(network.children)
        # Only now: nothing moves any more, so any later look at the folder gives the same numbers.
        view = await watcher.refresh()
    finally:
        await transport.close()
        await chain.close()
    seconds, roots = time.time() - began, network.roots()
    if view.windows:
        console.print(summary(view, roots, seconds, folder, names(network.folder, network.charter)))
    return Outcome(_table(network, view, roots, seconds), interrupted, failure)


async def _attend(network: Network, show: screens.Show) -> bool:
    """Let the network run until it is finished (False) or somebody interrupts it (True)."""
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await until_one_ends((_produce(network), _watch(network, show), stop.wait()))
    return stop.is_set()


async def _produce(network: Network) -> None:
    """The chain's clock: once every neuron has joined (or some time has passed), a block every block time."""
    deadline = time.monotonic() + _JOIN_SECONDS
    while network.awaited() and time.monotonic() < deadline:
        await asyncio.sleep(_REFRESH_SECONDS / 5)
    network.ticking = True
    due = time.monotonic()
    while True:
        due = max(due + network.chain.block_seconds, time.monotonic())
        await asyncio.sleep(due - time.monotonic())
        network.chain.produce_block(time.time())


async def _watch(network: Network, show: screens.Show) -> None:
    """Show what happens until the network is finished."""
    while True:
        view = await network.watcher.refresh()
        network.notice()
        show(await _moment(network, view))
        network.require_validator()
        if network.is_finished(view):
            return
        await asyncio.sleep(_REFRESH_SECONDS)


async def _moment(network: Network, view: View) -> screens.Moment:
    head = await network.chain.head()
    time_left = deadlines(view.window, network.watcher.run.time).close_block - head.number
    seconds = time_left * network.chain.block_seconds - (time.time() - head.timestamp if network.ticking else 0.0)
    return screens.Moment(
        view=view,
        statuses=tuple(network.statuses()),
        dead=network.dead,
        names=names(network.folder, network.charter),
        message=_message(network),
        seconds=time.time() - network.began,
        seconds_to_close=max(0.0, seconds),
    )


def _message(network: Network) -> str:
    if not network.ticking:
        awaited = network.awaited()
        return f"waiting for {', '.join(awaited)} to start" if awaited else "starting the chain"
    end = "" if network.target is None else f", ends after window {network.target - 1}"
    return f"running in {network.folder}{end}; Ctrl-C stops it, the same command goes on"


def _table(network: Network, view: View, roots: dict[str, str], seconds: float) -> dict[str, Any]:
    """What `--json` prints: what the issue of this command names first, then what else there is."""
    roles = {status.hotkey: status.role for status in network.statuses()}
    roles |= {member.hotkey: member.role for member in network.charter.members}
    called, facts = names(network.folder, network.charter), view.to_json()
    peers = []
    for row in facts.pop("peers"):
        hotkey = row["hotkey"]
        named = {"uid": row["uid"], "hotkey": hotkey, "name": called.get(hotkey), "role": roles.get(hotkey, "miner")}
        peers.append(named | row)
    first = ("windows", "seconds", "held_out_loss", "accepted", "rejected")
    facts |= {"seconds": round(seconds, 1)}
    ordered = {key: facts.pop(key) for key in first} | {"roots": roots, "peers": peers}
    return ordered | {"dead": network.dead} | facts


# --- processes --------------------------------------------------------------------------------------------


def _start(context: ForkServerContext, folder: Path, member: Member, dtype: str) -> Child:
    kind = [member.role] if member.role in ("miner", "validator") else ["cheat", member.role]
    arguments = [*kind, "--dir", str(folder), "--wallet.name", member.name, "--dtype", dtype]
    if Places(folder).keys(member.name).exists():
        arguments += ["--config", str(Places(folder).keys(member.name))]
    log = Places(folder).log(member.name)
    log.parent.mkdir(parents=True, exist_ok=True)
    # Whoever has no status yet has not joined; one of the last time must not speak for it.
    (log.parent / STATUS_FILE).unlink(missing_ok=True)
    return nursery.start(context, member.name, _neuron, arguments, log)


def _neuron(arguments: list[str], log: Path) -> None:
    """A neuron's process: the same command a person would type, with its output in a file. What the shell exports for a
    node of its owner's own, a bucket or a wallet, is not for it."""
    for name in [name for name in os.environ if name.startswith((ENVIRONMENT_PREFIX, "AWS_"))]:
        del os.environ[name]
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    if arguments[0] != "validator":
        os.nice(_MINER_NICENESS)
    from neurons.cli import main

    sys.exit(main(arguments))


def _last_words(log: Path) -> str:
    """The last line of a log: of a process that failed, the sentence that says why."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _LOG_TAIL_BYTES))
        lines = file.read().decode(errors="replace").strip().splitlines() or ["it said nothing"]
    return printable(lines[-1].removeprefix("windrow: "))[:_LAST_WORDS_CHARACTERS]
